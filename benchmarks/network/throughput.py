"""Features per second that the node sustains on one core, join and fusion included.

python -m benchmarks.network.throughput
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq
from benchmarks.common.machine import Watch, two_cores
from benchmarks.common.measure import BLOCK_S, Figure, Report, alone, arguments, show, tell
from benchmarks.network.bare import Children, receive
from benchmarks.network.bundles import write_null_bundle
from benchmarks.network.devices import Device, Node, serve
from benchmarks.network.node import CLASSES, fleet_of, serve_node

from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Client
from devit_contract.wire.codec import State

DIM, SIDE = 192, 32
WANTED_PER_S = 20_000.0
IN_FLIGHT = 4
ABOUT = "simulated devices on one core keep the node busy on another: features joined and fused per second"


@dataclass(frozen=True)
class Block:
    """What was counted in a second or so."""

    features: int
    wall_s: float
    node_cpu_s: float
    """Time of all threads of the node's process."""
    devices_cpu_s: float


def run(duration_s: float, count: int) -> Report:
    """Measure for a while."""
    watch = Watch()
    node_core, other_core = two_cores()
    pairs = {name: KeyPair(*zmq.curve_keypair()) for name in ("node", "client", *(f"device{i}" for i in range(count)))}
    devices = [Device(f"device{index}", index, pairs[f"device{index}"]) for index in range(count)]
    with tempfile.TemporaryDirectory(prefix="devit-") as place, Children() as children:
        bundle = Path(place) / "bundle"
        write_null_bundle(bundle, (DIM,) * count, CLASSES, (SIDE, SIDE, 3))
        node = children.start(serve_node, bundle, fleet_of(pairs, devices), pairs["node"], node_core, DIM)
        endpoint, client_endpoint, node_pid = receive(node, tuple)
        digests = [Bundle(bundle).manifest.file("submodel", device=i, variant="fp32").sha256 for i in range(count)]
        told = Node(endpoint, pairs["node"].public, digests, DIM)
        devices_pid = receive(children.start(serve, told, devices, other_core), int)
        os.sched_setaffinity(0, {other_core})
        client = Client(client_endpoint, keys=pairs["client"], node_key=pairs["node"].public)
        with client:
            blocks = _blocks(client, count, duration_s, (node_pid, devices_pid))
    return Report(
        benchmark="throughput",
        about=ABOUT,
        other="",
        settings={
            "devices": count,
            "feature bytes": DIM * 4,
            "image bytes": SIDE * SIDE * 3,
            "classes": CLASSES,
            "requests under way": IN_FLIGHT,
            "CURVE": "all links",
            "cores of node and of the rest": f"{node_core} and {other_core}",
        },
        figures=_figures(blocks),
        machine=watch.machine(),
    )


def _blocks(client: Client, count: int, duration_s: float, pids: tuple[int, int]) -> list[Block]:
    """Keep requests under way, and count second by second; the first block warms up and is not counted."""
    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    blocks: list[Block] = []
    wanted = max(2, round(duration_s / BLOCK_S))
    answers = client.stream(itertools.repeat(image), in_flight=IN_FLIGHT)
    for number in range(-1, wanted):
        tell(f"throughput: {'warming up' if number < 0 else f'block {number + 1} of {wanted}'}")
        start_s, before_s, frames = time.perf_counter(), [_cpu_s(pid) for pid in pids], 0
        while time.perf_counter() < start_s + duration_s / wanted:
            answer = next(answers)
            if answer.state is not State.FULL:
                raise SystemExit(
                    f"expected all devices in every answer, found {answer.missing}: is another load heavy?"
                )
            frames += 1
        node_s, devices_s = (_cpu_s(pid) - before for pid, before in zip(pids, before_s, strict=True))
        if number >= 0:
            blocks.append(Block(frames * count, time.perf_counter() - start_s, node_s, devices_s))
    tell("throughput: done\n")
    return blocks


def _cpu_s(pid: int) -> float:
    """Time that all threads of a process have used, see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _figures(blocks: list[Block]) -> tuple[Figure, ...]:
    features = sum(block.features for block in blocks)
    rate = features / sum(block.wall_s for block in blocks)
    cost = sum(block.node_cpu_s for block in blocks) / features * 1e6
    rates = [block.features / block.wall_s for block in blocks]
    costs = [block.node_cpu_s / block.features * 1e6 for block in blocks]
    node_share = [block.node_cpu_s / block.wall_s * 100 for block in blocks]
    devices_share = [block.devices_cpu_s / block.wall_s * 100 for block in blocks]
    return (
        alone(
            "features", "1/s", rate, rates, samples=features, wanted=f">= {WANTED_PER_S:g}", holds=rate >= WANTED_PER_S
        ),
        alone("node's CPU time a feature", "us", cost, costs, samples=features),
        alone("node's core, busy with it", "%", float(np.mean(node_share)), node_share, samples=features),
        alone("other core, busy with devices", "%", float(np.mean(devices_share)), devices_share, samples=features),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 30.0, "how long it is measured")
    parser.add_argument("--devices", type=int, default=64, help="how many devices are simulated, 1 to 64")
    chosen = parser.parse_args(argv)
    show(run(chosen.duration, chosen.devices), chosen)


if __name__ == "__main__":
    main()
