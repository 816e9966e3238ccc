"""Memory and start of every program, beside another version's: agent, node, gateway, client, and a build that is there.

python -m benchmarks.footprint.run --base FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from benchmarks.common.machine import Watch
from benchmarks.common.measure import arguments, p50, tell
from benchmarks.common.rows import Results, Row, bootstrap, command, finish
from benchmarks.common.side import Side

Program = Literal["agent", "node", "gateway", "client", "build"]
PROGRAMS: tuple[Program, ...] = ("agent", "node", "gateway", "client", "build")
TITLES: dict[Program, str] = {
    "agent": "agent of the shipped submodel",
    "node": "node of the shipped bundle",
    "gateway": "gateway",
    "client": "devit classify, one picture",
    "build": "devit build of what is there",
}
FIGURES = {
    "start_s": ("start to ready", "s"),
    "cpu_s": ("CPU time of that", "s"),
    "rss_mb": ("resident memory", "MB"),
    "pss_mb": ("share of resident memory (PSS)", "MB"),
    "anonymous_mb": ("memory of its own (anonymous)", "MB"),
}
WANTED = {("agent", "start_s"): 0.6, ("agent", "rss_mb"): 0.75}
"""Of the other version's."""
ROOT = Path(__file__).parents[2]
BUNDLE = Path("pipeline/devit_pipeline/fashion_mnist/bundle")
ABOUT = "start and memory of every program, each version's in turns"


def measure(sides: Sequence[Side], programs: Sequence[Program], rounds: int) -> list[Row]:
    """Start every program of each side in turns, A B A B; the first turn only warms up."""
    rows: list[Row] = []
    for program in programs:
        found: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
        for number in range(-1, rounds):
            for side in sides:
                tell(f"footprint: {program}, round {number + 1} of {rounds}, {side.name}")
                taken = side.ask(program)
                if number >= 0:
                    found[side.name].append(taken)
        rows += [row for figure in FIGURES for row in _rows(program, figure, found)]
    for program in programs:
        dearest = sides[0].ask(f"imports {program}")
        name = f"{TITLES[program]}: the ten packages that take longest to import"
        rows += [
            Row(figure=name, side=package, unit="ms", p50=round(own_ms, 1), samples=1)
            for package, own_ms in dearest.items()
        ]
    tell("footprint: done\n")
    return rows


def _rows(program: Program, figure: str, found: dict[str, list[dict[str, float]]]) -> list[Row]:
    name, unit = FIGURES[figure]
    blocks: dict[str, list[npt.NDArray[np.float64]]] = {
        side: [np.array([each[figure]]) for each in taken if figure in each] for side, taken in found.items()
    }
    base = p50(np.concatenate(blocks["base"])) if blocks.get("base") else None
    rows = []
    for side, taken in blocks.items():
        if taken:
            value = p50(np.concatenate(taken))
            ratio = value / base if base is not None and side != "base" else None
            bound = WANTED.get((program, figure)) if ratio is not None else None
            rows.append(
                Row(
                    figure=f"{TITLES[program]}: {name}",
                    side=side,
                    unit=unit,
                    p50=round(value, 4),
                    p50_interval=bootstrap(taken, p50),
                    samples=len(taken),
                    ratio=round(ratio, 3) if ratio is not None else None,
                    against="base" if ratio is not None else "",
                    wanted=f"<= {bound:g} x" if bound is not None else "",
                    holds=ratio <= bound if ratio is not None and bound is not None else None,
                )
            )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 0.0, "not used: --rounds says how often")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="checkout of another version, with its .venv")
    parser.add_argument("--rounds", type=int, default=15, help="starts of each program and side (default: %(default)s)")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="what to start")
    chosen = parser.parse_args(argv)
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="devit-") as place, ExitStack() as stack:
        script = Path(__file__).with_name("side.py")
        versions = {"devit": (ROOT, Path(sys.executable))}
        if chosen.base is not None:
            base = chosen.base.absolute()
            versions["base"] = base, base / ".venv/bin/python"
        sides = [
            stack.enter_context(Side(name, python, script, folder / BUNDLE, Path(place) / name))
            for name, (folder, python) in versions.items()
        ]
        rows = tuple(measure(sides, chosen.programs, chosen.rounds))
    settings: dict[str, str | float] = {"rounds": chosen.rounds, "base": str(chosen.base.name) if chosen.base else ""}
    results = Results(
        benchmark="footprint",
        about=ABOUT,
        command=command(),
        settings=settings,
        versions={},
        machine=watch.machine(),
        rows=rows,
    )
    finish(results, chosen)


if __name__ == "__main__":
    main()
