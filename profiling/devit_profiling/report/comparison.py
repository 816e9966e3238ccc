"""Two compared runs as a table for the terminal."""

from __future__ import annotations

from devit_profiling.figures.compare import Comparison, Difference
from devit_profiling.report.number_format import number
from devit_profiling.sensor.tegrastats import SIMULATED

COMPARISON_HEADER = ("where", "figure", "first", "second", "change %", "95 % interval", "second")


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """Give the rows of the table that a terminal shows."""
    rows = []
    for difference in comparison.differences:
        where = difference.scenario
        if difference.device and difference.device not in where:
            where = f"{difference.device} {where}"
        mark = f" {SIMULATED}" if difference.is_simulated else ""
        figures = [number(difference.first), number(difference.second), _percent(difference, difference.change)]
        ends = [_percent(difference, end) for end in (difference.low_95, difference.high_95)]
        interval = f"{ends[0]} to {ends[1]}" if all(ends) else ""
        verdict = "" if difference.verdict == "not significant" else difference.verdict
        rows.append([where, difference.figure + mark, *figures, interval, verdict])
    return rows


def comparison_notes(comparison: Comparison) -> list[str]:
    """Give the sentences below the table."""
    differences = comparison.differences
    unknown = dict.fromkeys(item.why for item in differences if item.verdict == "unknown")
    tested = sum(difference.p is not None for difference in differences)
    notes = [*comparison.refused, *unknown, *comparison.notes]
    if any(item.verdict == "not significant" for item in differences):
        notes.append("an empty last column means not significant")
    notes.append(comparison.method)
    if tested >= 10:
        notes.append(f"of {tested} figures, about {tested / 20:.0f} differ by chance alone")
    return notes


def _percent(difference: Difference, value: float | None) -> str:
    if value is None or not difference.first:
        return ""
    return f"{100 * value / abs(difference.first):+.1f}"
