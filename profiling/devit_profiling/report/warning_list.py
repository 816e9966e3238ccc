"""What is missing in a report, and what may be wrong with its figures, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from devit_profiling.figures.analysis import Report, ScenarioReport
from devit_profiling.report.number_format import number

AT_REST = (
    "no engine ran, so this is idle power only: no joules per inference and no latency; --bundle DIR measures them"
)
_MIN_SHARE = 0.98
"""Of a rate that counts as kept."""


def warnings(report: Report) -> Iterator[str]:
    """List what is missing and what may be wrong, a sentence each."""
    if report.cut_short is not None:
        yield cut_short_text(report)
    without = {device.name for device in report.devices if device.not_measured}
    for device in report.devices:
        if device.not_measured:
            yield f"{device.name}: power not measured: {device.not_measured}"
    for scenario in report.scenarios:
        if scenario.is_idle:
            yield f"{scenario.name}: {AT_REST}"
        for energy in scenario.energies:
            where = scenario.name if scenario.cell is None else f"{energy.device}, {scenario.name}"
            if energy.not_measured and energy.device not in without:
                yield f"{where}: energy not measured: {energy.not_measured}"
            yield from (f"{where}: {warning}" for warning in energy.warnings)
        for name, reasons in scenario.answers.missing.items():
            counts = ", ".join(f"{count} answers ({why})" for why, count in reasons.items())
            yield f"{scenario.name}: {name} is missing in {counts}"
        yield from _pace_warnings(scenario)
        yield from cell_warnings(scenario)


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
            f"{scenario.name}: the rate was not kept: of {number(pace.asked_hz)} requests a second "
            f"{number(pace.sent_hz)} could be sent, and latency grew throughout: choose a lower --rate"
        )
    elif pace.answered_hz < _MIN_SHARE * pace.sent_hz:
        yield (
            f"{scenario.name}: the cell did not keep up: of {number(pace.sent_hz)} requests a second "
            f"{number(pace.answered_hz)} were answered: choose a lower --rate"
        )


def cell_warnings(scenario: ScenarioReport) -> Iterator[str]:
    """Warn of a cell's sum over different scopes, and of what is wrong with the node's power."""
    cell = scenario.cell
    if cell is None:
        return
    scopes = {part.scope for part in cell.parts if part.kind != "extra" and not part.left_out}
    if len(scopes) > 1:
        parts = "; ".join(f"{part.name}: {part.scope}" for part in cell.parts if part.kind != "extra" and part.scope)
        yield f"{scenario.name}: the cell's joules add different scopes, {parts}"
    if cell.node is not None:
        yield from (f"{cell.node.device}, {scenario.name}: {warning}" for warning in cell.node.warnings)
