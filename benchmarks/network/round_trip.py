"""Round trip of one feature: dispatch to arrival at the fusion node, against an echo over bare sockets.

python -m benchmarks.network.round_trip
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from benchmarks.common.machine import Watch, pin, two_cores
from benchmarks.common.measure import Report, Samples, alternate, arguments, p50, p99, ratio, show
from benchmarks.network.bare import BareEcho
from benchmarks.network.bundles import write_null_bundle

from devit_contract.wire.client import Client
from devit_pipeline.local_cell import LocalCell, LocalDevice

DIM, CLASSES, SIDE = 768, 100, 32
WANTED = ((p50, 3.0), (p99, 5.0))
ABOUT = "one device, null engine, one frame under way at a time: dispatch to the feature's arrival at the node"


def run(duration_s: float, *, pinned: bool) -> Report:
    """Measure both sides in turns."""
    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="devit-") as place:
        bundle = Path(place) / "bundle"
        write_null_bundle(bundle, (DIM,), CLASSES, image.shape)
        cell = LocalCell(bundle, Path(place) / "cell", [LocalDevice("device0", 0, engine="null")], deadline_ms=5000)
        with cell, cell.client() as client, BareEcho(image.tobytes(), DIM * 4) as echo:
            if pinned:
                _pin(((cell.pid("node"), cell.pid("device0")), echo.pids))

            def devit(seconds: float) -> Samples:
                return _arrivals(client, image, seconds)

            ours, theirs = alternate("round trip", (devit, echo.round_trips), duration_s)
    return Report(
        benchmark="round_trip" if pinned else "round_trip_unpinned",
        about=ABOUT,
        other="bare echo",
        settings={
            "image bytes": image.nbytes,
            "feature bytes": DIM * 4,
            "classes": CLASSES,
            "CURVE": "both sides",
            "cores": "node or hub on one, agent and client on another" if pinned else "as the kernel likes",
        },
        figures=tuple(
            ratio(f"round trip {statistic.__name__}", statistic, ours, theirs, bound) for statistic, bound in WANTED
        ),
        machine=watch.machine(),
    )


def _pin(cells: Iterable[Sequence[int]]) -> None:
    """Put node or hub on one core and its agent on another, as they are on machines of their own."""
    cores = two_cores()
    for pids in cells:
        for pid, core in zip(pids, cores, strict=True):
            pin(pid, core)
    pin(os.getpid(), cores[1])


def _arrivals(client: Client, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], seconds: float) -> Samples:
    """Ask one image after the other, and give what the node counts from dispatch to the feature's arrival."""
    end_s = time.monotonic() + seconds
    arrivals_us = []
    while time.monotonic() < end_s:
        (timing,) = client.classify(image).devices
        arrivals_us.append(timing.arrival_us)
    return np.asarray(arrivals_us, np.float64)


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 30.0, "how long each side is measured")
    parser.add_argument("--unpinned", action="store_true", help="let the kernel choose the cores")
    chosen = parser.parse_args(argv)
    show(run(chosen.duration, pinned=not chosen.unpinned), chosen)


if __name__ == "__main__":
    main()
