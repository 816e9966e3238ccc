"""What a client that floods a cell costs another one: the p99 of its answers, alone and beside the flood.

python -m benchmarks.network.shares

The camera asks at random times (Poisson), so that its requests queue up behind each other, too. No device stops a frame
that it has begun: one that asks when nothing is under way waits for up to a whole frame of another client, with
any order of the rest. The flood's process has the lowest priority, as it would run on another machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import Figure, Report, Samples, alone, alternate, arguments, p50, p99, ratio, show
from benchmarks.network.bundles import write_null_bundle
from PIL import Image

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.keys import new_keys
from devit_contract.choices import Policy
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client
from devit_contract.wire.codec import State
from devit_pipeline.local_cell import LocalCell, LocalDevice

DEVICES, DIM, CLASSES, SIDE = 4, 192, 100, 32
FILE_SIDE = 480
ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "pipeline/devit_pipeline/fashion_mnist/bundle"
ABOUT = "a client at random times, alone and beside one that keeps 1,000 requests under way: p99 of its answers"
WANTED, WEIGHT, DEADLINE_MS = 1.5, 10, 5000.0


@dataclass(frozen=True)
class Case:
    """One cell, and what its two clients ask."""

    name: str
    engine: str = "paced:3"
    rate_hz: float = 100.0
    camera: Policy = "all"
    flood: Policy = "all"
    is_file: bool = False
    """Whether the flood sends JPEG files, which devices decode."""
    limits: Mapping[str, str] = field(default_factory=lambda: {"camera": f"weight = {WEIGHT}"})
    """Lines of the entries of ``camera`` and ``flood`` in fleet.toml."""


CASES = (
    Case("paced"),
    Case("even", rate_hz=50.0, limits={}),
    Case("files", is_file=True),
    Case("replica", flood="replica"),
    Case("single", camera="single", flood="all"),
    Case("real", engine="built"),
    Case("slow", engine="paced:20", rate_hz=15.0),
)


class Camera:
    """The client whose answers are timed; counts those that were no full answer."""

    def __init__(self, client: Client, image: UInt8Array, policy: Policy, rate_hz: float) -> None:
        """Ask for that image."""
        self._client, self._image, self._policy, self._rate_hz = client, image, policy, rate_hz
        self._random = np.random.default_rng(1)
        self.lost = 0
        self.asked = 0

    def ask(self, duration_s: float) -> Samples:
        """Ask for a while: us from when a request was due to its answer."""
        gaps_s = self._random.exponential(1 / self._rate_hz, max(2, round(duration_s * self._rate_hz)))
        start_s = time.monotonic()
        due_s, taken_us = {}, []
        for at_s in start_s + np.cumsum(gaps_s):
            while (left_s := at_s - time.monotonic()) > 0:
                taken_us += self._collected(due_s, left_s)
            due_s[self._client.submit(self._image, policy=self._policy)] = float(at_s)
        while due_s:
            taken_us += self._collected(due_s, 1.0)
        self.asked += len(taken_us)
        return np.asarray(taken_us)

    def _collected(self, due_s: dict[int, float], timeout_s: float) -> list[float]:
        found = self._client.collect(timeout_s)
        now_s = time.monotonic()
        good = State.FULL if self._policy == "all" else State.PARTIAL
        self.lost += sum(not (isinstance(answer, Answer) and answer.state is good) for _, answer in found)
        return [(now_s - due_s.pop(number)) * 1e6 for number, _ in found]


@contextmanager
def flood(cell: LocalCell, key: Path, case: Case, picture: Path, in_flight: int) -> Iterator[subprocess.Popen[str]]:
    """Start the process of the flood, which waits for its first line."""
    command = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.network.flooder", str(cell.fleet_path), str(key)]
    command += [str(in_flight), case.flood, str(picture)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as child:
        assert child.stdin is not None
        told(child)
        try:
            yield child
        finally:
            child.stdin.close()


def told(child: subprocess.Popen[str]) -> dict[str, float]:
    """Read a line of the flood's process."""
    assert child.stdout is not None
    found: dict[str, float] = json.loads(child.stdout.readline() or "null")
    if found is None:
        raise SystemExit("the flood's process ended: see above")
    return found


def say(child: subprocess.Popen[str]) -> None:
    """Begin or end the flood."""
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


@contextmanager
def running(case: Case, place: Path, in_flight: int) -> Iterator[tuple[LocalCell, Camera, subprocess.Popen[str]]]:
    """Bring up the cell and both clients."""
    shape, bundle, store = (SIDE, SIDE, 3), place / "bundle", place / "store"
    if case.engine == "built":
        shape, bundle = (28, 28, 1), SHIPPED
        build = [Path(sys.executable).with_name("devit"), "build", bundle, "--store", store]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    else:
        write_null_bundle(bundle, (DIM,) * DEVICES, CLASSES, shape)
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    picture = place / ("picture.jpg" if case.is_file else "picture.npy")
    if case.is_file:
        large = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(large).resize((FILE_SIDE, FILE_SIDE)).save(picture)
    else:
        np.save(picture, image)
    keys = {name: new_keys(place / "keys", name) for name in ("camera", "flood")}
    settings = "".join(
        f'[[client]]\nname = "{name}"\npublic_key = "{each.public.decode()}"\n{case.limits.get(name, "")}\n'
        for name, each in keys.items()
    )
    devices = [LocalDevice(f"device{index}", index, engine=case.engine) for index in range(DEVICES)]
    with ExitStack() as stack:
        made = LocalCell(bundle, place / "cell", devices, store=store, deadline_ms=DEADLINE_MS, settings=settings)
        cell = stack.enter_context(made)
        client = stack.enter_context(Client.of_fleet(cell.fleet, keys["camera"], timeout_s=30))
        client.status()
        child = stack.enter_context(flood(cell, place / "keys/flood.key_secret", case, picture, in_flight))
        yield cell, Camera(client, image, case.camera, case.rate_hz), child


def measured(case: Case, duration_s: float, in_flight: int) -> list[Figure]:
    """Measure the camera alone and beside the flood, in turns."""
    answered: list[float] = []
    with tempfile.TemporaryDirectory(prefix="devit-") as name, running(case, Path(name), in_flight) as found:
        cell, camera, child = found

        def beside(block_s: float) -> Samples:
            say(child)
            samples = camera.ask(block_s)
            say(child)
            ended = told(child)
            answered.append((ended.get("full", 0) + ended.get("partial", 0)) / ended["seconds"])
            return samples

        ours, theirs = alternate(case.name, (beside, camera.ask), duration_s)
        with cell.client() as client:
            shed = sum(sum(each.shed.values()) for each in client.status().clients if each.name == "flood")
    samples = sum(map(len, ours))
    return [
        ratio(f"{case.name}: p99", p99, ours, theirs, WANTED),
        ratio(f"{case.name}: p50", p50, ours, theirs, WANTED),
        alone(
            f"{case.name}: camera's frames lost",
            "frames",
            camera.lost,
            [camera.lost],
            samples=camera.asked,
            wanted="<= 0",
            holds=not camera.lost,
        ),
        alone(f"{case.name}: flood, answered", "frames/s", float(np.median(answered)), answered, samples=samples),
        alone(f"{case.name}: flood, not served", "requests", shed, [shed], samples=samples),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 30.0, "how long each side of each case is measured")
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE", help="measure these alone")
    parser.add_argument("--in-flight", type=int, default=1000, help="requests that the flood keeps under way")
    parser.add_argument("--rate", type=float, default=0.0, metavar="HZ", help="requests of the camera a second")
    chosen = parser.parse_args(argv)
    watch = Watch()
    figures: list[Figure] = []
    for case in CASES:
        if case.name in chosen.cases:
            rate_hz = chosen.rate or case.rate_hz
            figures += measured(replace(case, rate_hz=rate_hz), chosen.duration, chosen.in_flight)
    settings = {"devices": DEVICES, "camera, Hz": chosen.rate or CASES[0].rate_hz, "under way": chosen.in_flight}
    show(Report("shares", ABOUT, "alone", settings, tuple(figures), watch.machine()), chosen)


if __name__ == "__main__":
    main()
