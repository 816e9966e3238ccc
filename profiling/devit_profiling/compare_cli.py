"""``profile compare``: what it takes and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devit_contract.service import terminal


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of the first run.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of the second run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON on standard output.")] = False,
) -> None:
    """Compare two runs: what changed, and whether it is more than their intervals explain.

    Ends with exit code 1 where joules are not comparable: of different scopes, or simulated beside measured.
    """
    from devit_profiling.figures import compare as runs

    found = runs.compare(run_a, run_b)
    if as_json:
        terminal.print_json(found)
    else:
        title = f"{found.first}, then {found.second}" + (" (SIMULATED power)" if found.is_simulated else "")
        terminal.print_table(title, runs.COMPARE_HEADER, runs.compare_rows(found), numbers=(2, 3, 4, 5))
        for note in runs.compare_notes(found):
            typer.echo(f"note: {note}")
    if found.refused:
        raise typer.Exit(1)
