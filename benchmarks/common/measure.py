"""What the benchmarks of this folder share: two sides in turns, figures with bounds, and a report of them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from benchmarks.common.machine import Machine
from benchmarks.common.rows import Results, Row, command

Samples = npt.NDArray[np.float64]
"""Shape ``(n,)``, microseconds."""
Side = Callable[[float], Samples]
"""Measures for about the given number of seconds."""
Statistic = Callable[[Samples], float]

BLOCK_S = 1.0
"""How long one side is measured before it is the other's turn: noise of the machine then meets both."""


class Figure(msgspec.Struct, frozen=True):
    """One row of the table: two sides, how they compare, and what is wanted."""

    name: str
    unit: str
    devit: float
    other: float | None
    """The side that it is held against; ``None`` where the bound is absolute."""
    compared: float
    """``devit / other``, ``devit - other``, or ``devit`` itself."""
    wanted: str
    """``<= 3 x``, ``<= 450 us more``, ``>= 20000``."""
    holds: bool | None
    """``None`` where nothing is wanted of it: it explains another row."""
    samples: int
    """Of each side, or of the smaller one."""
    spread: tuple[float, float]
    """Lowest and highest ``compared`` among the pairs of neighbouring blocks: how far noise moves it."""


class Report(msgspec.Struct, frozen=True):
    """What a benchmark prints."""

    benchmark: str
    about: str
    other: str
    """What the second column is."""
    settings: dict[str, str | float]
    figures: tuple[Figure, ...]
    machine: Machine


def arguments(about: str, duration_s: float, duration_help: str) -> argparse.ArgumentParser:
    """Begin the command line that every benchmark has."""
    # Engines, agents and the node compute with one thread, so both sides of a benchmark do: children inherit this.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--duration", type=float, default=duration_s, metavar="SECONDS", help=duration_help)
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/NAME.json instead of a table")
    return parser


def alternate(what: str, sides: Sequence[Side], duration_s: float) -> list[list[Samples]]:
    """Measure the sides in turns, A B A B, each for ``duration_s`` in all; one block of each warms up before.

    Returns:
        Each side's blocks.
    """
    blocks = max(2, round(duration_s / BLOCK_S))
    found: list[list[Samples]] = [[] for _ in sides]
    for number in range(-1, blocks):
        for side, taken in zip(sides, found, strict=True):
            tell(f"{what}: {'warming up' if number < 0 else f'block {number + 1} of {blocks}'}")
            samples = side(duration_s / blocks)
            if number >= 0:
                taken.append(samples)
    tell(f"{what}: done\n")
    return found


def asked(ask: Callable[[], float], pace_ms: float, duration_s: float) -> Samples:
    """Ask for a while, and give what each answer took beyond ``pace_ms``, in microseconds.

    Args:
        ask: Has one image answered, and gives the time that took, in seconds.
        pace_ms: What the engines take of it.
        duration_s: For how long.
    """
    end_s = time.monotonic() + duration_s
    taken_us: list[float] = []
    while not taken_us or time.monotonic() < end_s:
        taken_us.append(ask() * 1e6 - pace_ms * 1e3)
    return np.asarray(taken_us, np.float64)


def ratio(name: str, statistic: Statistic, devit: list[Samples], other: list[Samples], bound: float) -> Figure:
    """Hold a statistic against the other side's, as a multiple of it."""
    return _figure(name, statistic, (devit, other), lambda a, b: a / b, bound, f"<= {bound:g} x")


def difference(name: str, statistic: Statistic, devit: list[Samples], other: list[Samples], bound_us: float) -> Figure:
    """Hold a statistic against the other side's, as microseconds more than it."""
    return _figure(name, statistic, (devit, other), lambda a, b: a - b, bound_us, f"<= {bound_us:g} us more")


def alone(
    name: str,
    unit: str,
    value: float,
    blocks: list[float],
    *,
    samples: int,
    wanted: str = "",
    holds: bool | None = None,
) -> Figure:
    """Give a figure that stands for itself."""
    spread = (round(min(blocks), 3), round(max(blocks), 3))
    return Figure(name, unit, round(value, 2), None, round(value, 3), wanted, holds, samples, spread)


def p50(samples: Samples) -> float:
    """Median."""
    return float(np.median(samples))


def p99(samples: Samples) -> float:
    """99th percentile."""
    return float(np.percentile(samples, 99))


def tell(text: str) -> None:
    """Show progress on stderr, on one line where it is a terminal."""
    if text.endswith("\n") or sys.stderr.isatty():
        sys.stderr.write(("\r\x1b[K" if sys.stderr.isatty() else "") + text)
        sys.stderr.flush()


def show(report: Report, chosen: argparse.Namespace) -> None:
    """Save the report's rows, or print it: a table for people, or JSON."""
    if chosen.save:
        results_of(report).save()
    if chosen.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())  # noqa: T201 - a script's output
    elif not chosen.save:
        print("\n".join(_lines(report)))  # noqa: T201 - a script's output


def results_of(report: Report) -> Results:
    """Turn a report into rows; a figure of a p99 has that number under ``p50``, as its name says what it is."""
    rows: list[Row] = []
    for each in report.figures:
        ours = Row(
            figure=each.name,
            side="devit",
            unit=each.unit,
            p50=each.devit,
            samples=each.samples,
            wanted=each.wanted,
            holds=each.holds,
        )
        if each.other is None:
            rows.append(ours)
            continue
        ratio = round(each.devit / each.other, 3)
        rows.append(msgspec.structs.replace(ours, ratio=ratio, against=report.other))
        rows.append(Row(figure=each.name, side=report.other, unit=each.unit, p50=each.other, samples=each.samples))
    return Results(
        benchmark=report.benchmark,
        about=report.about,
        command=command(),
        settings=report.settings,
        versions={},
        machine=report.machine,
        rows=tuple(rows),
    )


def cache_folder() -> Path:
    """Find where bundles are kept that take long to make."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "devit" / "benchmarks"


def _figure(
    name: str,
    statistic: Statistic,
    sides: tuple[list[Samples], list[Samples]],
    compare: Callable[[float, float], float],
    bound: float,
    wanted: str,
) -> Figure:
    devit, other = (statistic(np.concatenate(blocks)) for blocks in sides)
    pairs = [compare(statistic(ours), statistic(theirs)) for ours, theirs in zip(*sides, strict=True)]
    compared = compare(devit, other)
    return Figure(
        name=name,
        unit="us",
        devit=round(devit, 2),
        other=round(other, 2),
        compared=round(compared, 3),
        wanted=wanted,
        holds=compared <= bound,
        samples=min(sum(map(len, blocks)) for blocks in sides),
        spread=(round(min(pairs), 3), round(max(pairs), 3)),
    )


def _lines(report: Report) -> list[str]:
    rows = [("what", "devit", report.other, "compared", "blocks", "wanted", "holds", "samples")]
    for each in report.figures:
        other = "" if each.other is None else f"{each.other:,.1f}"
        low, high = each.spread
        rows.append(
            (
                f"{each.name}, {each.unit}",
                f"{each.devit:,.1f}",
                other,
                f"{each.compared:,.2f}",
                f"{low:,.2f} to {high:,.2f}",
                each.wanted,
                {True: "yes", False: "NO", None: ""}[each.holds],
                f"{each.samples:,}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    table.insert(1, "-" * max(map(len, table)))
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    return [
        f"{report.benchmark}: {report.about}",
        settings,
        "",
        *table,
        "",
        *report.machine.lines(),
    ]
