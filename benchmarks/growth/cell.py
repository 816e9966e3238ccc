"""What a frame costs a node of so many simulated devices, for images and features of any size."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import zmq
from benchmarks.common.machine import two_cores
from benchmarks.network.bare import Children, receive
from benchmarks.network.bundles import write_null_bundle
from benchmarks.network.devices import Device, Node, serve
from benchmarks.network.node import CLASSES, fleet_of, serve_node

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.fleet import Record
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Client
from devit_contract.wire.codec import State

_IN_FLIGHT = 4
_WARM_UP_FRAMES = 20
_REST_S = 0.5


@dataclass(frozen=True)
class Shape:
    """A cell of simulated devices and what travels in it."""

    devices: int = 4
    side: int = 32
    """Of the images, square and RGB, in pixels."""
    dim: int = 192
    """Numbers of a feature."""


@dataclass(frozen=True)
class Cost:
    """What was measured of a node in one block."""

    frames: int
    wall_s: float
    cpu_s: float
    """Time of all threads of the node's process."""
    own_mb: float
    """Memory of the node alone (anonymous), 10^6 bytes."""
    rest_share: float
    """CPU time of the node's process a second, without frames: it looks after its connections."""

    @property
    def us_per_frame(self) -> float:
        """CPU time of a frame, beyond what the node uses at rest."""
        return (self.cpu_s - self.rest_share * self.wall_s) / self.frames * 1e6


class RunningCell:
    """A cell of which a client asks."""

    def __init__(self, client: Client, node_pid: int, image: UInt8Array) -> None:
        """Take over the client."""
        self._client, self._pid, self._image = client, node_pid, image
        for _ in range(_WARM_UP_FRAMES):
            self._check(client.classify(image).state)
        start_s, before_s = time.perf_counter(), process_cpu_s(node_pid)
        client.wait(_REST_S)
        self._rest_share = (process_cpu_s(node_pid) - before_s) / (time.perf_counter() - start_s)

    def saturated(self, duration_s: float) -> Cost:
        """Keep some requests under way for a while."""
        answers = self._client.stream(itertools.repeat(self._image), in_flight=_IN_FLIGHT)
        return self._cost(duration_s, lambda _frame, _start_s: self._check(next(answers).state))

    def count(self, frames: int) -> None:
        """Have so many frames answered, some under way at a time."""
        answers = self._client.stream(itertools.repeat(self._image, frames), in_flight=_IN_FLIGHT)
        for answer in answers:
            self._check(answer.state)

    def paced(self, duration_s: float, rate_hz: float) -> Cost:
        """Ask for one frame after the other, so many a second, or as many as there is time for."""

        def ask(frame: int, start_s: float) -> None:
            self._check(self._client.classify(self._image).state)
            time.sleep(max(0.0, start_s + (frame + 1) / rate_hz - time.perf_counter()))

        return self._cost(duration_s, ask)

    def _cost(self, duration_s: float, ask: Callable[[int, float], None]) -> Cost:
        start_s, before_s, frames = time.perf_counter(), process_cpu_s(self._pid), 0
        while not frames or time.perf_counter() < start_s + duration_s:
            ask(frames, start_s)
            frames += 1
        wall_s, cpu_s = time.perf_counter() - start_s, process_cpu_s(self._pid) - before_s
        return Cost(frames, wall_s, cpu_s, _own_mb(self._pid), self._rest_share)

    def _check(self, state: State) -> None:
        if state is not State.FULL:
            raise SystemExit(f"expected all devices in every answer, found {state.name}: is another load heavy?")


@contextmanager
def running(shape: Shape, record: Path | None = None) -> Iterator[RunningCell]:
    """Run a cell: its node on one core, devices and client on another one; the node may be recorded at a socket."""
    count, (node_core, other_core) = shape.devices, two_cores()
    names = ("node", "client", *(f"device{index}" for index in range(count)))
    pairs = {name: KeyPair(*zmq.curve_keypair()) for name in names}
    devices = [Device(f"device{index}", index, pairs[f"device{index}"]) for index in range(count)]
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="devit-") as place, Children() as children:
        bundle = Path(place) / "bundle"
        write_null_bundle(bundle, (shape.dim,) * count, CLASSES, (shape.side, shape.side, 3))
        fleet = fleet_of(pairs, devices)
        if record is not None:
            fleet = msgspec.structs.replace(fleet, record=Record(str(record)))
        node = children.start(serve_node, bundle, fleet, pairs["node"], node_core, shape.dim)
        endpoint, client_endpoint, node_pid = receive(node, tuple)
        digests = [Bundle(bundle).manifest.file("submodel", device=i, variant="fp32").sha256 for i in range(count)]
        told = Node(endpoint, pairs["node"].public, digests, shape.dim)
        receive(children.start(serve, told, devices, other_core), int)
        os.sched_setaffinity(0, {other_core})
        try:
            image = np.random.default_rng(1).integers(0, 256, (shape.side, shape.side, 3), np.uint8)
            with Client(client_endpoint, keys=pairs["client"], node_key=pairs["node"].public) as client:
                yield RunningCell(client, node_pid, image)
        finally:
            os.sched_setaffinity(0, cores)


def process_cpu_s(pid: int) -> float:
    """Time of all threads, which schedstat counts in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _own_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024 / 1e6
