"""Fusion of one frame with a device missing, against fusion with all of them.

python -m benchmarks.network.fusion
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import Figure, Report, Samples, alternate, arguments, p50, ratio, show
from benchmarks.network.bare import Children, receive
from benchmarks.network.bundles import random_head

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.head import Fusion

HEADS = ("4x768x1000", "4x192x100")
"""Devices, feature dimension, classes."""
WANTED = 1.05
ABOUT = "Fusion.logits of one frame with one device missing, whichever, against all devices"


def run(duration_s: float, heads: Sequence[str]) -> Report:
    """Measure both sides in turns, in a process whose linear algebra has one thread, as the node's has."""
    with Children() as children:
        watch = Watch()
        found = receive(children.start(_measure, duration_s, heads), list, 60 + 10 * duration_s)
        return Report(
            benchmark="fusion",
            about=ABOUT,
            other="all devices",
            settings={"heads": "devices x feature dimension x classes"},
            figures=tuple(found),
            machine=watch.machine(),
        )


def _measure(parent: Connection, duration_s: float, heads: Sequence[str]) -> None:
    figures: list[Figure] = []
    for head in heads:
        devices, dim, classes = map(int, head.split("x"))
        fusion = Fusion(random_head((dim,) * devices, classes))
        rng = np.random.default_rng(3)
        features = {device: rng.normal(size=dim).astype(np.float32) for device in range(devices)}
        partial_frames = [{i: f for i, f in features.items() if i != lost} for lost in range(devices)]
        sides = (partial(_fused, fusion, partial_frames), partial(_fused, fusion, [features] * devices))
        missing, all_devices = alternate(head, sides, duration_s)
        figures.append(ratio(f"{head}, p50", p50, missing, all_devices, WANTED))
    parent.send(figures)


def _fused(fusion: Fusion, frames: list[dict[int, Float32Array]], duration_s: float) -> Samples:
    """Fuse each frame again and again: in service too, it is the same device that stays away."""
    clock = time.perf_counter_ns
    taken_us = []
    for features in frames:
        start_ns = clock()
        end_ns = start_ns + round(duration_s * 1e9 / len(frames))
        while start_ns < end_ns:
            start_ns = clock()
            fusion.logits(features)
            taken_us.append((clock() - start_ns) / 1000)
    return np.asarray(taken_us, np.float64)


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 10.0, "how long each side is measured with each head")
    parser.add_argument("--heads", nargs="+", default=HEADS, metavar="NxDxK", help="devices x dimension x classes")
    chosen = parser.parse_args(argv)
    show(run(chosen.duration, chosen.heads), chosen)


if __name__ == "__main__":
    main()
