"""RESULTS.md, results.json and plots/ from the files of results/, without measuring anything.

python -m benchmarks.results
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import msgspec
from benchmarks.all import BENCHMARKS
from benchmarks.common.rows import RESULTS, Results, Row, cells, number

HERE = Path(__file__).parent
HEADS = ("side", "p50", "p99", "unit", "ratio", "wanted", "holds", "samples")
TOP = """\
# Results

What `make bench` measured last, made from `results/` by `python -m benchmarks.results`. [README.md](README.md) says
what is compared, how, and what is not fair about it. Quote ratios of one run, never figures of two.
"""
MOST_COLUMNS = 2
FEWEST_SIDES = 3
"""A figure of fewer is a table and no plot."""
COLOURS = {True: "#1f6feb", False: "#9aa4b2"}
"""Ours, and all others."""


def load(folder: Path = RESULTS) -> list[Results]:
    """Read what was saved, in the order of the list of benchmarks."""
    files = [folder / f"{each.name}.json" for each in BENCHMARKS]
    return [msgspec.json.decode(path.read_bytes(), type=Results) for path in files if path.exists()]


def rows_json(found: Iterable[Results]) -> bytes:
    """Give all rows, each with its benchmark."""
    rows = [{"benchmark": each.benchmark, **msgspec.to_builtins(row)} for each in found for row in each.rows]
    return msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n"


def page(found: list[Results]) -> str:
    """Give RESULTS.md: what was wanted first, then every benchmark with its machine."""
    wanted = [(each, row) for each in found for row in each.rows if row.holds is not None]
    kept = sum(row.holds is True for _, row in wanted)
    lines = [TOP, f"## What is wanted: {kept} of {len(wanted)} hold", ""]
    heads = ("benchmark", "figure", "side", "p50", "ratio", "wanted", "holds")
    lines += _table(heads, [(each.benchmark, row.figure, *_short(row)) for each, row in wanted])
    for each in found:
        lines += ["", *_section(each)]
    return "\n".join(lines) + "\n"


def plots(found: Iterable[Results], folder: Path) -> list[Path]:
    """Draw each benchmark that has figures of several sides."""
    return [_plot(each, folder / f"{each.benchmark}.svg") for each in found if _drawn(each)]


def write() -> None:
    """Write the page, the rows and the plots."""
    found = load()
    (HERE / "RESULTS.md").write_text(page(found))
    (HERE / "results.json").write_bytes(rows_json(found))
    plots(found, HERE / "plots")


def _section(results: Results) -> list[str]:
    lines = [f"## {results.benchmark}", "", f"{results.about[0].upper()}{results.about[1:]}.", ""]
    lines += ["```sh", results.command, "```", ""]
    lines += [f"- {line}" for line in results.machine.lines()]
    if results.versions:
        lines.append("- " + ", ".join(f"{name} {version}" for name, version in results.versions.items()))
    lines += [f"- {name}: {_setting(value)}" for name, value in results.settings.items()]
    if _drawn(results):
        lines += ["", f"![{results.benchmark}](plots/{results.benchmark}.svg)"]
    figures = _by_figure(results.rows)
    for figure, rows in figures.items():
        if len(rows) > 1:
            lines += ["", f"**{figure}**", "", *_table(HEADS, [_full(row) for row in rows])]
    alone = [(figure, *_full(rows[0])) for figure, rows in figures.items() if len(rows) == 1]
    return [*lines, "", *_table(("figure", *HEADS), alone)] if alone else lines


def _short(row: Row) -> tuple[str, ...]:
    side, p50, _, unit, ratio, wanted, holds = cells(row)
    return side, f"{p50} {unit}", ratio, wanted, holds


def _full(row: Row) -> tuple[str, ...]:
    side, p50, p99, *rest = cells(row)
    return side, p50 + _interval(row.p50_interval), p99 + _interval(row.p99_interval), *rest, f"{row.samples:,}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({number(interval[0])} to {number(interval[1])})"


def _setting(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Write a table, without the columns that no row fills."""
    used = [index for index in range(len(heads)) if any(row[index] for row in rows)]
    lines = [[heads[index] for index in used], ["---"] * len(used), *([row[index] for index in used] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _by_figure(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.figure, []).append(row)
    return found


def _drawn(results: Results) -> dict[str, list[Row]]:
    return {name: rows for name, rows in _by_figure(results.rows).items() if len(rows) >= FEWEST_SIDES}


def _plot(results: Results, path: Path) -> Path:
    """Draw a dot at p50 and a line to p99, one picture a figure: a logarithmic axis has no place for bars to begin."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    drawn = _drawn(results)
    lines = math.ceil(len(drawn) / MOST_COLUMNS)
    with mpl.rc_context({"svg.hashsalt": results.benchmark, "font.size": 8}):
        figure = Figure(figsize=(11, 2.6 * lines), layout="constrained")
        for axes, (name, rows) in zip(
            figure.subplots(lines, MOST_COLUMNS, squeeze=False).flat, drawn.items(), strict=False
        ):
            for row in rows:
                colour = COLOURS[row.side.startswith("devit")]
                axes.plot(row.p50, row.side, "o", color=colour)
                if row.p99 is not None:
                    axes.plot([row.p50, row.p99], [row.side] * 2, "-|", color=colour)
            axes.set(title=name, xlabel=rows[0].unit, xscale="log" if min(row.p50 for row in rows) > 0 else "linear")
            axes.invert_yaxis()
        for axes in figure.axes[len(drawn) :]:
            axes.remove()
        path.parent.mkdir(exist_ok=True)
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
    return path


if __name__ == "__main__":
    write()
