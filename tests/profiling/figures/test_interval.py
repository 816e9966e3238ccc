"""Intervals against sums by hand, and the step error against readings that a converter made of known power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_profiling.figures.interval import (
    StepError,
    estimate,
    independent,
    mean_step_error,
    offset_95_w,
    quantile_95,
    step_error,
)


def test_parts_of_an_interval_add_as_squares() -> None:
    found = estimate([1.0, 3.0], steps_95=5.0, idle_95=7.0)
    assert found.high_95 is not None
    assert found.high_95 - found.mean == pytest.approx(math.sqrt(12.706**2 + 25 + 49), abs=1e-3)
    assert (found.repeats_95, found.steps_95, found.idle_95) == (pytest.approx(12.706, abs=5e-4), 5.0, 7.0)


def test_single_window_keeps_its_sensor_part_and_has_no_interval() -> None:
    found = estimate([1.0], steps_95=0.2)
    assert (found.low_95, found.high_95, found.repeats_95, found.steps_95) == (None, None, None, 0.2)


@given(st.integers(0, 99), st.floats(0.3, 0.7))
def test_two_codes_alone_never_average_out(seed: int, share: float) -> None:
    """However often a converter shows both, the power may lie anywhere between their outer edges."""
    readings_w = np.where(np.random.default_rng(seed).random((300, 1)) < share, 8.0, 8.4)
    assert step_error(readings_w, [400], 35.0) == StepError(0.4 / math.sqrt(12), 0.0)


def test_spread_over_several_codes_averages_out_with_the_independent_readings() -> None:
    power_w = 8.1 + np.random.default_rng(1).normal(0.0, 0.3, (300, 1))
    readings_w = np.round(power_w / 0.4) * 0.4
    found = step_error(readings_w, [400], 25.0)
    assert (found.constant_w, found.scattered_w) == (0.0, pytest.approx(0.4 / math.sqrt(12) / 5))


def test_single_spike_averages_nothing_out() -> None:
    readings_w = np.full((101, 1), 8.0)
    readings_w[50] = 80.0
    assert step_error(readings_w, [400], 35.0).scattered_w == 0.0


def test_rails_add_as_squares_each_by_its_own_spread() -> None:
    still_w = np.full(300, 8.0)
    moving_w = np.linspace(0.0, 4.0, 300)
    found = step_error(np.stack([still_w, moving_w, still_w], axis=1), [300, 40, 400], 25.0)
    assert found.constant_w == pytest.approx(0.5 / math.sqrt(12))
    assert found.scattered_w == pytest.approx(0.04 / math.sqrt(12) / 5)
    assert found.whole_w == pytest.approx(math.hypot(found.constant_w, found.scattered_w))


@pytest.mark.parametrize("readings", [1, 2, 3])
def test_few_readings_are_taken_for_still_ones(readings: int) -> None:
    assert step_error(np.full((readings, 1), 8.0), [40], 1.0).constant_w > 0


def test_mean_over_windows_keeps_the_constant_error_and_shrinks_the_scattered_one() -> None:
    found = mean_step_error([StepError(0.3, 0.4)] * 4)
    assert (found.constant_w, found.scattered_w) == pytest.approx((0.3, 0.2))


def test_step_error_of_a_still_power_holds_in_95_of_100() -> None:
    """Three rails of AGX Orin at powers that are drawn, against the power itself."""
    steps_w = np.array([0.4, 0.4, 0.101])
    power_w = np.random.default_rng(3).uniform(2.0, 20.0, (20_000, 3))
    errors_w = (np.round(power_w / steps_w) * steps_w - power_w).sum(axis=1)
    half_w = 1.96 * step_error(np.full((9, 3), 8.0), [400, 400, 101], 1.0).whole_w
    assert 0.94 < np.mean(np.abs(errors_w) <= half_w) < 0.98


def test_offset_holds_in_95_of_100() -> None:
    offsets_w = np.random.default_rng(4).uniform(-2.0, 2.0, (20_000, 3)) @ np.array([0.4, 0.4, 0.101])
    assert 0.94 < np.mean(np.abs(offsets_w) <= offset_95_w([400, 400, 101])) < 0.98


def test_independent_readings_are_one_in_two_time_constants_and_at_most_all() -> None:
    assert independent(280, 30.0, 0.43) == pytest.approx(34.9, abs=0.1)
    assert independent(20, 30.0, 0.43) == 20.0
    assert independent(5, 0.1, 0.43) == 1.0


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (29, 2.045), (60, 2.000), (100, 1.984)]
)
def test_quantile_of_student_is_that_of_the_nist_handbook(freedom: int, expected: float) -> None:
    """NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, column 0.975."""
    assert quantile_95(freedom) == pytest.approx(expected, abs=5e-4)
