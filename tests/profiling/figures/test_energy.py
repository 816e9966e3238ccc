"""Joules of a window, against sums done by hand and against what integrals must obey."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devit_contract.arrays import Float64Array
from devit_contract.errors import EnergyError
from devit_profiling.figures.energy import (
    Minimum,
    measure_window,
    resolution_w,
    rising,
    slope,
)
from devit_profiling.sensor.board_table import ORIN_NANO
from devit_profiling.sensor.boards import total_mw
from devit_profiling.sensor.tegrastats import parse_line

DATA = Path(__file__).parents[2] / "data" / "tegrastats"
ANY = Minimum(duration_s=0.0, samples=0)


def array(*values: float) -> Float64Array:
    return np.array(values, dtype=np.float64)


def every(period_s: float, count: int) -> Float64Array:
    return np.arange(count, dtype=np.float64) * period_s


RAMP_W = array(2.0, 4.0, 8.0, 8.0)
RAMP_S = array(0.0, 1.0, 2.0, 4.0)


def joules(power_w: Float64Array, time_s: Float64Array, start_s: float, end_s: float) -> float:
    return measure_window(power_w, time_s, start_s, end_s, ANY).total_j


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected_j"),
    [
        (0.0, 4.0, 3.0 + 6.0 + 16.0),
        (0.5, 2.5, (3.0 + 4.0) / 2 * 0.5 + 6.0 + 8.0 * 0.5),
        (0.25, 2.0, (2.5 + 4.0) / 2 * 0.75 + 6.0),
        (1.0, 2.0, 6.0),
    ],
)
def test_energy_equals_the_sum_by_hand(start_s: float, end_s: float, expected_j: float) -> None:
    assert joules(RAMP_W, RAMP_S, start_s, end_s) == pytest.approx(expected_j, rel=1e-12)


def test_window_starting_at_zero_is_not_taken_for_no_window() -> None:
    """0.0 s is a start like any other; testing its truth would drop the window."""
    assert joules(array(5.0, 5.0, 5.0), array(-1.0, 0.0, 1.0), 0.0, 1.0) == 5.0


@pytest.mark.parametrize(
    ("power_w", "time_s", "start_s", "end_s", "reason"),
    [
        (array(1.0, 1.0), array(0.0), 0.0, 1.0, "one stamp per power sample"),
        (array(1.0, np.nan), array(0.0, 1.0), 0.0, 1.0, "NaN"),
        (array(1.0, 1.0), array(0.0, 1.0), 1.0, 1.0, "ends after it starts"),
        (array(1.0, 1.0), array(0.0, 1.0), 0.0, np.inf, "ends after it starts"),
    ],
)
def test_series_that_carries_no_energy_is_an_error(
    power_w: Float64Array, time_s: Float64Array, start_s: float, end_s: float, reason: str
) -> None:
    with pytest.raises(EnergyError, match=reason):
        joules(power_w, time_s, start_s, end_s)


@st.composite
def series(draw: st.DrawFn) -> tuple[Float64Array, Float64Array, Float64Array, float, float, float]:
    """Two powers on one clock without gaps, and three rising times inside it with samples between them."""
    count = draw(st.integers(30, 40))
    watts = st.floats(-1.0, 100.0)
    first_w = draw(st.lists(watts, min_size=count, max_size=count))
    second_w = draw(st.lists(watts, min_size=count, max_size=count))
    time_s = np.cumsum(draw(st.lists(st.floats(0.5, 1.4), min_size=count, max_size=count)))
    shares = [draw(st.integers(*ends)) for ends in ((0, 250), (450, 550), (750, 1000))]
    span_s = float(time_s[-1] - time_s[0])
    start_s, middle_s, end_s = (float(time_s[0]) + span_s * (share / 1000) for share in shares)
    return array(*first_w), array(*second_w), time_s, start_s, middle_s, min(end_s, float(time_s[-1]))


Case = tuple[Float64Array, Float64Array, Float64Array, float, float, float]


@settings(deadline=None)
@given(series())
def test_energies_of_adjacent_windows_add_up(case: Case) -> None:
    power_w, _, time_s, start_s, middle_s, end_s = case
    parts_j = joules(power_w, time_s, start_s, middle_s) + joules(power_w, time_s, middle_s, end_s)
    assert parts_j == pytest.approx(joules(power_w, time_s, start_s, end_s), rel=1e-9, abs=1e-7)


@settings(deadline=None)
@given(series(), st.floats(-10.0, 10.0))
def test_energy_is_linear_in_power(case: Case, factor: float) -> None:
    """The energy of summed rails is the sum of the rails' energies."""
    first_w, second_w, time_s, start_s, _, end_s = case
    expected_j = factor * joules(first_w, time_s, start_s, end_s) + joules(second_w, time_s, start_s, end_s)
    assert joules(factor * first_w + second_w, time_s, start_s, end_s) == pytest.approx(expected_j, rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(series(), st.floats(0.0, 100.0))
def test_energy_of_constant_power_is_power_times_duration(case: Case, watts: float) -> None:
    _, _, time_s, start_s, _, end_s = case
    found_j = joules(np.full_like(time_s, watts), time_s, start_s, end_s)
    assert found_j == pytest.approx(watts * (end_s - start_s), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(series())
def test_energy_of_the_whole_series_is_the_sum_of_its_trapezoids(case: Case) -> None:
    power_w, _, time_s, _, _, _ = case
    points = list(zip(time_s.tolist(), power_w.tolist(), strict=True))
    expected_j = sum((to_s - at_s) * (at_w + to_w) / 2 for (at_s, at_w), (to_s, to_w) in pairwise(points))
    window = measure_window(power_w, time_s, float(time_s[0]), float(time_s[-1]), ANY)
    assert window.total_j == pytest.approx(expected_j, rel=1e-9, abs=1e-9)
    assert (window.coverage, window.warnings) == (1.0, ())


def test_window_at_ten_hertz_has_every_figure() -> None:
    time_s = every(0.125, 121)  # 0 s to 15 s
    power_w = np.where(np.arange(121) % 2 == 0, 4.0, 6.0)
    window = measure_window(power_w, time_s, 1.0, 13.0)
    assert (window.samples, window.dropped, window.period_s, window.coverage) == (97, 0, 0.125, 1.0)
    assert (window.total_j, window.mean_w, window.peak_w) == (60.0, 5.0, 6.0)
    assert window.sd_w == pytest.approx(1.005, abs=0.001)
    assert window.warnings == ()
    assert window.dynamic_j(idle_mean_w=4.5) == pytest.approx(6.0)


def test_dynamic_energy_may_be_negative() -> None:
    """Work that costs less than a sensor step can read below idle; the caller flags it, nobody hides it."""
    window = measure_window(np.full(121, 4.0), every(0.125, 121), 1.0, 13.0)
    assert window.dynamic_j(idle_mean_w=4.25) == pytest.approx(-3.0)


def test_gap_lowers_the_coverage_and_is_not_filled() -> None:
    time_s = every(0.125, 161)
    kept = (time_s <= 5.0) | (time_s >= 7.0)
    window = measure_window(np.full(161, 8.0)[kept], time_s[kept], 0.0, 20.0)
    assert window.coverage == pytest.approx(0.9)
    assert window.total_j == pytest.approx(8.0 * 18)
    assert window.mean_w == pytest.approx(8.0)
    assert window.warnings == ("gaps between the power samples: 1, the longest of 2.000 s",)
    assert window.dynamic_j(idle_mean_w=8.0) == pytest.approx(0.0)


def test_missing_edges_lower_the_coverage_and_are_not_extrapolated() -> None:
    window = measure_window(np.full(121, 8.0), every(0.125, 121), -1.0, 15.5)
    assert window.coverage == pytest.approx(15.0 / 16.5)
    assert window.total_j == pytest.approx(8.0 * 15)
    assert window.warnings == (
        "the first 1.000 s of the window have no power samples",
        "the last 0.500 s of the window have no power samples",
    )


def test_stamps_that_do_not_rise_are_dropped_and_counted() -> None:
    time_s = every(0.125, 121)
    power_w = np.full(121, 8.0)
    time_s[50], power_w[50] = time_s[49], 1000.0
    time_s[70], power_w[70] = time_s[60], 1000.0
    window = measure_window(power_w, time_s, 0.0, 15.0)
    assert (window.dropped, window.samples, window.peak_w, window.coverage) == (2, 119, 8.0, 1.0)
    assert window.total_j == pytest.approx(120.0)
    assert window.warnings == ("2 power samples dropped because their stamps did not rise",)


def test_every_window_counts_the_readings_that_it_has_dropped_itself() -> None:
    """One with the clock of yesterday comes in the third window, and is counted there."""
    time_s = every(0.125, 401)
    time_s[100], time_s[300] = time_s[99], -86400.0
    windows = [measure_window(np.full(401, 8.0), time_s, start_s, start_s + 15.0) for start_s in (0.0, 15.0, 30.0)]
    assert [window.dropped for window in windows] == [1, 0, 1]


@pytest.mark.parametrize(
    ("period_s", "duration_s", "enough"),
    [
        (0.109, 10.0, True),
        (0.109, 9.9, False),
        (0.522, 30.0, True),
        (0.522, 29.0, False),
        (1.06, 30.0, False),
        (1.06, 32.0, True),
    ],
)
def test_window_below_the_minimum_is_insufficient(period_s: float, duration_s: float, enough: bool) -> None:
    """10 s at up to 250 ms, 30 s beyond that, and 30 samples in any case."""
    time_s = every(period_s, 1000)
    if enough:
        assert measure_window(np.ones(1000), time_s, 1.0, 1.0 + duration_s).total_j == pytest.approx(duration_s)
    else:
        with pytest.raises(EnergyError, match=r"insufficient: .* measure longer"):
            measure_window(np.ones(1000), time_s, 1.0, 1.0 + duration_s)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_insufficient_for_any_minimum(count: int) -> None:
    with pytest.raises(EnergyError, match="insufficient"):
        measure_window(np.ones(count), every(0.1, count), 0.0, 10.0, ANY)


def test_ten_seconds_of_slow_samples_make_idle_power() -> None:
    assert measure_window(np.ones(20), every(1.03, 20), 1.0, 11.0, Minimum(10.0, 8)).mean_w == pytest.approx(1.0)


def test_rise_is_that_of_the_straight_line_through_the_readings() -> None:
    time_s = every(0.125, 121)
    assert measure_window(5.0 + 0.1 * time_s, time_s, 1.0, 13.0).rise_w == pytest.approx(1.2)
    assert measure_window(np.full(121, 5.0), time_s, 1.0, 13.0).rise_w == pytest.approx(0.0)
    assert slope(array(3.0), array(5.0)) == 0.0


def test_time_left_out_for_settling_counts_as_measured_time() -> None:
    time_s = every(0.1, 200)
    assert measure_window(np.ones(200), time_s, 2.0, 11.0, left_out_s=1.0).total_j == pytest.approx(9.0)
    with pytest.raises(EnergyError, match="insufficient"):
        measure_window(np.ones(200), time_s, 2.0, 11.0)


def test_resolution_combines_the_steps_of_the_summed_rails() -> None:
    assert resolution_w([40]) == pytest.approx(0.040 / 12**0.5)
    assert resolution_w([300, 400]) == pytest.approx(0.500 / 12**0.5)


def test_only_later_stamps_rise() -> None:
    assert rising(array(0.0, 1.0, 1.0, 0.5, 2.0)).tolist() == [True, True, False, False, True]
    assert rising(array()).tolist() == []


def test_mean_of_a_recording_is_the_average_that_tegrastats_printed() -> None:
    """The second column is the mean since it was started; this recording starts where it did."""
    lines = (DATA / "orin_nano_l4t36_04_100ms_log.txt").read_text(encoding="utf-8").splitlines()
    samples = [sample for sample in map(parse_line, lines) if sample is not None]
    totals_mw = [total_mw(ORIN_NANO, sample.rails_mw) for sample in samples]
    power_w = np.array(totals_mw, dtype=np.float64) / 1000
    time_s = every(0.1091, power_w.size)
    window = measure_window(power_w, time_s, 0.0, float(time_s[-1]))
    assert "VDD_IN 6130mW/12128mW" in lines[-1]
    assert window.mean_w == pytest.approx(12.128, rel=0.005)
    assert (window.samples, window.peak_w) == (661, 21.663)
