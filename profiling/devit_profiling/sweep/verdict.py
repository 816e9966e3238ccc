"""The verdict of a sweep: the power mode with the least energy that keeps the deadline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from devit_contract.machine import PowerMode
from devit_profiling.figures.analysis import Report, ScenarioReport
from devit_profiling.figures.interval import Estimate, mean_of
from devit_profiling.report.number_format import interval, joules, number

SWEEP_FILE = "sweep.json"
SWEEP_SCHEMA = 1
SWEEP_HEADER = ("mode", "p50 ms", "p99 ms", "deadline", "idle W", "W", "J/inf.", "95 % interval")


class ModeFigures(msgspec.Struct, frozen=True):
    """One mode that was measured."""

    number: int
    name: str
    p50_ms: float | None
    p99_ms: float | None
    """Of single inferences, back to back."""
    per_second: float
    keeps_deadline: bool
    total_j_per_inference: Estimate | None
    resolution_j_per_inference: float | None
    idle_w: float | None
    mean_w: float | None
    not_measured: str
    """Why there are no joules; empty where there are."""


class Sweep(msgspec.Struct, frozen=True):
    """``sweep.json``."""

    schema: int
    run: str
    device: str
    is_simulated: bool
    is_calibrated: bool
    is_whole: bool
    """Whether every requested mode was measured or refused."""
    scope: str
    deadline_ms: float
    found: PowerMode
    """The mode before the sweep, which is restored."""
    modes: tuple[ModeFigures, ...]
    refused: tuple[str, ...]
    """Modes that need a reboot, a sentence each."""
    cheapest: int | None
    """Number of the mode with the least joules per inference among those that keep the deadline."""
    verdict: str
    """The choice in a sentence, for people."""


def judge(
    report: Report,
    modes: Sequence[PowerMode],
    refused: Mapping[int, str],
    found: PowerMode,
    deadline_ms: float,
    *,
    is_whole: bool,
) -> Sweep:
    """Take the figures of each mode from its scenario in the report, and choose a mode."""
    scenarios = {scenario.name: scenario for scenario in report.scenarios}
    figures = tuple(_figures(mode, scenarios[str(mode)], deadline_ms) for mode in modes)
    device = report.devices[0]
    cheapest, verdict = choose(figures, deadline_ms)
    return Sweep(
        schema=SWEEP_SCHEMA,
        run=report.name,
        device=device.name,
        is_simulated=device.is_simulated,
        is_calibrated=device.calibration is not None,
        is_whole=is_whole,
        scope=device.scope,
        deadline_ms=deadline_ms,
        found=found,
        modes=figures,
        refused=tuple(refused.values()),
        cheapest=cheapest.number if cheapest is not None else None,
        verdict=f"SIMULATED: {verdict}" if device.is_simulated else verdict,
    )


def choose(modes: Sequence[ModeFigures], deadline_ms: float) -> tuple[ModeFigures | None, str]:
    """Choose the mode with the least joules per inference among those that keep the deadline, and say so."""
    keeping = [mode for mode in modes if mode.keeps_deadline]
    if not keeping:
        timed = [(mode.p99_ms, mode) for mode in modes if mode.p99_ms is not None]
        p99_ms, best = min(timed, key=lambda pair: pair[0], default=(None, None))
        quickest = f"; the quickest is {_title(best)} with a p99 of {number(p99_ms)} ms" if best is not None else ""
        return None, f"no mode keeps the deadline of {number(deadline_ms)} ms{quickest}"
    measured = [mode for mode in keeping if mode.total_j_per_inference is not None]
    measured.sort(key=lambda mode: mean_of(mode.total_j_per_inference) or 0.0)
    if not measured:
        return None, f"no joules were measured in a mode that keeps the deadline: {keeping[0].not_measured}"
    first = measured[0]
    least_j = joules(mean_of(first.total_j_per_inference), first.resolution_j_per_inference)
    text = (
        f"{_title(first)} is the cheapest that keeps the deadline of {number(deadline_ms)} ms, with {least_j} J per "
        f"inference and a p99 of {number(first.p99_ms)} ms"
    )
    rivals = [_title(mode) for mode in measured[1:] if _overlap(first, mode)]
    if rivals:
        text += f"; intervals do not tell it apart from {', '.join(rivals)}"
    return first, text


def sweep_rows(sweep: Sweep) -> list[list[str]]:
    """Give the rows of the table that a terminal shows."""
    return [
        [
            f"{mode.number} {mode.name}",
            number(mode.p50_ms),
            number(mode.p99_ms),
            "kept" if mode.keeps_deadline else "missed",
            number(mode.idle_w),
            number(mode.mean_w),
            joules(mean_of(mode.total_j_per_inference), mode.resolution_j_per_inference),
            interval(mode.total_j_per_inference, mode.resolution_j_per_inference),
        ]
        for mode in sweep.modes
    ]


def _figures(mode: PowerMode, scenario: ScenarioReport, deadline_ms: float) -> ModeFigures:
    (energy,), answers = scenario.energies, scenario.answers
    return ModeFigures(
        number=mode.number,
        name=mode.name,
        p50_ms=answers.p50_ms,
        p99_ms=answers.p99_ms,
        per_second=answers.per_second,
        keeps_deadline=answers.p99_ms is not None and answers.p99_ms <= deadline_ms,
        total_j_per_inference=energy.total_j_per_inference,
        resolution_j_per_inference=energy.resolution_j_per_inference,
        idle_w=energy.idle_w,
        mean_w=energy.mean_w,
        not_measured=energy.not_measured,
    )


def _overlap(first: ModeFigures, other: ModeFigures) -> bool:
    """Whether the intervals touch; a single window has none, so it counts as touching."""
    one, two = first.total_j_per_inference, other.total_j_per_inference
    if one is None or two is None or one.high_95 is None or two.low_95 is None:
        return True
    return two.low_95 <= one.high_95


def _title(mode: ModeFigures) -> str:
    return str(PowerMode(mode.number, mode.name))
