"""The whole method on simulated boards whose true energy is known: does the truth lie inside the stated interval?

A run in virtual time is settling, idle, warm-up, five windows, settling, idle, as ``profile`` does it. The reference
is the integral of the board's true power and the inferences that the load's schedule counts; neither comes from the
code that measures.
"""

from __future__ import annotations

import math
import multiprocessing
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from devit_contract.wire.messages import Description, Mark
from devit_profiling.figures.interval import Estimate
from devit_profiling.figures.joules import DeviceEnergy, device_energy
from devit_profiling.figures.power import Power
from devit_profiling.record.record import (
    IDLE,
    IDLE_AFTER,
    OUTSIDE,
    SETTLE,
    WARM_UP,
    WINDOW,
    Boundary,
    DeviceRecord,
    Phase,
    Plan,
)
from devit_profiling.sensor.board_table import AGX_ORIN, BOARDS, NANO, ORIN_NANO, Board
from devit_profiling.sensor.sensor_lines import SensorLog
from devit_profiling.simulator.board import SIMULATED_BOARDS, Cadence, SimulatedBoard, Stretch, play
from devit_profiling.simulator.power import Physics
from devit_profiling.simulator.sensor import RIPPLE_STEPS, recursive_average

PLAN = Plan(idle_s=30.0, duration_s=30.0)
NAME = "jetson1"
RECORD = DeviceRecord(NAME, 0, Description("", "", "", "", 1))

every_board = pytest.mark.parametrize(
    "board", [BOARDS[key] for key in SIMULATED_BOARDS], ids=lambda board: str(board.key)
)
every_sensor = pytest.mark.parametrize("sensor", ["lag", "average"])
every_ripple = pytest.mark.parametrize("ripple_steps", [0.0, RIPPLE_STEPS], ids=["still", "ripple"])


@dataclass(frozen=True)
class Timetable:
    """Phases of a run, and the inferences that are made in it."""

    boundaries_s: tuple[float, ...]
    kinds: tuple[str, ...]
    rate_hz: float

    @property
    def load_s(self) -> tuple[float, float]:
        """Start and end of the load."""
        return self.boundaries_s[self.kinds.index(WARM_UP)], self.boundaries_s[self.kinds.index(WINDOW) + PLAN.windows]

    def inferences(self, time_s: float) -> int:
        """Count the inferences that are done by a moment."""
        start_s, end_s = self.load_s
        return int(self.rate_hz * min(max(time_s - start_s, 0.0), end_s - start_s))

    def phases(self) -> list[Phase]:
        """Take snapshots at the boundaries as a device does."""
        snapshots = [Mark(round(time_s * 1e9), self.inferences(time_s), 0) for time_s in self.boundaries_s]
        boundaries = [Boundary(snapshot.monotonic_ns, {NAME: snapshot}) for snapshot in snapshots]
        first = self.kinds.index(WINDOW)
        return [
            Phase("", kind, place - first + 1 if kind == WINDOW else OUTSIDE, boundaries[place], boundaries[place + 1])
            for place, kind in enumerate(self.kinds)
        ]


def timetable(rate_hz: float) -> Timetable:
    kinds = (SETTLE, IDLE, WARM_UP, *(WINDOW,) * PLAN.windows, SETTLE, IDLE_AFTER)
    lengths_s = {
        SETTLE: PLAN.settle_s,
        IDLE: PLAN.idle_s,
        WARM_UP: PLAN.warm_up_s,
        WINDOW: PLAN.duration_s,
        IDLE_AFTER: PLAN.idle_s,
    }
    boundaries_s = np.cumsum([1.0, *(lengths_s[kind] for kind in kinds)]).tolist()
    return Timetable(tuple(boundaries_s), kinds, rate_hz)


@dataclass(frozen=True)
class Truth:
    """Joules per inference, exactly."""

    total_j: float
    dynamic_j: float
    mean_w: float


@dataclass(frozen=True)
class Outcome:
    """One run: what was measured, and what was so."""

    energy: DeviceEnergy
    true: Truth
    seen: Truth
    """The truth with the sensor's own gain and offset."""
    gained: Truth
    """The truth with its gain alone."""


def run_virtually(board: Board, seed: int, sensor: str, ripple_steps: float, *, drifts: bool = True) -> Outcome:
    """Profile a simulated board in virtual time; load, rate, specimen, cadence, pauses and ramp of clocks are drawn."""
    draw = random.Random(f"run {seed}")
    load, ramp_s = draw.uniform(0.5, 1.0), draw.uniform(0.0, 2.0)
    physics = Physics.drawn(seed, ramp_s=ramp_s)
    table = timetable(rate_hz=draw.uniform(20.0, 300.0))
    simulated = SimulatedBoard(
        board,
        seed=seed,
        sensor=sensor,
        ripple_steps=ripple_steps,
        physics=physics if drifts else replace(physics, leakage_per_c=0.0),
        keeps_history=True,
    )
    load_s, end_s = table.load_s, table.boundaries_s[-1] + 1.0
    work = [Stretch(load_s[0], 0.0), Stretch(load_s[1], load), Stretch(end_s, 0.0)]
    times_s, readings_mw = [], []
    for time_s, _ in play(simulated, work, Cadence(PLAN.interval_ms, seed=seed, pauses_per_min=0.5)):
        rails_mw = simulated.rails_mw()
        times_s.append(time_s)
        readings_mw.append([rails_mw[rail] for rail in board.total_rails])
    power = Power(
        device=RECORD,
        log=SensorLog((), 0, ()),
        board=board,
        is_board_guessed=False,
        is_simulated=True,
        time_s=np.array(times_s),
        rails_w=np.array(readings_mw) / 1e3,
        not_measured="",
    )
    return Outcome(
        energy=device_energy(power, table.phases(), PLAN),
        true=truth(table, simulated.true_j),
        seen=truth(table, simulated.seen_j),
        gained=truth(table, partial(simulated.seen_j, has_offset=False)),
    )


def run_hundred(board: Board, sensor: str, ripple_steps: float, *, drifts: bool = True) -> list[Outcome]:
    """Do runs that know nothing of each other, on all cores."""
    one = partial(run_by_key, board.key, sensor, ripple_steps, drifts)
    with multiprocessing.get_context("fork").Pool() as pool:
        return pool.map(one, range(100, 200), chunksize=5)


def run_by_key(key: str, sensor: str, ripple_steps: float, drifts: bool, seed: int) -> Outcome:
    """Name the board: its table row does not travel between processes."""
    return run_virtually(BOARDS[key], seed, sensor, ripple_steps, drifts=drifts)


def truth(table: Timetable, energy_j: Callable[[float, float], float]) -> Truth:
    """Divide exact energies by counted inferences; idle power is that of both idle phases together."""

    def joules(kind: str) -> float:
        return sum(
            energy_j(start_s, end_s)
            for found, start_s, end_s in zip(table.kinds, table.boundaries_s, table.boundaries_s[1:], strict=False)
            if found == kind
        )

    idle_w = (joules(IDLE) + joules(IDLE_AFTER)) / (2 * PLAN.idle_s)
    first = table.kinds.index(WINDOW)
    start_s, end_s = table.boundaries_s[first], table.boundaries_s[first + PLAN.windows]
    count = table.inferences(end_s) - table.inferences(start_s)
    total_j, length_s = joules(WINDOW), end_s - start_s
    return Truth(total_j / count, (total_j - idle_w * length_s) / count, total_j / length_s)


def estimates(outcome: Outcome) -> tuple[Estimate, Estimate]:
    """Give the total and what is above idle."""
    total, dynamic = outcome.energy.total_j_per_inference, outcome.energy.dynamic_j_per_inference
    assert total is not None
    assert dynamic is not None
    return total, dynamic


def is_inside(estimate: Estimate, true_j: float, apart_j: float | None = 0.0) -> bool:
    """Whether the truth lies in the interval, widened by an error that stands apart from it."""
    assert apart_j is not None
    return abs(estimate.mean - true_j) <= math.hypot(half_width(estimate), apart_j)


def half_width(estimate: Estimate) -> float:
    assert estimate.low_95 is not None
    assert estimate.high_95 is not None
    return (estimate.high_95 - estimate.low_95) / 2


@dataclass(frozen=True)
class Tally:
    """Figures of many runs; joules are compared with the truth as the sensor's gain and offset show it."""

    total_inside: float
    dynamic_inside: float
    offset_inside: float
    """Of the totals, widened by the offset that is stated, against the truth with the sensor's gain alone."""
    total_half: float
    """Median half-width as a share, of the runs of at least 10 W, if there are any."""
    dynamic_half: float
    worst: float
    """Largest error as a share, total and dynamic."""


def tally(outcomes: Sequence[Outcome]) -> Tally:
    figures = [(outcome, *estimates(outcome)) for outcome in outcomes]
    count = len(figures)
    strong = [figure for figure in figures if figure[0].true.mean_w >= 10] or figures
    errors = [abs(total.mean / run.seen.total_j - 1) for run, total, _ in figures]
    errors += [abs(dynamic.mean / run.seen.dynamic_j - 1) for run, _, dynamic in figures]
    return Tally(
        total_inside=sum(is_inside(total, run.seen.total_j) for run, total, _ in figures) / count,
        dynamic_inside=sum(is_inside(dynamic, run.seen.dynamic_j) for run, _, dynamic in figures) / count,
        offset_inside=sum(
            is_inside(total, run.gained.total_j, run.energy.offset_j_per_inference) for run, total, _ in figures
        )
        / count,
        total_half=statistics.median(half_width(total) / total.mean for _, total, _ in strong),
        dynamic_half=statistics.median(half_width(dynamic) / dynamic.mean for _, _, dynamic in strong),
        worst=max(errors),
    )


def check(found: Tally, board: Board, ripple_steps: float, least: float) -> None:
    """Hold a tally against what is promised."""
    assert min(found.total_inside, found.dynamic_inside, found.offset_inside) >= least, found
    assert found.total_half <= 0.03, found
    # Two of AGX Orin's rails step by 400 mW. At a still load the difference of load and idle is known to 0.46 W, which
    # is more than 3 % of it up to 15 W.
    is_coarse = board.key == "agx-orin" and ripple_steps == 0
    assert found.dynamic_half <= (0.04 if is_coarse else 0.03), found
    if ripple_steps > 0:
        assert found.worst <= 0.015, found


@pytest.mark.parametrize("board", [ORIN_NANO, AGX_ORIN], ids=lambda board: str(board.key))
@every_sensor
@every_ripple
def test_truth_lies_in_the_interval_of_most_runs(board: Board, sensor: str, ripple_steps: float) -> None:
    """Of twenty, three may miss: more would miss one time in sixty where 95 % is true."""
    found = tally([run_virtually(board, seed, sensor, ripple_steps) for seed in range(20)])
    check(found, board, ripple_steps, least=17 / 20)


@pytest.mark.nightly(part="models")
@every_board
@every_sensor
@every_ripple
def test_truth_lies_in_the_interval_of_ninety_in_a_hundred_runs(board: Board, sensor: str, ripple_steps: float) -> None:
    found = tally(run_hundred(board, sensor, ripple_steps))
    print(f"{board.key}, {sensor}, ripple of {ripple_steps} steps: {found}")
    check(found, board, ripple_steps, least=0.90)


@pytest.mark.nightly(part="models")
@pytest.mark.parametrize("board", [AGX_ORIN, NANO], ids=lambda board: str(board.key))
@every_sensor
@every_ripple
def test_interval_holds_without_the_drift_that_widens_it(board: Board, sensor: str, ripple_steps: float) -> None:
    """Warming spreads the windows; without it nothing covers for a sensor term that is too small."""
    found = tally(run_hundred(board, sensor, ripple_steps, drifts=False))
    print(f"{board.key}, {sensor}, ripple of {ripple_steps} steps, no drift: {found}")
    check(found, board, ripple_steps, least=0.90)


@every_board
def test_stated_errors_together_hold_the_truth_itself(board: Board) -> None:
    """Interval, offset and the 5 % of gain, against the board's true joules."""
    for seed in range(5):
        outcome = run_virtually(board, seed, "average", RIPPLE_STEPS)
        total, dynamic = estimates(outcome)
        apart_j = outcome.energy.offset_j_per_inference
        assert apart_j is not None
        assert is_inside(total, outcome.true.total_j, math.hypot(apart_j, 0.05 * total.mean))
        assert is_inside(dynamic, outcome.true.dynamic_j, 0.05 * dynamic.mean)


def test_time_constant_is_measured_where_the_load_ends() -> None:
    """Clocks that rise for seconds spoil the step at the start; the table's value is 0.43 s."""
    energy = run_virtually(BOARDS["orin-nano"], 3, "lag", RIPPLE_STEPS).energy
    assert energy.tau_source == "load step of this run"
    assert energy.tau_s == pytest.approx(0.43, rel=0.1)


def test_sensor_other_than_the_tables_is_found_out() -> None:
    """Averages of 1 to 1024 samples have time constants of 0 to 0.86 s."""
    board = BOARDS["orin-nano"]
    found = 0
    for seed in range(12):
        tau_s = recursive_average(board, seed).tau_s
        energy = run_virtually(board, seed, "average", RIPPLE_STEPS).energy
        if energy.tau_source == "load step of this run":
            found += 1
            assert energy.tau_s == pytest.approx(tau_s, rel=0.1, abs=0.03)
    assert found >= 10
