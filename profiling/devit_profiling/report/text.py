"""Figures as text: digits that the sensor tells, intervals, the summary table, and doubts in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from devit_profiling.figures.analysis import DeviceReport, Report, ScenarioReport
from devit_profiling.figures.answers import AnswerStats
from devit_profiling.figures.cell import DEVICE, EXTRA, CellEnergy
from devit_profiling.figures.interval import Estimate
from devit_profiling.figures.joules import DeviceEnergy

NOT_MEASURED = "not measured"


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure with so many significant digits; an absent one as "not measured".

    >>> number(0.046812), number(15479.2), number(None), number(0.0)
    ('0.0468', '15479', 'not measured', '0')
    """
    if value is None:
        return NOT_MEASURED
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(places, 0)}f}"


def joules(value: float | None, resolution: float | None) -> str:
    """Write joules with three significant digits, or fewer where the sensor's steps tell no more.

    >>> joules(0.046812, 0.00004), joules(0.046812, 0.012), joules(0.0046, 0.2)
    ('0.0468', '0.05', '0.0')
    """
    if value is None or not resolution:
        return number(value)
    places = math.floor(-math.log10(resolution)) + (1 if resolution < 1 else 0)
    plain = number(value)
    shown = len(plain.partition(".")[2])
    return plain if shown <= places else f"{value:.{max(places, 0)}f}"


def interval(estimate: Estimate | None, resolution: float | None) -> str:
    """Write the 95 % interval of an estimate, or why there is none."""
    if estimate is None:
        return NOT_MEASURED
    if estimate.low_95 is None or estimate.high_95 is None:
        return "none: one window"
    return f"{joules(estimate.low_95, resolution)} to {joules(estimate.high_95, resolution)}"


def interval_parts(estimate: Estimate | None) -> str:
    """Write the half-widths that an interval is made of, each by itself.

    >>> interval_parts(Estimate(2.0, 5, 1.5, 2.5, repeats_95=0.3, steps_95=0.4))
    '±0.30 / ±0.40'
    """
    if estimate is None:
        return NOT_MEASURED
    halves = (estimate.repeats_95, estimate.steps_95, estimate.idle_95)
    return " / ".join(f"±{number(half, 2)}" for half in halves if half is not None) or NOT_MEASURED


def summary_rows(report: Report) -> list[list[str]]:
    """Give the rows of the table that a terminal shows: a device or the cell, W, J and ms."""
    boards = {device.name: device for device in report.devices}
    together = " together" if len(report.scenarios) > 1 else ""
    rows = []
    for scenario in report.scenarios:
        times = {device.device: device for device in scenario.answers.devices}
        for energy in scenario.energies:
            device, arrival, undivided = boards[energy.device], times.get(energy.device), scenario.undivided
            p50_ms, p99_ms = (arrival.arrival_p50_ms, arrival.arrival_p99_ms) if arrival is not None else (None, None)
            if undivided is not None:
                p50_ms, p99_ms = undivided.p50_ms, undivided.p99_ms
            rows.append(
                [
                    scenario.name if scenario.cell is None else f"{energy.device}{together}",
                    _board(device),
                    energy.scope or NOT_MEASURED,
                    number(energy.mean_w),
                    _mean(energy),
                    number(p50_ms),
                    number(p99_ms),
                ]
            )
        if scenario.cell is not None:
            cell, answers = scenario.cell, scenario.answers
            total = cell.total_j_per_answer
            what = f"{len(scenario.energies)} of {len(scenario.asked)} devices, node left out"
            watts, per_answer = number(cell.mean_w), total.mean if total is not None else None
            figures = [watts, joules(per_answer, cell.resolution_j_per_answer)]
            mark = "(SIMULATED)" if cell.is_simulated else ""
            rows.append(["cell", mark, what, *figures, number(answers.p50_ms), number(answers.p99_ms)])
            rows += _whole_row(cell, answers)
    return rows


def calibration_notes(report: Report) -> Iterator[str]:
    """Tell of every device with joules whether they are calibrated, a sentence each."""
    for device in report.devices:
        if device.not_measured:
            continue
        found = device.calibration
        if found is None:
            yield f"{device.name}: not calibrated, gain error about {number(report.gain_error_percent, 1)} %"
            continue
        error = (
            f"whose own error is {number(found.meter_error_percent)} %"
            if found.meter_error_percent is not None
            else "whose own error is not stated"
        )
        mark = " (SIMULATED)" if found.is_simulated else ""
        yield (
            f"{device.name}: calibrated on {found.made_utc[:10]} against {found.meter}{mark}, {error}: "
            f"gain {found.gain:.4f} ±{found.gain_95:.4f}, offset {found.offset_w:+.3f} W, "
            f"residual {number(found.residual_w, 2)} W"
        )


def legend(report: Report) -> str:
    """Tell what the columns of the summary hold."""
    times = (
        "of single inferences, back to back"
        if report.is_local
        else "of a device, from dispatch to its feature at the node; of the cell, from request to answer"
    )
    return f"W and J/inf.: total, idle power included. ms: {times}."


def how_cut_short(report: Report) -> str:
    """Tell that a run ended early, and after which window; empty where it went to its end."""
    cut = report.cut_short
    if cut is None:
        return ""
    # Sustained windows have no planned number.
    planned = f" of {report.plan.windows}" if cut.windows <= report.plan.windows else ""
    ended = f"after window {cut.windows}{planned}" if cut.windows else "before its first window ended"
    return f"the run was cut short in {cut.scenario!r}, {ended}, by {cut.cause}: what was measured until then is here"


def doubts(report: Report) -> Iterator[str]:
    """Tell what is missing and what may be wrong, a sentence each."""
    if report.cut_short is not None:
        yield how_cut_short(report)
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
            yield from (f"{where}: {flag}" for flag in energy.flags)
        for name, reasons in scenario.answers.missing.items():
            counts = ", ".join(f"{count} answers ({why})" for why, count in reasons.items())
            yield f"{scenario.name}: {name} is missing in {counts}"
        yield from _pace_doubts(scenario)
        yield from cell_doubts(scenario)


AT_REST = (
    "no engine ran, so this is idle power only: no joules per inference and no latency; --bundle DIR measures them"
)


def load_text(report: Report) -> str:
    """Tell how the cell was asked."""
    plan = report.plan
    if report.is_local:
        return "one inference after the other"
    if plan.rate_hz is None:
        return f"{plan.in_flight} request{'s' if plan.in_flight != 1 else ''} under way at once"
    return f"{number(plan.rate_hz)} requests a second, whatever has been answered"


def pace_text(scenario: ScenarioReport) -> str:
    """Tell what a fixed rate came to; empty where there was none."""
    pace = scenario.pace
    if pace is None:
        return ""
    return (
        f"{number(pace.asked_hz)} requests a second were due, {number(pace.sent_hz)} were sent and "
        f"{number(pace.answered_hz)} answered; they were sent {number(pace.late_p50_ms, 2)} ms late (median; p99 "
        f"{number(pace.late_p99_ms, 2)}, at most {number(pace.late_max_ms, 2)}), and each latency counts from the "
        "moment in which its request was due"
    )


def _pace_doubts(scenario: ScenarioReport) -> Iterator[str]:
    pace = scenario.pace
    if pace is None:
        return
    if pace.sent_hz < _KEPT * pace.asked_hz:
        yield (
            f"{scenario.name}: the rate was not kept: of {number(pace.asked_hz)} requests a second "
            f"{number(pace.sent_hz)} could be sent, and latency grew for as long as it was asked: choose a lower --rate"
        )
    elif pace.answered_hz < _KEPT * pace.sent_hz:
        yield (
            f"{scenario.name}: the cell did not keep up: of {number(pace.sent_hz)} requests a second "
            f"{number(pace.answered_hz)} were answered: choose a lower --rate"
        )


_KEPT = 0.98


def duration_text(duration_s: float) -> str:
    """Write how long something takes.

    >>> duration_text(19.6), duration_text(131.2), duration_text(3725)
    ('20 s', '2 min 11 s', '1 h 2 min')
    """
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _whole_row(cell: CellEnergy, answers: AnswerStats) -> list[list[str]]:
    """Give the row of the cell with its node and extras, where it holds any of them."""
    added = [part for part in cell.parts if part.kind != DEVICE and not part.left_out]
    if cell.whole is None or not added:
        return []
    figures = [number(cell.whole.mean_w), joules(cell.whole.total_j_per_answer.mean, cell.resolution_j_per_answer)]
    what = f"with {', '.join(part.name for part in added)}"
    if any(part.left_out for part in cell.parts):
        what += ", node left out"
    mark = "(SIMULATED)" if cell.whole.is_simulated else ""
    return [["whole cell", mark, what, *figures, number(answers.p50_ms), number(answers.p99_ms)]]


def cell_doubts(scenario: ScenarioReport) -> Iterator[str]:
    """Tell of what is in a cell's sum, and should be known to be."""
    cell = scenario.cell
    if cell is None:
        return
    scopes = {part.scope for part in cell.parts if part.kind != EXTRA and not part.left_out}
    if len(scopes) > 1:
        yield (
            f"{scenario.name}: the cell's joules add different scopes, "
            f"{'; '.join(f'{part.name}: {part.scope}' for part in cell.parts if part.kind != EXTRA and part.scope)}"
        )
    if cell.node is not None:
        yield from (f"{cell.node.device}, {scenario.name}: {flag}" for flag in cell.node.flags)


def against_undivided_text(report: Report) -> str:
    """Tell what an answer of the cell costs beside one of the undivided model; empty where that was not measured."""
    found = report.against_undivided
    if found is None:
        return ""
    beside = [
        f"{title} {number(value)} J{_change(value, found.undivided_j)}"
        for title, value in (
            (f"{found.device} alone spends", found.device_j),
            ("all named devices together", found.devices_j),
            ("the whole cell", found.whole_j),
        )
        if value is not None
    ]
    energy = f"{number(found.undivided_j)} J" if found.undivided_j is not None else "energy not measured"
    return (
        f"one inference of the undivided model on {found.device} takes {number(found.undivided_ms)} ms and {energy}; "
        f"an answer of the cell takes {number(found.answer_ms)} ms{_change(found.answer_ms, found.undivided_ms)}, the "
        f"network included, and for it {', '.join(beside) or 'no joules were measured'}"
    )


def _change(value: float | None, base: float | None) -> str:
    """Write a change in percent, in brackets; nothing where it has none."""
    return f" ({value / base - 1:+.0%})" if value is not None and base else ""


PAPER = (
    "The 55 % of energy that the paper (arXiv 2309.05015) says is saved seem to be those of one of its four boards: "
    "compare them with the device's share, and ask of the cell what it costs in all"
)


SUMMARY_HEADER = ("device", "board", "scope", "W", "J/inf.", "p50 ms", "p99 ms")


def _board(device: DeviceReport) -> str:
    marks = ["guessed"] if device.is_board_guessed else []
    marks += ["SIMULATED"] if device.is_simulated else []
    return device.board.removeprefix("Jetson ") + (f" ({', '.join(marks)})" if marks else "")


def _mean(energy: DeviceEnergy) -> str:
    total = energy.total_j_per_inference
    return joules(total.mean if total is not None else None, energy.resolution_j_per_inference)
