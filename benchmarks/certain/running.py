"""What policy `certain` gives a running cell, against `all` on the same cell: answers, latency, CPU time, joules.

python -m benchmarks.certain.running

The shipped cell, its real engines and its test images; devices of 20 ms are real engines that are slowed down.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import Figure, Report, Samples, alternate, arguments, p50, p99, ratio, show, tell

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Policy
from devit_contract.wire.client import Client
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_pipeline.demo import BOARD_MODEL, test_images
from devit_pipeline.demo import SHIPPED as PACKAGED
from devit_pipeline.local_cell import LocalCell, LocalDevice
from devit_profiling.load.cell_run import measure_cell
from devit_profiling.record.record import Plan
from devit_profiling.report.report import write_report

SHIPPED = PACKAGED / "bundle"
PACE_MS, SLOW_MS = 20.0, 60.0
SATURATING, DEADLINE_MS = 24, 2000.0
PROMISE = 0.01
POLICIES: tuple[Policy, Policy] = ("certain", "all")
ABOUT = "policy certain against all, on one running cell: the shipped bundle, its test images"


def run(duration_s: float, parts: Sequence[str]) -> Report:
    """Measure the parts that are named, each side of each for ``duration_s``."""
    watch = Watch()
    images, _ = test_images(Bundle(SHIPPED))
    build_engines(Bundle(SHIPPED), Store(None), backend="ort", progress=_silent)
    figures: list[Figure] = []
    for name, measure in PARTS.items():
        if name in parts:
            figures += measure(images, duration_s)
    settings: dict[str, str | float] = {
        "bundle": f"{Bundle(SHIPPED).manifest.name} {Bundle(SHIPPED).manifest.serial}",
        "promise": f"{PROMISE:.1%} flips",
        "stages": "1-1-2 unless named, rotating",
        "images": len(images),
        "joules": "SIMULATED boards",
    }
    return Report("running", ABOUT, "all", settings, tuple(figures), watch.machine())


def saturated(images: UInt8Array, duration_s: float) -> list[Figure]:
    """Keep the cell full: answers per second, by turns on the same cell."""
    with _place() as place, _cell(place, _devices(f"built:{PACE_MS:g}")) as cell, cell.client() as client:
        sides = [partial(_streamed, client, images, policy, SATURATING) for policy in POLICIES]
        blocks = alternate("saturated", sides, duration_s)
    rates = [[(len(block) - 1) / _span_s(block) for block in side] for side in blocks]
    certain, everything = (float(np.mean(side)) for side in rates)
    pairs = [a / b for a, b in zip(*rates, strict=True)]
    spread = (round(min(pairs), 3), round(max(pairs), 3))
    compared = round(certain / everything, 3)
    return [
        Figure(
            f"answers a second, devices of {PACE_MS:g} ms, saturated",
            "1/s",
            round(certain, 1),
            round(everything, 1),
            compared,
            ">= 2.2 x",
            compared >= 2.2,
            min(sum(map(len, side)) for side in blocks),
            spread,
        ),
        ratio("latency p99, saturated", p99, _latencies(blocks[0]), _latencies(blocks[1]), 2.2),
    ]


def one_at_a_time(images: UInt8Array, duration_s: float) -> list[Figure]:
    """Ask for one image after the other: latency, by turns on the same cell; by three stages, and by two."""
    figures: list[Figure] = []
    for stages, settings in (("1-1-2", ""), ("1-3", "[certain]\nstages = [1]\n")):
        devices = _devices(f"built:{PACE_MS:g}")
        with _place() as place, _cell(place, devices, settings) as cell, cell.client() as client:
            sides = [partial(_streamed, client, images, policy, 1) for policy in POLICIES]
            ours, theirs = (_latencies(side) for side in alternate(f"one at a time, {stages}", sides, duration_s))
        figures += [
            ratio(f"latency p50, one at a time, {stages}", p50, ours, theirs, 1.1),
            ratio(f"latency p99, one at a time, {stages}", p99, ours, theirs, 2.2),
        ]
    return figures


def cpu_time(images: UInt8Array, duration_s: float) -> list[Figure]:
    """Count the CPU time of node and agents for each answer, engines as fast as they are."""
    with _place() as place, _cell(place, _devices("built")) as cell, cell.client() as client:
        pids = list(cell.pids.values())

        def side(policy: Policy, block_s: float) -> Samples:
            before_s = sum(map(_cpu_s, pids))
            count = len(_streamed(client, images, policy, 4, block_s)) - 1
            return np.asarray([(sum(map(_cpu_s, pids)) - before_s) * 1e6 / count])

        ours, theirs = alternate("CPU time", [partial(side, policy) for policy in POLICIES], duration_s)
    return [ratio("CPU time of node and agents an answer", _mean, ours, theirs, 0.55)]


def early_release(images: UInt8Array, duration_s: float) -> list[Figure]:
    """Slow one device down: what `all` with early release takes, against a cell without a slow device."""
    slowed = _devices(f"built:{PACE_MS:g}", last=f"built:{SLOW_MS:g}")
    with _place() as place, ExitStack() as stack:
        even, uneven = (
            stack.enter_context(stack.enter_context(cell).client())
            for cell in (
                _cell(place / "even", _devices(f"built:{PACE_MS:g}")),
                _cell(place / "uneven", slowed, "[certain]\nearly_release = true\n"),
            )
        )
        sides = [partial(_streamed, client, images, "all", 1) for client in (uneven, even)]
        ours, theirs = (_latencies(side) for side in alternate("early release", sides, duration_s))
    return [ratio(f"latency p50 of all, one device of {SLOW_MS:g} ms, early release", p50, ours, theirs, 1.1)]


def joules(images: UInt8Array, duration_s: float) -> list[Figure]:
    """Have the profiler measure both policies on SIMULATED boards: joules per answer of the four devices."""
    found: dict[Policy, float] = {}
    plan = Plan(
        has_alone=False, settle_s=0.0, idle_s=5.0, windows=2, duration_s=max(10.0, duration_s / 2), in_flight=SATURATING
    )
    for policy in POLICIES:
        with _place() as place:
            devices = _devices("built", board=_board(place))
            with _cell(place, devices, f'policy = "{policy}"\n') as cell, cell.client() as client:
                names = list(cell.devices)
                folder = measure_cell(client, cell.fleet, names, itertools.cycle(images), plan, place / "runs", _silent)
                (scenario,) = write_report(folder).scenarios
        assert scenario.cell is not None
        assert scenario.cell.total_j_per_answer is not None
        found[policy] = scenario.cell.total_j_per_answer.mean
    compared = round(found["certain"] / found["all"], 3)
    wanted = "<= 0.6 x"
    name = "energy of the devices an answer, saturated, SIMULATED"
    return [
        Figure(
            name,
            "mJ",
            round(1000 * found["certain"], 2),
            round(1000 * found["all"], 2),
            compared,
            wanted,
            compared <= 0.6,
            plan.windows,
            (compared, compared),
        )
    ]


PARTS: dict[str, Callable[[UInt8Array, float], list[Figure]]] = {
    "saturated": saturated,
    "one": one_at_a_time,
    "cpu": cpu_time,
    "early": early_release,
    "joules": joules,
}


def _devices(engine: str, *, last: str = "", board: str = "/") -> list[LocalDevice]:
    engines = [engine] * 3 + [last or engine]
    simulator = (sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano", "--seed")
    return [
        LocalDevice(
            f"device{index}", index, () if board == "/" else (*simulator, str(index)), root=board, engine=engines[index]
        )
        for index in range(4)
    ]


def _board(place: Path) -> str:
    model = place / "board" / "proc" / "device-tree" / "model"
    model.parent.mkdir(parents=True)
    model.write_text(BOARD_MODEL + "\0")
    return str(place / "board")


def _cell(place: Path, devices: Sequence[LocalDevice], settings: str = "") -> LocalCell:
    return LocalCell(SHIPPED, place / "cell", devices, deadline_ms=DEADLINE_MS, settings=settings)


@contextmanager
def _place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="devit-") as folder:
        yield Path(folder)


def _streamed(client: Client, images: UInt8Array, policy: Policy, in_flight: int, duration_s: float) -> Samples:
    """Ask for a while; give the latency of each answer and, first, how long it all took, in microseconds."""
    start_s = time.monotonic()
    taken_us = [0.0]

    def fresh() -> Iterator[UInt8Array]:
        for image in itertools.cycle(images):
            if time.monotonic() - start_s >= duration_s:
                return
            yield image

    for answer in client.stream(fresh(), in_flight=in_flight, policy=policy):
        if answer.logits is None:
            raise SystemExit(f"expected an answer to every request, found none: {answer.why}")
        taken_us.append(answer.latency_s * 1e6)
    taken_us[0] = (time.monotonic() - start_s) * 1e6
    return np.asarray(taken_us, np.float64)


def _span_s(block: Samples) -> float:
    return float(block[0]) / 1e6


def _latencies(side: Sequence[Samples]) -> list[Samples]:
    return [block[1:] for block in side]


def _mean(samples: Samples) -> float:
    return float(samples.mean())


def _cpu_s(pid: int) -> float:
    """Time that all threads of a process have used, see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _silent(_stage: str, _done: int, _all: int, _what: str = "") -> None:
    """Show no progress of a stage."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 30.0, "how long each side of each part is measured")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure")
    chosen = parser.parse_args(argv)
    report = run(chosen.duration, chosen.parts)
    tell("running: done\n")
    show(report, chosen)


if __name__ == "__main__":
    main()
