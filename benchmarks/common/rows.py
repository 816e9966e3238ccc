"""Rows of ``benchmarks/results.json``: what was measured of one side, and how it compares with ours."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from benchmarks.common.machine import Machine

from devit_contract.artefacts.files import write_bytes
from devit_contract.errors import InputError

Interval = tuple[float, float]
RESULTS = Path(os.environ.get("DEVIT_BENCHMARK_RESULTS", Path(__file__).parents[1] / "results"))
"""Where benchmarks save; the variable keeps those of ``make bench-smoke``, which are no figures, apart."""
_RESAMPLES = 1000


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One side's figure."""

    figure: str
    """What was measured: ``null cell of 4, client to answer``."""
    side: str
    """Whose it is: ``devit``, ``grpcio unary``."""
    unit: str
    p50: float
    p99: float | None = None
    """``None`` where the figure is no distribution, such as a rate or a size."""
    p50_interval: Interval | None = None
    """95 % by bootstrap over blocks, as those of neighbouring seconds are alike."""
    p99_interval: Interval | None = None
    samples: int
    ratio: float | None = None
    """p50 of this side over that of ``against``, as measured."""
    against: str = ""
    """The side that ``ratio`` compares with."""
    wanted: str = ""
    """What is wanted of the ratio, ``>= 4 x`` or ``<= 0.55 x``; empty where nothing is wanted of it."""
    holds: bool | None = None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What one benchmark found in one run: ``benchmarks/results/NAME.json``."""

    benchmark: str
    about: str
    command: str
    settings: dict[str, str | float]
    versions: dict[str, str]
    """Packages of the other sides, and their versions."""
    machine: Machine
    rows: tuple[Row, ...]

    def save(self, folder: Path = RESULTS) -> Path:
        """Write the file; where that cannot be, print its content, as it may have taken an hour."""
        path, content = (
            folder / f"{self.benchmark}.json",
            msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n",
        )
        try:
            write_bytes(path, content)
        except InputError as err:
            print(content.decode())  # noqa: T201 - a script's output
            raise SystemExit(f"error: {err}: the results are on standard output") from None
        return path


def command() -> str:
    """Give the command line of this run, without ``--save``, and without the folders of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    given = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:] if word != "--save"]
    return " ".join(["python", "-m", spec.name if spec else sys.argv[0], *given])


def bootstrap(blocks: list[npt.NDArray[np.float64]], statistic: Callable[[npt.NDArray[np.float64]], float]) -> Interval:
    """Give the 95 % interval of a statistic, resampling whole blocks."""
    rng = np.random.default_rng(1)
    draws = rng.integers(len(blocks), size=(_RESAMPLES, len(blocks)))
    found = [statistic(np.concatenate([blocks[index] for index in draw])) for draw in draws]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def finish(results: Results, chosen: argparse.Namespace) -> None:
    """Save the results, print them as JSON, or print a table for people: what ``--save`` and ``--json`` say."""
    if chosen.save:
        results.save()
    if chosen.json:
        print(msgspec.json.format(msgspec.json.encode(results), indent=2).decode())  # noqa: T201 - a script's output
    elif not chosen.save:
        print("\n".join(lines(results)))  # noqa: T201 - a script's output


def lines(results: Results) -> list[str]:
    """Lay the rows out for a terminal, figure by figure."""
    heads = ("", "p50", "p99", "unit", "ratio", "wanted", "holds")
    by_figure: dict[str, list[tuple[str, ...]]] = {}
    for row in results.rows:
        by_figure.setdefault(row.figure, []).append(cells(row))
    widths = [max(map(len, column)) for column in zip(heads, *map(cells, results.rows), strict=True)]
    found = [f"{results.benchmark}: {results.about}", *(f"  {key}: {value}" for key, value in results.settings.items())]
    for figure, rows in by_figure.items():
        found += ["", figure, *("  " + _aligned(row, widths) for row in (heads, *rows))]
    return [*found, "", *results.machine.lines()]


def cells(row: Row) -> tuple[str, ...]:
    """Write a row's side, p50, p99, unit, ratio, bound and whether it holds as text."""
    return (
        row.side,
        number(row.p50),
        "" if row.p99 is None else number(row.p99),
        row.unit,
        "" if row.ratio is None else f"{row.ratio:,.2f} x {row.against}",
        row.wanted,
        {True: "yes", False: "NO", None: ""}[row.holds],
    )


def number(value: float) -> str:
    """Write a number to four digits, large ones whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
