"""True power of the simulated boards: its integral against sums by hand, and what an integral must obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiling.simulation.reference_board import RecordedPower

from devit_profiling.sensor.board_table import AGX_ORIN, AGX_THOR, ORIN_NANO
from devit_profiling.simulator.power import Physics, TruePower

COLD = Physics(leakage_per_c=0.0)
IDLE_W, LOAD_W = 4.287, 15.479


def true_power(physics: Physics = COLD, ramp_s: float = 0.0) -> RecordedPower:
    power = RecordedPower(ORIN_NANO, physics, ramp_s)
    power.work(0.0, 0.0)
    return power


def test_constant_loads_give_power_times_time() -> None:
    power = true_power()
    power.work(10.0, 0.0)
    power.work(14.0, 1.0)
    power.work(16.0, 0.5)
    assert power.energy_j(0.0, 16.0) == pytest.approx(10 * IDLE_W + 4 * LOAD_W + 2 * (IDLE_W + LOAD_W) / 2, rel=1e-12)
    assert power.energy_j(9.0, 11.0) == pytest.approx(IDLE_W + LOAD_W, rel=1e-12)
    assert power.energy_j(11.25, 11.75) == pytest.approx(LOAD_W / 2, rel=1e-12)


def test_rising_clocks_cost_half_of_the_rise_and_falling_ones_nothing() -> None:
    power = true_power(ramp_s=2.0)
    power.work(5.0, 1.0)
    power.work(6.0, 0.0)
    rise_w = LOAD_W - IDLE_W
    assert power.energy_j(0.0, 1.0) == pytest.approx(IDLE_W + rise_w / 4, rel=1e-12)
    assert power.energy_j(0.0, 5.0) == pytest.approx(5 * IDLE_W + rise_w * (3 + 2 / 2), rel=1e-12)
    assert power.energy_j(5.0, 6.0) == pytest.approx(IDLE_W, rel=1e-12)


def test_warm_board_draws_more_at_the_same_load() -> None:
    """12 C at 0.4 % a degree."""
    power = true_power(Physics(leakage_per_c=0.004))
    power.work(3600.0, 1.0)
    assert power.rise_c == pytest.approx(12.0)
    assert power.energy_j(3599.0, 3600.0) == pytest.approx(LOAD_W, rel=1e-4)
    power.work(3600.001, 0.0)
    assert power.rails_mw[0] == pytest.approx(1000 * IDLE_W * 1.048, rel=1e-4)


def test_total_adds_the_rails_of_the_boards_rule_alone() -> None:
    power = RecordedPower(AGX_ORIN, COLD)
    power.work(0.0, 0.0)
    power.work(2.0, 0.0)
    assert power.energy_j(0.0, 2.0) == pytest.approx(2 * (2.801 + 0.400 + 4.536), rel=1e-12)


def test_no_rail_gives_power_back() -> None:
    """Thor's GPU rail reads below zero; it does not draw less than nothing."""
    power = RecordedPower(AGX_THOR, COLD)
    power.work(0.0, 0.0)
    power.work(1.0, 0.0)
    assert power.rails_j(0.0, 1.0)["VDD_GPU"] == 0.0


@pytest.mark.parametrize("interval_s", [(-0.1, 1.0), (0.0, 10.1)])
def test_energy_of_time_that_was_not_lived_through_is_an_error(interval_s: tuple[float, float]) -> None:
    power = true_power()
    power.work(10.0, 0.0)
    with pytest.raises(ValueError, match="an interval that was simulated"):
        power.energy_j(*interval_s)


schedules = st.lists(st.tuples(st.floats(0.01, 20.0), st.floats(0.0, 1.0)), min_size=1, max_size=12)


@settings(deadline=None)
@given(schedules, st.floats(0.0, 3.0), st.integers(0, 99))
def test_energy_is_the_integral_of_the_power_that_is_shown(
    steps: list[tuple[float, float]], ramp_s: float, seed: int
) -> None:
    """The reference samples every line at its ends, which is all that a straight line needs."""
    power = true_power(Physics.drawn(seed), ramp_s)
    time_s, expected_j = 0.0, 0.0
    for duration_s, load in steps:
        time_s += duration_s
        for piece in power.work(time_s, load):
            expected_j += float(np.mean([piece.from_mw[0], piece.to_mw[0]])) / 1000 * piece.duration_s
    assert power.energy_j(0.0, time_s) == pytest.approx(expected_j, rel=1e-9)
    middle_s = time_s / 3
    parts_j = power.energy_j(0.0, middle_s) + power.energy_j(middle_s, time_s)
    assert parts_j == pytest.approx(expected_j, rel=1e-9)


@settings(deadline=None)
@given(schedules, st.integers(0, 99))
def test_without_a_ramp_the_reference_draws_what_the_shipped_board_draws(
    steps: list[tuple[float, float]], seed: int
) -> None:
    recorded, shipped = true_power(Physics.drawn(seed)), TruePower(ORIN_NANO, Physics.drawn(seed))
    shipped.work(0.0, 0.0)
    time_s = 0.0
    for duration_s, load in steps:
        time_s += duration_s
        assert recorded.work(time_s, load) == shipped.work(time_s, load)
