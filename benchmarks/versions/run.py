"""Our cell beside another version's, in turns on the same machine: what a change has cost or saved, end to end.

python -m benchmarks.versions.run --base FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import BLOCK_S, Samples, arguments, asked, p50, p99, tell
from benchmarks.common.rows import Results, Row, bootstrap, command, finish
from benchmarks.common.side import Side
from benchmarks.network.bare import BareCell
from benchmarks.network.makers import paced

ABOUT = "client to answer, another version's cell and ours in turns"
ROOT = Path(__file__).parents[2]
SHAPE, DIM, LOGITS_BYTES, DEVICES = (28, 28, 1), 64, 40, 4
"""Of the shipped bundle."""
CELLS = ("null", "paced:3", "paced:20", "shipped", "deit")
TITLES = {
    "null": "null cell of 4",
    "paced:3": "cell of 4 at 3 ms",
    "paced:20": "cell of 4 at 20 ms",
    "shipped": "shipped cell of 4",
    "deit": "two DeiT-Tiny at 224 px",
}
OURS = {"devit": "", "devit, liars off": '[watch]\nliars = "off"\n'}
"""Our sides, and more of their ``fleet.toml``: older versions compare no features to find a lying device."""
ADDED_WANTED, NODE_WANTED = 0.55, 0.7
LATENCY_WANTED, MEMORY_WANTED = {"deit": 0.7}, {"deit": 0.7}
"""Of the other version's."""


@dataclass
class Found:
    """What was measured of one side, block by block."""

    taken_us: list[Samples]
    node_us: list[Samples]
    """The node's CPU time a frame, one request under way."""
    rates: list[Samples]
    """Answers a second, saturated."""
    busy_node_us: list[Samples]
    agent_mb: list[Samples]
    """What an agent holds."""


def measure(cell: str, sides: Sequence[Side], duration_s: float) -> tuple[list[Row], dict[str, str]]:
    """Start the cell on every side, and ask each in turns; the first turn only warms up.

    The second result says which variants the engines of each side are, for the settings.
    """
    kept = {side.name: side.ask(f"start {cell}")["kept"] for side in sides}
    found = {side.name: Found([], [], [], [], []) for side in sides}
    pace_ms = float(cell.partition(":")[2] or 0.0)
    bare_us: list[Samples] = []
    blocks = max(2, round(duration_s / BLOCK_S))
    with ExitStack() as stack:
        bare = None
        if cell.startswith(("null", "paced")):
            engines = [partial(paced, pace_ms, SHAPE, DIM)] * DEVICES
            bare = stack.enter_context(BareCell(engines, SHAPE, LOGITS_BYTES))
        for number in range(-1, blocks):
            tell(f"{TITLES[cell]}: {'warming up' if number < 0 else f'block {number + 1} of {blocks}'}")
            for side in sides:
                alone, busy = (side.ask(f"{how} {duration_s / blocks}") for how in ("alone", "saturated"))
                if number >= 0:
                    each = found[side.name]
                    each.taken_us.append(np.asarray(alone["taken_us"]))
                    each.node_us.append(np.asarray([alone["node_us"]]))
                    each.rates.append(np.asarray([busy["frames_per_s"]]))
                    each.busy_node_us.append(np.asarray([busy["node_us"]]))
                    each.agent_mb.append(np.asarray([alone["agent_mb"]]))
            if bare is not None:
                samples = asked(partial(bare.ask, bytes(SHAPE[0] * SHAPE[1])), 0.0, duration_s / blocks)
                bare_us += [samples] if number >= 0 else []
    for side in sides:
        side.ask("stop")
    tell(f"{TITLES[cell]}: done\n")
    engines = {f"engines of {TITLES[cell]}, {name}": ", ".join(sorted(set(kinds))) for name, kinds in kept.items()}
    return _rows(cell, found, bare_us), {what: kinds for what, kinds in engines.items() if kinds}


def _rows(cell: str, found: dict[str, Found], bare_us: list[Samples]) -> list[Row]:
    what = TITLES[cell]
    latencies = {side: each.taken_us for side, each in found.items()}
    rows = _compared(f"{what}: client to answer", "us", latencies, LATENCY_WANTED.get(cell))
    if bare_us:
        bare = p50(np.concatenate(bare_us))
        rows.append(_row(f"{what}: client to answer", "bare cell", "us", bare_us))
        added = {side: [block - bare for block in blocks] for side, blocks in latencies.items()}
        rows += _compared(f"{what}: added above the bare cell", "us", added, ADDED_WANTED)
    rows += _compared(f"{what}: node's CPU time a frame", "us", {side: each.node_us for side, each in found.items()})
    rows += _compared(f"{what}: saturated", "1/s", {side: each.rates for side, each in found.items()})
    memory = {side: each.agent_mb for side, each in found.items()}
    rows += _compared(f"{what}: an agent's resident memory", "MB", memory, MEMORY_WANTED.get(cell))
    busy = {side: each.busy_node_us for side, each in found.items()}
    return rows + _compared(f"{what}: node's CPU time a frame, saturated", "us", busy, NODE_WANTED)


def _compared(figure: str, unit: str, blocks: dict[str, list[Samples]], bound: float | None = None) -> list[Row]:
    """Put ours beside the base, which a bound is a multiple of."""
    rows = {side: _row(figure, side, unit, each) for side, each in blocks.items()}
    for side in OURS if "base" in rows else ():
        ratio = rows[side].p50 / rows["base"].p50
        wanted = {} if bound is None else {"wanted": f"<= {bound:g} x", "holds": ratio <= bound}
        rows[side] = msgspec.structs.replace(rows[side], ratio=round(ratio, 3), against="base", **wanted)
    return list(rows.values())


def _row(figure: str, side: str, unit: str, blocks: list[Samples]) -> Row:
    joined = np.concatenate(blocks)
    return Row(
        figure=figure,
        side=side,
        unit=unit,
        p50=round(p50(joined), 2),
        p99=round(p99(joined), 2) if len(joined) > len(blocks) else None,
        p50_interval=bootstrap(blocks, p50),
        samples=len(joined),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 20.0, "how long each side is measured for each figure of a cell")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="checkout of another version, with its .venv")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS, help="what to serve")
    parser.add_argument("--build", action="append", default=[], metavar="OPTION", help="option of our devit build")
    chosen = parser.parse_args(argv)
    watch, script = Watch(), Path(__file__).with_name("side.py")
    with ExitStack() as stack:
        sides = [
            stack.enter_context(Side(name, Path(sys.executable), script, ROOT, settings, *chosen.build))
            for name, settings in OURS.items()
        ]
        if chosen.base is not None:
            base = chosen.base.absolute()
            sides.append(stack.enter_context(Side("base", base / ".venv/bin/python", script, base, "")))
        measured = [measure(cell, sides, chosen.duration) for cell in chosen.cells]
    results = Results(
        benchmark="versions",
        about=ABOUT,
        command=command(),
        settings={
            "seconds a side and figure": chosen.duration,
            "base": chosen.base.name if chosen.base else "",
            "requests under way, saturated": 16,
        }
        | {what: kinds for _, engines in measured for what, kinds in engines.items()},
        versions={},
        machine=watch.machine(),
        rows=tuple(row for rows, _ in measured for row in rows),
    )
    finish(results, chosen)


if __name__ == "__main__":
    main()
