"""What is missing in a report, and what may be wrong with its figures, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from devit_profiling.figures.analysis import Report, ScenarioReport
from devit_profiling.figures.notes import merged
from devit_profiling.report.number_format import number

AT_REST = (
    "no engine ran, so this is idle power only: no joules per inference and no latency; --bundle DIR measures them"
)
_MIN_SHARE = 0.98
"""Of a rate that counts as kept."""


def warnings(report: Report) -> Iterator[str]:
    """List what is missing and what may be wrong, a sentence each; what is wrong at several places stands once."""
    return merged(_noted(report))


def _noted(report: Report) -> Iterator[tuple[str, str]]:
    if report.cut_short is not None:
        yield "", cut_short_text(report)
    without = {device.name for device in report.devices if device.not_measured}
    for device in report.devices:
        if device.not_measured:
            yield device.name, f"power not measured: {device.not_measured}"
        yield from ((device.name, note) for note in device.board_notes)
    for scenario in report.scenarios:
        if scenario.is_idle:
            yield scenario.name, AT_REST
        for energy in scenario.energies:
            where = scenario.name if scenario.cell is None else f"{energy.device}, {scenario.name}"
            if energy.not_measured and energy.device not in without:
                yield where, f"energy not measured: {energy.not_measured}"
            yield from ((where, warning) for warning in energy.warnings)
        for name, reasons in scenario.answers.missing.items():
            counts = ", ".join(f"{count} answers ({why})" for why, count in reasons.items())
            yield scenario.name, f"{name} is missing in {counts}"
        yield from ((scenario.name, text) for text in _pace_warnings(scenario))
        yield from _cell_warnings(scenario)


def cut_short_text(report: Report) -> str:
    """Say why a run ended early, and after which window; empty where it was completed."""
    cut = report.cut_short
    if cut is None:
        return ""
    # Sustained windows have no planned number.
    planned = f" of {report.plan.windows}" if cut.windows <= report.plan.windows else ""
    ended = f"after window {cut.windows}{planned}" if cut.windows else "before its first window ended"
    return f"the run was cut short in {cut.scenario!r}, {ended}, by {cut.cause}: what was measured until then is here"


def _pace_warnings(scenario: ScenarioReport) -> Iterator[str]:
    pace = scenario.pace
    if pace is None:
        return
    if pace.sent_hz < _MIN_SHARE * pace.asked_hz:
        yield (
            f"the rate was not kept: of {number(pace.asked_hz)} requests a second "
            f"{number(pace.sent_hz)} could be sent, and latency grew throughout: choose a lower --rate"
        )
    elif pace.answered_hz < _MIN_SHARE * pace.sent_hz:
        yield (
            f"the cell did not keep up: of {number(pace.sent_hz)} requests a second "
            f"{number(pace.answered_hz)} were answered: choose a lower --rate"
        )


def _cell_warnings(scenario: ScenarioReport) -> Iterator[tuple[str, str]]:
    """Warn of a cell's sum over different scopes, and of what is wrong with the node's power."""
    cell = scenario.cell
    if cell is None:
        return
    scopes = {part.scope for part in cell.parts if part.kind != "extra" and not part.left_out}
    if len(scopes) > 1:
        parts = "; ".join(f"{part.name}: {part.scope}" for part in cell.parts if part.kind != "extra" and part.scope)
        yield scenario.name, f"the cell's joules add different scopes, {parts}"
    if cell.node is not None:
        yield from ((f"{cell.node.device}, {scenario.name}", warning) for warning in cell.node.warnings)
