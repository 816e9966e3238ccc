"""``profile parse``: reads a log of ``tegrastats``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.service import terminal

if TYPE_CHECKING:
    from devit_profiling.log.formats import LogSummary, SamplingPeriod, Spread
    from devit_profiling.log.reader import LogReader
    from devit_profiling.sensor.board_table import Board


def parse(
    log: Annotated[str, typer.Argument(metavar="LOG", help="Recorded lines of tegrastats; - is standard input.")],
    board: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Board that the log came from, e.g. orin-nano (default: guessed)."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every sample as an object of JSON, a line each.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row per sample, a column per rail and zone.")] = False,
) -> None:
    """Read a log of tegrastats: total power by the board's own rule, rails, temperatures.

    It may come from any release from L4T 28 to 39 (JetPack 3 to 7). Stamps and names that a logger put before the
    lines, colours, UTF-16 and gzip do not matter.
    """
    from devit_profiling.log.formats import csv_table, json_lines, summarise
    from devit_profiling.log.reader import LogReader
    from devit_profiling.log.text import STANDARD_INPUT, open_lines
    from devit_profiling.sensor.boards import board_of_key

    if as_json and as_csv:
        raise typer.BadParameter("give --json or --csv, not both")
    known = board_of_key(board) if board is not None else None
    with open_lines(log) as lines:
        reader = LogReader("standard input" if log == STANDARD_INPUT else log, lines, known)
        if as_json:
            _print_lines(json_lines(reader))
        elif as_csv:
            _print_lines(csv_table(list(reader)))
        else:
            _show(summarise(reader), reader)
        if reader.unparsed_lines and (as_json or as_csv):
            typer.echo(f"warning: unparsed lines: {reader.unparsed_lines}; {reader.first_unparsed}", err=True)
        if lines.damage:
            typer.echo(f"warning: {lines.damage}", err=True)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _show(summary: LogSummary, reader: LogReader) -> None:
    from devit_profiling.sensor.boards import why_no_total

    board = reader.total.board
    rows = [_row(summary.total, "")] if summary.total is not None else []
    rows += [_row(rail, _part(rail.name, board)) for rail in summary.rails]
    rows += [_row(other, "") for other in summary.others]
    title = "SIMULATED, no measurement of a board" if summary.is_simulated else ""
    terminal.print_table(title, ("what", "least", "mean", "most", "samples", "note"), rows, numbers=(1, 2, 3, 4))
    typer.echo(f"samples: {summary.samples}, unparsed lines: {reader.unparsed_lines}")
    if reader.unparsed_lines:
        typer.echo(textwrap.fill(f"first unparsed: {reader.first_unparsed}", 80))
    typer.echo(f"period: {_period(summary.period)}")
    if board is None:
        typer.echo("board: not known by its lines, so there is no total; if you know it, give --board NAME")
        return
    typer.echo(f"board: {board.title} ({board.key}){', guessed' if reader.total.is_guessed else ''}")
    if reader.total.note:
        typer.echo(f"note: {reader.total.note}")
    if summary.total is not None:
        typer.echo(f"total: {' + '.join(board.total_rails)}, {board.scope}")
    else:
        typer.echo(f"total: none; {why_no_total(board, '', (rail.name for rail in summary.rails))}")


def _row(spread: Spread, note: str) -> list[str]:
    digits = 1 if spread.unit == "C" else 0
    figures = [f"{value:,.{digits}f}" for value in (spread.least, spread.mean, spread.most)]
    return [f"{spread.name}, {spread.unit}", *figures, f"{spread.samples:,}", note]


def _part(rail: str, board: Board | None) -> str:
    if board is None:
        return ""
    if rail in board.total_rails:
        return "total" if len(board.total_rails) == 1 else "part of the total"
    return "inside another" if rail in board.nested_rails else ""


def _period(period: SamplingPeriod | None) -> str:
    if period is None:
        return "unknown without the stamps of tegrastats itself"
    pauses = f", {period.pauses} pauses left out" if period.pauses else ""
    error = f"give or take {period.error_s * 1000:.0f} ms"
    return f"{period.period_s * 1000:.0f} ms by stamps of whole seconds, {error}{pauses}"
