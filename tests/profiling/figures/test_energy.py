"""Joules of a window, against sums done by hand and against what integrals must obey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devit_contract.arrays import Float64Array
from devit_contract.errors import EnergyError
from devit_profiling.figures.energy import (
    IDLE_MINIMUM,
    Minimum,
    burst_j,
    energy_j,
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


@pytest.mark.parametrize(
    ("start_s", "end_s", "joules"),
    [
        (0.0, 4.0, 3.0 + 6.0 + 16.0),
        (0.5, 1.5, (3.0 + 4.0) / 2 * 0.5 + (4.0 + 6.0) / 2 * 0.5),
        (1.25, 1.75, (5.0 + 7.0) / 2 * 0.5),
        (1.0, 2.0, 6.0),
        (3.0, 3.5, 4.0),
    ],
)
def test_energy_equals_the_sum_by_hand(start_s: float, end_s: float, joules: float) -> None:
    assert energy_j(RAMP_W, RAMP_S, start_s, end_s, max_gap_s=2.0) == pytest.approx(joules, rel=1e-12)


def test_window_between_two_samples_is_interpolated() -> None:
    """A window may be shorter than a sampling period."""
    assert energy_j(RAMP_W, RAMP_S, 0.25, 0.75, max_gap_s=2.0) == pytest.approx(1.5)


def test_window_starting_at_zero_is_not_taken_for_no_window() -> None:
    """0.0 s is a start like any other; testing its truth would drop the window."""
    assert energy_j(array(5.0, 5.0, 5.0), array(-1.0, 0.0, 1.0), 0.0, 1.0, max_gap_s=2.0) == 5.0


@pytest.mark.parametrize(("start_s", "end_s"), [(-0.1, 1.0), (3.0, 4.1), (5.0, 6.0)])
def test_window_beyond_the_samples_is_an_error_that_names_both(start_s: float, end_s: float) -> None:
    with pytest.raises(EnergyError, match=r"cover 0\.000 s to 4\.000 s, but the window is .* start the sampler"):
        energy_j(RAMP_W, RAMP_S, start_s, end_s, max_gap_s=2.0)


def test_gap_inside_the_window_is_an_error_and_outside_is_none() -> None:
    with pytest.raises(EnergyError, match=r"gap of 2\.000 s .* expected at most 1\.500 s"):
        energy_j(RAMP_W, RAMP_S, 0.0, 2.1, max_gap_s=1.5)
    assert energy_j(RAMP_W, RAMP_S, 0.0, 2.0, max_gap_s=1.5) == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("power_w", "time_s", "start_s", "end_s", "reason"),
    [
        (array(), array(), 0.0, 1.0, "are none"),
        (array(1.0), array(0.0), 0.0, 1.0, "cover"),
        (array(1.0, 1.0), array(0.0), 0.0, 1.0, "one stamp per power sample"),
        (array(1.0, np.nan), array(0.0, 1.0), 0.0, 1.0, "NaN"),
        (array(1.0, 1.0, 1.0), array(0.0, 1.0, 1.0), 0.0, 1.0, "strictly rising"),
        (array(1.0, 1.0), array(0.0, 1.0), 1.0, 1.0, "ends after it starts"),
        (array(1.0, 1.0), array(0.0, 1.0), 0.0, np.inf, "ends after it starts"),
    ],
)
def test_series_that_carries_no_energy_is_an_error(
    power_w: Float64Array, time_s: Float64Array, start_s: float, end_s: float, reason: str
) -> None:
    with pytest.raises(EnergyError, match=reason):
        energy_j(power_w, time_s, start_s, end_s, max_gap_s=10.0)


@st.composite
def series(draw: st.DrawFn) -> tuple[Float64Array, Float64Array, Float64Array, float, float, float]:
    """Two powers on one clock, and three rising times inside it."""
    count = draw(st.integers(2, 30))
    watts = st.floats(-1.0, 100.0)
    first_w = draw(st.lists(watts, min_size=count, max_size=count))
    second_w = draw(st.lists(watts, min_size=count, max_size=count))
    gaps_s = draw(st.lists(st.floats(0.01, 2.0), min_size=count, max_size=count))
    time_s = np.cumsum(gaps_s)
    shares = sorted(draw(st.lists(st.integers(0, 1000), min_size=3, max_size=3, unique=True)))
    span_s = float(time_s[-1] - time_s[0])
    start_s, middle_s, end_s = (float(time_s[0]) + span_s * (share / 1000) for share in shares)
    return array(*first_w), array(*second_w), time_s, start_s, middle_s, min(end_s, float(time_s[-1]))


Case = tuple[Float64Array, Float64Array, Float64Array, float, float, float]


@settings(deadline=None)
@given(series())
def test_energies_of_adjacent_windows_add_up(case: Case) -> None:
    power_w, _, time_s, start_s, middle_s, end_s = case
    parts_j = energy_j(power_w, time_s, start_s, middle_s, 9.0) + energy_j(power_w, time_s, middle_s, end_s, 9.0)
    assert parts_j == pytest.approx(energy_j(power_w, time_s, start_s, end_s, 9.0), rel=1e-9, abs=1e-7)


@settings(deadline=None)
@given(series(), st.floats(-10.0, 10.0))
def test_energy_is_linear_in_power(case: Case, factor: float) -> None:
    """The energy of summed rails is the sum of the rails' energies."""
    first_w, second_w, time_s, start_s, _, end_s = case
    expected_j = factor * energy_j(first_w, time_s, start_s, end_s, 9.0) + energy_j(
        second_w, time_s, start_s, end_s, 9.0
    )
    found_j = energy_j(factor * first_w + second_w, time_s, start_s, end_s, 9.0)
    assert found_j == pytest.approx(expected_j, rel=1e-9, abs=1e-7)


@settings(deadline=None)
@given(series(), st.floats(0.0, 100.0))
def test_energy_of_constant_power_is_power_times_duration(case: Case, watts: float) -> None:
    _, _, time_s, start_s, _, end_s = case
    found_j = energy_j(np.full_like(time_s, watts), time_s, start_s, end_s, 9.0)
    assert found_j == pytest.approx(watts * (end_s - start_s), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(series())
def test_both_ways_to_measure_agree_where_nothing_is_missing(case: Case) -> None:
    power_w, _, _, _, _, _ = case
    time_s = every(0.1, power_w.size)
    start_s, end_s = 0.0, float(time_s[-1])
    window = measure_window(power_w, time_s, start_s, end_s, ANY)
    assert window.total_j == pytest.approx(energy_j(power_w, time_s, start_s, end_s, 1.0), rel=1e-9, abs=1e-9)
    assert (window.coverage, window.flags) == (1.0, ())


def test_window_at_ten_hertz_has_every_figure() -> None:
    time_s = every(0.125, 121)  # 0 s to 15 s
    power_w = np.where(np.arange(121) % 2 == 0, 4.0, 6.0)
    window = measure_window(power_w, time_s, 1.0, 13.0)
    assert (window.samples, window.dropped, window.period_s, window.coverage) == (97, 0, 0.125, 1.0)
    assert (window.total_j, window.mean_w, window.peak_w) == (60.0, 5.0, 6.0)
    assert window.sd_w == pytest.approx(1.005, abs=0.001)
    assert window.flags == ()
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
    assert window.flags == ("gaps between the power samples: 1, the longest of 2.000 s",)
    assert window.dynamic_j(idle_mean_w=8.0) == pytest.approx(0.0)


def test_missing_edges_lower_the_coverage_and_are_not_extrapolated() -> None:
    window = measure_window(np.full(121, 8.0), every(0.125, 121), -1.0, 15.5)
    assert window.coverage == pytest.approx(15.0 / 16.5)
    assert window.total_j == pytest.approx(8.0 * 15)
    assert window.flags == (
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
    assert window.flags == ("2 power samples dropped because their stamps did not rise",)


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


def test_ten_seconds_of_slow_samples_make_an_idle_baseline() -> None:
    assert measure_window(np.ones(20), every(1.03, 20), 1.0, 11.0, IDLE_MINIMUM).mean_w == pytest.approx(1.0)


def test_burst_is_whole_only_with_the_tail_that_the_sensor_shows_after_it() -> None:
    """10 W above idle for 0.8 s behind a lag of 0.43 s: 8 J, of which the burst itself shows little more than half."""
    time_s = every(0.0125, 1000)
    passed_s, over_s = np.maximum(time_s - 2.0, 0.0), np.maximum(time_s - 2.8, 0.0)
    power_w = 4.0 + 10.0 * (np.exp(-over_s / 0.43) - np.exp(-passed_s / 0.43))
    assert burst_j(power_w, time_s, 2.0, 2.8, idle_w=4.0, tail_s=5 * 0.43) == pytest.approx(8.0, rel=0.01)
    assert burst_j(power_w, time_s, 2.0, 2.8, idle_w=4.0, tail_s=0.0) < 0.6 * 8.0
    with pytest.raises(EnergyError, match="cover"):
        burst_j(power_w, time_s, 2.0, 2.8, idle_w=4.0, tail_s=60.0)


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
