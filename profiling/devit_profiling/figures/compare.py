"""Two runs side by side: for every figure the difference, and whether it is statistically significant.

Welch's t test on the windows of each run. Overlapping intervals would not do: two 95 % intervals may overlap although
the difference is significant. The standard errors of the sensor's steps and of the idle power, which windows do not
show, are added to that of the windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from devit_contract.artefacts.files import read_json
from devit_contract.errors import InputError
from devit_profiling.figures.analysis import SCHEMA, Report, ScenarioReport
from devit_profiling.figures.cell import CellEnergy
from devit_profiling.figures.interval import NORMAL_95, Estimate, estimate, mean_of, quantile_95, two_sided_p
from devit_profiling.figures.joules import DeviceEnergy
from devit_profiling.sensor.tegrastats import SIMULATED

METHOD = (
    "Welch's t test on the windows of each run, two-sided, 5 %. The sensor's steps are in the intervals; its gain "
    "error is not, and cancels only where the same board was measured twice. What changed between the runs, room "
    "temperature or other load, counts as a difference: measure each more than once"
)
COMPARISON_SCHEMA = 2
Verdict = Literal["higher", "lower", "not significant", "unknown", "refused"]
TOTAL, ABOVE_IDLE = "J/inf., total", "J/inf., above idle"
PER_ANSWER, PER_SECOND = "J/answer, total", "answers/s"
P50, P99 = "p50 ms", "p99 ms"


class Difference(msgspec.Struct, frozen=True):
    """One figure of both runs; means over the windows."""

    scenario: str
    device: str
    """Empty where the figure is of the whole answer: from request to answer."""
    figure: str
    """What it is, with its unit."""
    is_simulated: bool
    verdict: Verdict
    """Of the second run."""
    why: str = ""
    """Why it is unknown or refused."""
    first: float | None = None
    second: float | None = None
    change: float | None = None
    """Second less first; the interval is of this."""
    low_95: float | None = None
    high_95: float | None = None
    p: float | None = None
    """Probability of such a difference, or a larger one, between equal runs."""


class Comparison(msgspec.Struct, frozen=True):
    """What ``profile compare --json`` prints."""

    schema: int
    first: str
    """Name of the run."""
    second: str
    method: str
    is_simulated: bool
    """Whether any compared joule is simulated."""
    differences: tuple[Difference, ...]
    refused: tuple[str, ...]
    """Why joules were not compared, a sentence each."""
    notes: tuple[str, ...]
    """What else differs between the runs."""


def compare(run_a: Path, run_b: Path) -> Comparison:
    """Compare two reports, each a folder or its ``report.json``, for every device and scenario that both have.

    Raises:
        InputError: A report cannot be read, or the runs have no scenario in common.
        ManifestError: A report breaks its format.
    """
    first, second = _read(run_a), _read(run_b)
    scenarios = {scenario.name: scenario for scenario in second.scenarios}
    pairs = [(one, scenarios[one.name]) for one in first.scenarios if one.name in scenarios]
    if not pairs:
        names = [", ".join(scenario.name for scenario in report.scenarios) for report in (first, second)]
        raise InputError(
            f"expected runs with a scenario in common, found {names[0]} and {names[1]}: "
            "compare runs of devices of the same names"
        )
    found = tuple(
        difference
        for one, other in pairs
        for difference in _differences(one.name, _figures(one), _figures(other))
        # Figures that neither run has are left out.
        if difference.verdict == "refused" or (difference.first, difference.second) != (None, None)
    )
    reasons = dict.fromkeys(difference.why for difference in found if difference.verdict == "refused")
    return Comparison(
        schema=COMPARISON_SCHEMA,
        first=first.name,
        second=second.name,
        method=METHOD,
        is_simulated=any(difference.is_simulated for difference in found),
        differences=found,
        refused=tuple(reasons),
        notes=tuple(_notes(first, second)),
    )


@dataclass(frozen=True)
class RunFigure:
    """One figure of one run."""

    estimate: Estimate | None
    scope: str = ""
    is_simulated: bool = False
    not_measured: str = ""


def difference_of(scenario: str, device: str, figure: str, first: RunFigure, second: RunFigure) -> Difference:
    """Compare one figure of both runs by Welch's t test; joules of different scopes are refused."""
    is_simulated = first.is_simulated or second.is_simulated
    where = f"{device}, {scenario}" if device else scenario
    plain = Difference(scenario, device, figure, is_simulated, "unknown")
    if refusal := _refusal(f"{where}: joules", first, second):
        return msgspec.structs.replace(plain, verdict="refused", why=refusal)
    plain = msgspec.structs.replace(plain, first=mean_of(first.estimate), second=mean_of(second.estimate))
    if first.estimate is None or second.estimate is None:
        reasons = [side.not_measured for side in (first, second) if side.not_measured]
        why = f"{where}: {figure}: not in one of the runs" + (f": {reasons[0]}" if reasons else "")
        return msgspec.structs.replace(plain, why=why)
    change = second.estimate.mean - first.estimate.mean
    shown = msgspec.structs.replace(plain, change=change)
    tested = _welch(first.estimate, second.estimate)
    if tested is None:
        few = "a run with one window has no interval: measure without --quick"
        return msgspec.structs.replace(shown, why=few)
    half, p = tested
    verdict: Verdict = "not significant" if p >= 0.05 else "higher" if change > 0 else "lower"
    return msgspec.structs.replace(shown, verdict=verdict, p=p, low_95=change - half, high_95=change + half)


def _read(path: Path) -> Report:
    path = path / "report.json" if path.is_dir() or path.suffix != ".json" else path
    return read_json(path, Report, schema=SCHEMA, hint="make the report again with profile --from-log RUNDIR")


_Figures = dict[tuple[str, str], RunFigure]
"""By device, empty where it is of the whole answer, and by what it is."""


def _differences(scenario: str, first: _Figures, second: _Figures) -> Iterator[Difference]:
    """Compare the figures of one scenario that both runs have."""
    for (device, figure), own in first.items():
        if (device, figure) in second:
            yield difference_of(scenario, device, figure, own, second[device, figure])


def _figures(scenario: ScenarioReport) -> _Figures:
    """List the figures of a scenario: the answers, the cell, then every device."""
    windows = scenario.answers.windows
    found = {
        ("", PER_SECOND): _of_values(window.per_second for window in windows),
        ("", P50): _of_values(window.p50_ms for window in windows),
        ("", P99): _of_values(window.p99_ms for window in windows),
    }
    if scenario.cell is not None:
        found["", PER_ANSWER] = _of_joules(scenario.cell, scenario.cell.total_j_per_answer)
    for energy in scenario.energies:
        found[energy.device, TOTAL] = _of_joules(energy, energy.total_j_per_inference)
        found[energy.device, ABOVE_IDLE] = _of_joules(energy, energy.dynamic_j_per_inference)
    for device in scenario.answers.devices:
        found[device.device, P50] = _of_values(window.arrival_p50_ms for window in device.windows)
        found[device.device, P99] = _of_values(window.arrival_p99_ms for window in device.windows)
    return found


def _of_values(values: Iterable[float | None]) -> RunFigure:
    known = [value for value in values if value is not None]
    return RunFigure(estimate(known) if known else None)


def _of_joules(source: DeviceEnergy | CellEnergy, figure: Estimate | None) -> RunFigure:
    return RunFigure(figure, source.scope, source.is_simulated, source.not_measured)


def _refusal(what: str, first: RunFigure, second: RunFigure) -> str:
    """Say why two joules are not comparable; empty where they are, or where there are none to compare."""
    if first.estimate is None or second.estimate is None:
        return ""
    if first.is_simulated != second.is_simulated:
        kinds = [SIMULATED if side.is_simulated else "measured" for side in (first, second)]
        return f"{what} of the first run are {kinds[0]}, of the second {kinds[1]}: they are not compared"
    if first.scope != second.scope:
        return f"{what} of the first run are of {first.scope}, of the second {second.scope}: they are not compared"
    return ""


def _welch(first: Estimate, second: Estimate) -> tuple[float, float] | None:
    """Give the half width of the difference's 95 % interval, and p; ``None`` where a run has a single window."""
    variance, freedom_parts = 0.0, 0.0
    for side in (first, second):
        if side.repeats_95 is None:
            return None
        error = side.repeats_95 / quantile_95(side.windows - 1)
        hidden_95 = math.hypot(side.steps_95 or 0.0, side.idle_95 or 0.0)
        variance += error**2 + (hidden_95 / NORMAL_95) ** 2
        freedom_parts += error**4 / (side.windows - 1)
    change = abs(second.mean - first.mean)
    # A relative width of 1e-12 is what sums of doubles leave of equal values.
    if variance <= (1e-12 * max(abs(first.mean), abs(second.mean))) ** 2:
        return 0.0, 1.0 if math.isclose(first.mean, second.mean, rel_tol=1e-9) else 0.0
    # Welch and Satterthwaite; steps and idle power count as known, so it has no end of degrees of freedom.
    freedom = variance**2 / freedom_parts if freedom_parts > 0 else math.inf
    error = math.sqrt(variance)
    return quantile_95(freedom) * error, two_sided_p(change / error, freedom)


def _notes(first: Report, second: Report) -> Iterable[str]:
    pairs = {
        "bundles": (first.bundle, second.bundle),
        "requests in flight": (first.plan.in_flight, second.plan.in_flight),
        "images": (first.pictures, second.pictures),
    }
    devices = {device.name: device for device in second.devices}
    for device in first.devices:
        other = devices.get(device.name)
        if other is not None:
            pairs[f"boards of {device.name}"] = (device.board_model, other.board_model)
            pairs[f"GPUs of {device.name}"] = (device.gpu_instance or "all of it", other.gpu_instance or "all of it")
            pairs[f"engines of {device.name}"] = (device.engine, other.engine)
    for what, (one, two) in pairs.items():
        if one != two:
            yield f"{what} differ: {one}, then {two}"
    for report, others, which in ((first, second, "first"), (second, first, "second")):
        known = {scenario.name for scenario in others.scenarios}
        only = [scenario.name for scenario in report.scenarios if scenario.name not in known]
        if only:
            yield f"in the {which} run alone: {', '.join(only)}"
