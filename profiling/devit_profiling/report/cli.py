"""``profile report`` and ``profile compare``, and how a report is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.extras import require
from devit_contract.service import terminal

if TYPE_CHECKING:
    from devit_profiling.figures.analysis import Report

Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON on standard output.", rich_help_panel="Output"),
]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUNDIR", help="Folder of the run.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Make a run's report again from its raw files; the same files give the same report."""
    require("profile")
    from devit_profiling.report.report import write_report

    show_report(run, write_report(run), as_json=as_json)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of the first run.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of the second run.")],
    as_json: Json = False,
) -> None:
    """Compare two runs: what changed, and whether the change is statistically significant.

    Ends with exit code 1 if joules are not comparable: of different scopes, or simulated and measured.
    """
    from devit_profiling.figures.compare import compare as compare_runs
    from devit_profiling.report.comparison import COMPARISON_HEADER, comparison_notes, comparison_rows

    found = compare_runs(run_a, run_b)
    if as_json:
        terminal.print_json(found)
    else:
        title = f"{found.first}, then {found.second}" + (" (SIMULATED power)" if found.is_simulated else "")
        terminal.print_table(title, COMPARISON_HEADER, comparison_rows(found), numbers=(2, 3, 4, 5))
        for note in comparison_notes(found):
            typer.echo(f"note: {note}")
    if found.refused:
        raise typer.Exit(1)


def show_report(folder: Path, report: Report, *, as_json: bool) -> None:
    """Print a report that has been written to a run's folder."""
    import textwrap

    from devit_profiling.report import summary, thermal
    from devit_profiling.report.report import HTML_FILE
    from devit_profiling.report.warning_list import warnings

    if as_json:
        terminal.print_json(report)
        return
    kind = "Quick look" if report.is_quick else "Profile"
    title = f"{kind}: SIMULATED power, no measurement of a board" if report.is_simulated else kind
    terminal.print_table(title, summary.SUMMARY_HEADER, summary.summary_rows(report), numbers=(3, 4, 5, 6))
    typer.echo(textwrap.fill(summary.legend(report), 80))
    if rows := thermal.thermal_rows(report):
        terminal.print_table(thermal.thermal_title(report), thermal.THERMAL_HEADER, rows, numbers=(2, 3, 5, 6))
        typer.echo(f"{thermal.thermal_text(report)}.")
    if report.against_baseline is not None:
        typer.echo(f"{summary.against_baseline_text(report)}.\n{summary.PAPER}.")
    for scenario in report.scenarios:
        if scenario.pace is not None:
            typer.echo(f"{scenario.name}: {summary.pace_text(scenario)}")
    for note in summary.calibration_notes(report):
        typer.echo(f"note: {note}")
    for warning in warnings(report):
        typer.echo(f"warning: {warning}")
    typer.echo(f"report: {folder / HTML_FILE}")
