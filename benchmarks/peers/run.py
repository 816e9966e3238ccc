"""Our cell against what a user would pick instead: same models, same machine, same processes, in turns.

python -m benchmarks.peers.run
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import Samples, alternate, arguments, tell
from benchmarks.common.rows import Results, Row, command, finish
from benchmarks.peers import load
from benchmarks.peers.bare_cell import Bare
from benchmarks.peers.cell import Cell, CertainCell
from benchmarks.peers.figures import LATENCY, RATE, rows
from benchmarks.peers.grpc_streams import GrpcStreams
from benchmarks.peers.grpc_unary import GrpcUnary
from benchmarks.peers.host import Host
from benchmarks.peers.http_server import OneServer, Replicas
from benchmarks.peers.litserve_cell import LitServe
from benchmarks.peers.peer import Peer, Reply
from benchmarks.peers.ray_serve import RayServe
from benchmarks.peers.tcp import Tcp
from benchmarks.peers.work import Model, Work, null_work, real_work

ABOUT = "client -> front -> N workers, each its own process: our cell against other ways to serve the same models"
GROUPS: tuple[tuple[type[Peer], ...], ...] = (
    (Cell, CertainCell, Bare, Tcp, GrpcUnary, GrpcStreams, OneServer, Replicas),
    # Both keep cores busy while they wait, so each takes turns with ours alone.
    (Cell, LitServe),
    (Cell, RayServe),
)
SIDES = tuple(dict.fromkeys(each.name for group in GROUPS for each in group))
PACKAGES = ("grpcio", "litserve", "ray", "starlette", "uvicorn", "uvloop", "httptools", "onnxruntime", "numpy")
DEVICES, FULL = (1, 2, 4), 4
IN_FLIGHT = 16
SHARE = 0.5
"""Of its saturation, how much a side gets by chance."""
CHECKED_IMAGES, TOLERANCE = 8, 1e-4
SLACK_S = 120.0
MakeTask = Callable[[float], Callable[[Peer], Samples]]
"""What a side's client does for so many seconds."""


def run(
    duration_s: float, models: Sequence[Model], devices: Sequence[int], sides: Sequence[str], *, all_peers: bool
) -> Results:
    """Measure all models and sizes, group by group."""
    watch = Watch()
    groups = [[each for each in group if each.name in sides] for group in GROUPS]
    absent = {each.name: why for group in groups for each in group if (why := each.missing())}
    for why in absent.values():
        tell(why + "\n")
    if absent and all_peers:
        raise SystemExit("expected all peers, found that some are not installed: see above")
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="devit-") as place:
        for model in models:
            for size in devices:
                work = (null_work if model == "null" else real_work)(size, Path(place))
                for group in groups:
                    there = [each for each in group if each.name not in absent and _serves(each, work)]
                    if len(there) > 1:
                        found += _group(work, there, duration_s, by_chance=size == max(devices))
    settings: dict[str, str | float] = {
        "seconds a side and figure": duration_s,
        "requests under way, saturated": IN_FLIGHT,
        "share of its own saturation": SHARE,
        "keys": "devit and bare cell: CURVE; all others: none",
        "null model": "32x32x3 images, features of 192 floats, 100 classes",
        "real model": "the shipped bundle: 28x28 images, ONNX Runtime, one thread",
    }
    return Results(
        benchmark="peers",
        about=ABOUT,
        command=command(),
        settings={**settings, **absent},
        versions=_versions(),
        machine=watch.machine(),
        rows=tuple(found),
    )


def _serves(peer: type[Peer], work: Work) -> bool:
    return peer is not CertainCell or (work.model == "real" and work.devices == FULL)


def _group(work: Work, peers: Sequence[type[Peer]], duration_s: float, *, by_chance: bool) -> list[Row]:
    """Start some sides, check their answers, and measure them in turns."""
    what = f"{work.model} cell of {work.devices}"
    suffix = "" if Bare in peers else f", in turns with {peers[-1].name}"
    with ExitStack() as stack:
        tell(f"{what}: starting {', '.join(peer.name for peer in peers)}\n")
        with ThreadPoolExecutor(len(peers)) as pool:
            starting = [pool.submit(Host, peer, work) for peer in peers]
        for each in starting:
            if each.exception() is None:
                stack.enter_context(each.result())
        hosts = [each.result() for each in starting]  # raises only now, so that those which run are stopped
        for host, peer in zip(hosts, peers, strict=True):
            check(peer, work, host.run(_replies, SLACK_S))

        def turns(figure: str, tasks: Sequence[MakeTask]) -> dict[str, list[Samples]]:
            sides = [partial(_measured, host, task) for host, task in zip(hosts, tasks, strict=True)]
            blocks = alternate(f"{what}, {figure}", sides, duration_s)
            return {peer.name: found for peer, found in zip(peers, blocks, strict=True)}

        is_judged = work.model == "null" and work.devices == FULL
        figure = "client to answer"
        spent = {peer.name: list[Samples]() for peer in peers}
        sides = [partial(_timed, host, each) for host, each in zip(hosts, spent.values(), strict=True)]
        blocks = alternate(f"{what}, {figure}", sides, duration_s)
        latencies = dict(zip(spent, blocks, strict=True))
        found = rows(f"{what}, {figure}", "us", latencies, LATENCY if is_judged else {}, suffix)
        spent = {name: each[1:] for name, each in spent.items()}  # the first turn warms up
        found += rows(f"{what}, CPU time an answer, all processes", "us", spent, {}, suffix)
        figure = f"saturated, {IN_FLIGHT} under way"
        full = partial(load.saturated, in_flight=IN_FLIGHT)
        rates = turns(figure, [lambda seconds: partial(full, duration_s=seconds)] * len(hosts))
        found += rows(f"{what}, {figure}", "1/s", rates, RATE if is_judged else {}, suffix)
        if by_chance:
            saturation = [float(np.median(np.concatenate(each))) for each in rates.values()]
            equal = min(saturation) * SHARE
            for figure, tasks in (
                (f"Poisson at {SHARE:.0%} of its own saturation", [_chance(rate * SHARE) for rate in saturation]),
                (f"Poisson at {equal:.0f}/s", [_chance(equal) for _ in hosts]),
            ):
                found += rows(f"{what}, {figure}", "us", turns(figure, tasks), {}, suffix)
    return found


def _chance(rate: float) -> MakeTask:
    """Come at other times in every block."""
    seeds = count()
    return lambda seconds: partial(load.by_chance, duration_s=seconds, rate=rate, seed=next(seeds))


def check(peer: type[Peer], work: Work, replies: list[Reply]) -> None:
    """Compare answers with those of the same engines in this process.

    Raises:
        SystemExit: They differ.
    """
    if not peer.is_checked:
        return
    expected = work.expected(work.images()[: len(replies)], peer.part, [reply.mask for reply in replies])
    for number, (reply, logits) in enumerate(zip(replies, expected, strict=True)):
        off = np.abs(reply.logits - logits).max() if reply.logits.shape == logits.shape else np.inf
        if not off <= TOLERANCE * max(1.0, np.abs(logits).max()):
            raise SystemExit(
                f"{peer.name}: expected the same engines' answer to image {number}, found one that is {off:.3g} off"
            )


def _replies(peer: Peer) -> list[Reply]:
    return [peer.ask(image) for image in peer.images[:CHECKED_IMAGES]]


def _measured(host: Host, task: MakeTask, duration_s: float) -> Samples:
    return host.run(task(duration_s), duration_s + SLACK_S)


def _timed(host: Host, spent: list[Samples], duration_s: float) -> Samples:
    """Measure one request under way, and note the CPU time that the whole side takes for an answer."""
    before_s = host.cpu_s()
    samples = host.run(partial(load.one_at_a_time, duration_s=duration_s), duration_s + SLACK_S)
    spent.append(np.asarray([(host.cpu_s() - before_s) * 1e6 / len(samples)]))
    return samples


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if program := shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/bin"):
        told = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
        found["haproxy"] = told.split()[2]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 6.0, "how long each side is measured for each figure")
    parser.add_argument("--models", nargs="+", choices=("null", "real"), default=("null", "real"), help="what to serve")
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES, metavar="N", help="how many workers, 1 to 4")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--all-peers", action="store_true", help="fail where a peer is not installed")
    chosen = parser.parse_args(argv)
    found = run(chosen.duration, chosen.models, chosen.devices, chosen.sides, all_peers=chosen.all_peers)
    finish(found, chosen)


if __name__ == "__main__":
    main()
