"""What becomes of requests when the active one of two nodes goes: four devices, 50 requests a second.

python -m benchmarks.standby.run
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import arguments, tell
from benchmarks.common.rows import Results, Row, command, finish
from tests.support.nodes import FIRST, SECOND, Load, Nodes

ABOUT = "one of two nodes goes while four devices answer 50 requests a second"
FIGURE = "from {} to the first answer to a later request"
WANTED_S = 1.0
_LIMIT_S = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")
BOARDS = ((SECOND, "jetson1"), ("jetson2",), ("jetson3",), ("jetson4",), (FIRST,))
"""Five: the second node shares one with a device."""


@contextmanager
def loaded(*, is_split: bool = False) -> Iterator[tuple[Nodes, Load]]:
    """Bring up a cell and ask it."""
    with (
        tempfile.TemporaryDirectory(prefix="devit-") as place,
        Nodes(Path(place) / "cell", deadline_ms=100.0, is_split=is_split) as cell,
    ):
        load = Load(cell, timeout_s=2 * _LIMIT_S)
        try:
            load.settle()
            yield cell, load
        finally:
            load.client.close()


def active_goes(cell: Nodes, load: Load, rounds: int, how: signal.Signals, pause_s: float) -> None:
    """Kill or stop the active node so many times."""
    for number in range(rounds):
        tell(f"standby: {how.name} {number + 1} of {rounds}")
        active = load.active()
        load.interrupt(lambda name=active: cell.signal(name, how), _LIMIT_S)  # type: ignore[misc]
        if how is signal.SIGSTOP:
            cell.signal(active, signal.SIGCONT)
        else:
            cell.kill(active)
            cell.start(active)
        load.run(pause_s)


def boards_go(cell: Nodes, load: Load, pause_s: float) -> None:
    """Kill all that runs on each board in turn."""
    for board in BOARDS:
        tell(f"standby: {' and '.join(board)} killed")
        load.interrupt(lambda names=board: [cell.signal(name, signal.SIGKILL) for name in names], _LIMIT_S)  # type: ignore[misc]
        for name in board:
            cell.kill(name)
            cell.start(name)
        load.run(pause_s)


def links_are_cut(cell: Nodes, load: Load, rounds: int, pause_s: float) -> None:
    """Cut the nodes from each other, and each from two devices, while the first one is active."""
    for _ in range(rounds):
        if load.active() != FIRST:
            cell.kill(SECOND)
            load.settle()
            cell.start(SECOND)
        load.run(pause_s)
        load.interrupt(lambda: cell.cut(is_cut=True), _LIMIT_S)
        load.run(pause_s)
        cell.cut(is_cut=False)
        load.run(pause_s)


def rows_of(what: str, load: Load) -> list[Row]:
    """Lay out what became of the requests."""
    load.finish(_LIMIT_S)
    gaps = np.array(load.gaps_s)
    worst = float(gaps.max())
    may_fail = what == "a partition"  # as a counted failure
    counts = {"lost": len(load.lost), "answered twice": load.twice}
    again = sum(count > 1 for count in load.client.came.values())
    return [
        Row(
            figure=FIGURE.format(what),
            side="devit",
            unit="s",
            p50=float(np.median(gaps)),
            p99=worst,
            samples=len(gaps),
            wanted=f"<= {WANTED_S:g} s, worst",
            holds=worst <= WANTED_S,
        ),
        *(
            Row(
                figure=f"{what}: requests {name}",
                side="devit",
                unit=f"of {len(load.asked_s)}",
                p50=count,
                samples=len(load.asked_s),
                wanted="" if may_fail else "0",
                holds=None if may_fail else count == 0,
            )
            for name, count in counts.items()
        ),
        Row(
            figure=f"{what}: requests computed by both nodes",
            side="devit",
            unit=f"of {len(load.asked_s)}",
            p50=again,
            samples=len(load.asked_s),
        ),
    ]


def cost(cell: Nodes, load: Load, duration_s: float) -> list[Row]:
    """Measure the CPU time of both nodes."""
    active = load.active()
    before = {name: _cpu_s(cell.pid(name)) for name in (FIRST, SECOND)}
    asked = len(load.asked_s)
    load.run(duration_s)
    frames = max(1, len(load.asked_s) - asked)
    spent = {name: _cpu_s(cell.pid(name)) - before[name] for name in before}
    standby = SECOND if active == FIRST else FIRST
    return [
        Row(
            figure="CPU time of a node that is active",
            side="devit",
            unit="ms a frame",
            p50=1000 * spent[active] / frames,
            samples=frames,
        ),
        Row(
            figure="CPU time of a node that stands by",
            side="devit",
            unit="% of a core",
            p50=100 * spent[standby] / duration_s,
            samples=1,
        ),
    ]


def measure(rounds: int, pause_s: float) -> list[Row]:
    """Measure everything, each in a cell of its own."""
    rows: list[Row] = []
    with loaded() as (cell, load):
        rows += cost(cell, load, 10 * pause_s)
    parts: tuple[tuple[str, bool, Callable[[Nodes, Load], None]], ...] = (
        ("kill -9", False, lambda cell, load: active_goes(cell, load, rounds, signal.SIGKILL, pause_s)),
        ("SIGSTOP", False, lambda cell, load: active_goes(cell, load, rounds, signal.SIGSTOP, pause_s)),
        ("SIGTERM", False, lambda cell, load: active_goes(cell, load, rounds, signal.SIGTERM, pause_s)),
        ("a partition", True, lambda cell, load: links_are_cut(cell, load, max(1, rounds // 4), pause_s)),
        ("the end of a board", False, lambda cell, load: boards_go(cell, load, pause_s)),
    )
    for what, is_split, run in parts:
        with loaded(is_split=is_split) as (cell, load):
            run(cell, load)
            rows += rows_of(what, load)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 1.0, "seconds of load after each interruption (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="interruptions of each kind (default: %(default)s)")
    chosen = parser.parse_args(argv)
    watch = Watch()
    rows = tuple(measure(chosen.rounds, chosen.duration))
    results = Results(
        benchmark="standby",
        about=ABOUT,
        command=command(),
        settings={"rounds": chosen.rounds, "deadline_ms": 100.0, "engine": "paced:2"},
        versions={},
        machine=watch.machine(),
        rows=rows,
    )
    finish(results, chosen)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    main()
