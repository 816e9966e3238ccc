"""The summary of a report, for terminal and page: its table, and sentences on load, calibration and comparison."""

from __future__ import annotations

from collections.abc import Iterator

from devit_profiling.figures.analysis import DeviceReport, Report, ScenarioReport
from devit_profiling.figures.cell import CellEnergy, WholeCell
from devit_profiling.figures.notes import merged
from devit_profiling.report.number_format import NOT_MEASURED, joules_95, number

SUMMARY_HEADER = ("device", "board", "scope", "W", "J/inf.", "p50 ms", "p99 ms")
PAPER = (
    "The 55 % that the paper (arXiv 2309.05015) saves seem to be the energy of one of its four boards: compare the "
    "device's share with them, not the whole cell"
)


def summary_rows(report: Report) -> list[list[str]]:
    """Give the rows of the summary: a device or the cell, W, J and ms."""
    boards = {device.name: device for device in report.devices}
    together = " together" if len(report.scenarios) > 1 else ""
    rows = []
    for scenario in report.scenarios:
        times = {device.device: device for device in scenario.answers.devices}
        for energy in scenario.energies:
            device, arrival, baseline = boards[energy.device], times.get(energy.device), scenario.baseline
            p50_ms, p99_ms = (arrival.arrival_p50_ms, arrival.arrival_p99_ms) if arrival is not None else (None, None)
            if baseline is not None:
                p50_ms, p99_ms = baseline.p50_ms, baseline.p99_ms
            rows.append(
                [
                    scenario.name if scenario.cell is None else f"{energy.device}{together}",
                    _board(device),
                    energy.scope or NOT_MEASURED,
                    number(energy.mean_w),
                    joules_95(energy.total_j_per_inference, energy.resolution_j_per_inference),
                    number(p50_ms),
                    number(p99_ms),
                ]
            )
        rows += _cell_rows(scenario)
    return rows


def legend(report: Report) -> str:
    """Explain the columns of the summary."""
    times = (
        "of single inferences, back to back"
        if report.is_local
        else "of a device, from dispatch to its feature at the node; of the cell, from request to answer"
    )
    return f"W and J/inf.: total, idle power included, ± half of the 95 % interval. ms: {times}."


def calibration_notes(report: Report) -> Iterator[str]:
    """Say of every device with joules whether they are calibrated; what holds for several stands once."""
    return merged(_calibrations(report))


def _calibrations(report: Report) -> Iterator[tuple[str, str]]:
    for device in report.devices:
        if device.not_measured:
            continue
        found = device.calibration
        if found is None:
            yield device.name, f"not calibrated, gain error about {number(report.gain_error_percent, 1)} %"
            continue
        error = (
            f"whose own error is {number(found.meter_error_percent)} %"
            if found.meter_error_percent is not None
            else "whose own error is not stated"
        )
        mark = " (SIMULATED)" if found.is_simulated else ""
        yield (
            device.name,
            (
                f"calibrated on {found.made_utc[:10]} against {found.meter}{mark}, {error}: "
                f"gain {found.gain:.4f} ±{found.gain_95:.4f}, offset {found.offset_w:+.3f} W, "
                f"residual {number(found.residual_w, 2)} W"
            ),
        )


def load_text(report: Report) -> str:
    """Say how requests were sent."""
    plan = report.plan
    if report.is_local:
        return "one inference after the other"
    if plan.rate_hz is None:
        return f"{plan.in_flight} request{'s' if plan.in_flight != 1 else ''} in flight"
    return f"{number(plan.rate_hz)} requests a second, sent without waiting for answers"


def pace_text(scenario: ScenarioReport) -> str:
    """Say how well a fixed rate was kept; empty where there was none."""
    pace = scenario.pace
    if pace is None:
        return ""
    return (
        f"{number(pace.asked_hz)} requests a second were due, {number(pace.sent_hz)} were sent and "
        f"{number(pace.answered_hz)} answered; they were sent {number(pace.late_p50_ms, 2)} ms late (median; p99 "
        f"{number(pace.late_p99_ms, 2)}, at most {number(pace.late_max_ms, 2)}), and each latency counts from the "
        "moment at which its request was due"
    )


def against_baseline_text(report: Report) -> str:
    """Compare an answer of the cell with one of the baseline model; empty where that was not measured."""
    found = report.against_baseline
    if found is None:
        return ""
    beside = [
        f"{title} {number(value)} J{_change(value, found.baseline_j)}"
        for title, value in (
            (f"{found.device} alone spends", found.device_j),
            ("all named devices together", found.devices_j),
            ("the whole cell", found.whole_j),
        )
        if value is not None
    ]
    energy = f"{number(found.baseline_j)} J" if found.baseline_j is not None else "energy not measured"
    return (
        f"one inference of the baseline model on {found.device} takes {number(found.baseline_ms)} ms and {energy}; "
        f"an answer of the cell takes {number(found.answer_ms)} ms{_change(found.answer_ms, found.baseline_ms)}, the "
        f"network included, and for it {', '.join(beside) or 'no joules were measured'}"
    )


def _change(value: float | None, base: float | None) -> str:
    """Write a change in percent, in brackets; nothing where it has none."""
    return f" ({value / base - 1:+.0%})" if value is not None and base else ""


def _cell_rows(scenario: ScenarioReport) -> list[list[str]]:
    """Give the row of the cell, and one with its node and extras, where it holds any of them."""
    cell, answers = scenario.cell, scenario.answers
    if cell is None:
        return []
    named = f"{len(scenario.energies)} of {len(scenario.asked)} devices, node left out"
    titled: list[tuple[str, str, CellEnergy | WholeCell]] = [("cell", named, cell)]
    added = [part.name for part in cell.parts if part.kind != "device" and not part.left_out]
    if cell.whole is not None and added:
        rest = ", node left out" if any(part.left_out for part in cell.parts) else ""
        titled.append(("whole cell", f"with {', '.join(added)}{rest}", cell.whole))
    return [
        [
            title,
            "(SIMULATED)" if energy.is_simulated else "",
            what,
            number(energy.mean_w),
            joules_95(energy.total_j_per_answer, cell.resolution_j_per_answer),
            number(answers.p50_ms),
            number(answers.p99_ms),
        ]
        for title, what, energy in titled
    ]


def _board(device: DeviceReport) -> str:
    marks = ["guessed"] if device.is_board_guessed else []
    marks += ["SIMULATED"] if device.is_simulated else []
    return device.board.removeprefix("Jetson ") + (f" ({', '.join(marks)})" if marks else "")
