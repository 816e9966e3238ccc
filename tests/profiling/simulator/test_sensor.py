"""The simulated sensors against a filter that is stepped finely, and their errors against what is known of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from devit_profiling.sensor.board_table import AGX_ORIN, AGX_THOR, BOARDS, ORIN_NANO
from devit_profiling.sensor.tegrastats import parse_line
from devit_profiling.simulator.board import SIMULATED_BOARDS, Cadence, SimulatedBoard, Stretch, play
from devit_profiling.simulator.power import Physics, Piece
from devit_profiling.simulator.sensor import RIPPLE_STEPS, Readings, lag, recursive_average

LOG = Path(__file__).parents[2] / "data" / "tegrastats" / "agx_orin_l4t36_02_log.txt"
STEADY = 32  # line from which the load of that recording is steady


def test_lag_follows_a_ramp_as_finely_stepped_filter_does() -> None:
    """The chip's recursion, old + (new - old) / N every 0.84 ms, with N = 512."""
    sensor = lag(ORIN_NANO, 0)
    readings = Readings(ORIN_NANO, sensor, (4000.0, 0.0, 0.0), 0.0, seed=0)
    readings.see(Piece(0.0, 1.5, (4000.0, 0.0, 0.0), (20000.0, 0.0, 0.0)))
    readings.see(Piece(1.5, 0.2, (20000.0, 0.0, 0.0), (20000.0, 0.0, 0.0)))
    seen_mw, conversion_s = 4000.0, 0.84e-3
    for number in range(round(1.7 / conversion_s)):
        power_mw = 4000.0 + 16000.0 * min(number * conversion_s / 1.5, 1.0)
        seen_mw += (power_mw - seen_mw) / 512
    assert readings.read_mw()[0] == pytest.approx(seen_mw, abs=20 + 10)


def test_averages_are_settings_of_the_chip_and_errors_lie_in_their_ranges() -> None:
    sensors = [recursive_average(AGX_ORIN, seed) for seed in range(200)]
    taus_s = sorted({round(sensor.tau_s, 4) for sensor in sensors})
    assert (len(taus_s), taus_s[0]) == (8, 0.0)
    assert taus_s[-1] == pytest.approx(0.86, abs=0.01)
    gains = np.array([list(sensor.gain.values()) for sensor in sensors])
    steps = np.array([[sensor.offset_mw[rail] / AGX_ORIN.lsb_mw[rail] for rail in sensor.gain] for sensor in sensors])
    assert 0.97 <= gains.min() < 0.971 < 1.029 < gains.max() <= 1.03
    assert -2.0 <= steps.min() < -1.9 < 1.9 < steps.max() <= 2.0


@pytest.mark.parametrize("tau_s", [0.0, 0.43])
def test_ripple_has_the_size_that_was_asked_for_and_no_mean(tau_s: float) -> None:
    sensor = lag(ORIN_NANO, 0) if tau_s else recursive_average(ORIN_NANO, _plain_seed())
    settled_mw = (4000.0, 0.0, 0.0)
    readings = Readings(ORIN_NANO, sensor, settled_mw, 5.0, seed=1)
    found = []
    for number in range(20000):
        readings.see(Piece(number * 0.5, 0.5, settled_mw, settled_mw))
        found.append(readings.read_mw()[0] / 40)
    assert np.std(found) == pytest.approx(5.0, rel=0.05)
    expected = (sensor.gain["VDD_IN"] * 4000.0 + sensor.offset_mw["VDD_IN"]) / 40
    assert np.mean(found) == pytest.approx(expected, abs=0.2)


def _plain_seed() -> int:
    return next(seed for seed in range(100) if recursive_average(ORIN_NANO, seed).tau_s == 0)


def test_default_ripple_is_that_of_a_recorded_board() -> None:
    """Root mean square over its four rails, without straight lines and without what the steps themselves cause."""
    samples = [parse_line(line) for line in LOG.read_text(encoding="utf-8").splitlines()[STEADY:]]
    squares = []
    for rail, step_mw in AGX_ORIN.lsb_mw.items():
        readings = np.array([sample.rails_mw[rail] for sample in samples if sample is not None]) / step_mw
        places = np.arange(readings.size)
        left = readings - np.polyval(np.polyfit(places, readings, 1), places)
        squares.append(left.var(ddof=2) - 1 / 12)
    assert np.sqrt(np.mean(squares)) == pytest.approx(RIPPLE_STEPS, abs=0.05)


def test_gpu_rail_of_thor_reads_one_step_below_zero_at_idle() -> None:
    simulated = SimulatedBoard(AGX_THOR, ripple_steps=0.0)
    step_mw = AGX_THOR.lsb_mw["VDD_GPU"]
    assert f"VDD_GPU -{step_mw}mW/-{step_mw}mW " in simulated.line(0.0, 0.0)


@pytest.mark.parametrize("key", SIMULATED_BOARDS)
def test_readings_of_a_steady_board_average_to_what_gain_and_offset_show(key: str) -> None:
    simulated = SimulatedBoard(
        BOARDS[key], sensor="average", physics=Physics(leakage_per_c=0.0), seed=3, keeps_history=True
    )
    found_mw = []
    for time_s, _ in play(simulated, [Stretch(400.0, 0.7)], Cadence(100, seed=1)):
        if time_s > 10:
            rails_mw = simulated.rails_mw()
            found_mw.append(sum(rails_mw[rail] for rail in BOARDS[key].total_rails))
    seen_w = simulated.seen_j(10.0, 400.0) / 390.0
    assert np.mean(found_mw) / 1000 == pytest.approx(seen_w, abs=0.12 * max(BOARDS[key].total_lsb_mw) / 1000)


def test_lines_come_late_by_up_to_nine_percent_and_pause_for_up_to_three_seconds() -> None:
    periods_s = [Cadence(100, seed=seed).period_s for seed in range(300)]
    assert 0.1 <= min(periods_s) < 0.1005 < 0.1085 < max(periods_s) <= 0.109
    steady = Cadence(100, seed=1)
    assert {steady.gap_s() for _ in range(100)} == {steady.period_s}
    pausing = Cadence(100, seed=1, pauses_per_min=6.0)
    gaps_s = [pausing.gap_s() for _ in range(60_000)]
    pauses_s = [gap_s - pausing.period_s for gap_s in gaps_s if gap_s > pausing.period_s]
    assert len(pauses_s) / (60_000 * pausing.period_s / 60) == pytest.approx(6.0, rel=0.1)
    assert 2.9 < max(pauses_s) <= 3.0


def test_plan_of_work_stops_at_every_line_and_at_its_end() -> None:
    simulated = SimulatedBoard(ORIN_NANO, physics=Physics(leakage_per_c=0.0), keeps_history=True)
    work = [Stretch(1.05, 0.0), Stretch(2.0, 1.0)]
    cadence = Cadence(100, seed=5)
    moments = list(play(simulated, work, cadence))
    assert [load for _, load in moments] == [0.0 if time_s <= 1.05 else 1.0 for time_s, _ in moments]
    assert len(moments) == int(2.0 / cadence.period_s)
    assert simulated.true_j(0.0, 2.0) == pytest.approx(1.05 * 4.287 + 0.95 * 15.479, rel=1e-12)
