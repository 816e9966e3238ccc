"""What the cell adds to engines of a fixed pace: client to answer, against the bare cell with the same engines.

python -m benchmarks.network.paced
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import Figure, Report, alternate, arguments, asked, difference, p50, p99, show
from benchmarks.network.bare import BareCell
from benchmarks.network.bundles import write_null_bundle
from benchmarks.network.makers import paced

from devit_pipeline.local_cell import LocalCell, LocalDevice

DEVICES, DIM, CLASSES, SIDE = 4, 192, 100, 32
PACES_MS = (0.75, 3.0, 20.0)
WANTED = ((p50, 450.0), (p99, 1000.0))
ABOUT = f"{DEVICES} agents of a fixed pace, one request under way at a time: client to answer less the pace"


def run(duration_s: float, paces_ms: Sequence[float]) -> Report:
    """Measure both sides in turns, pace by pace."""
    watch = Watch()
    figures: list[Figure] = []
    for pace_ms in paces_ms:
        figures += _at_pace(pace_ms, duration_s)
    return Report(
        benchmark="paced",
        about=ABOUT,
        other="bare cell",
        settings={"image bytes": SIDE * SIDE * 3, "feature bytes": DIM * 4, "classes": CLASSES, "CURVE": "both sides"},
        figures=tuple(figures),
        machine=watch.machine(),
    )


def _at_pace(pace_ms: float, duration_s: float) -> list[Figure]:
    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    shape = (SIDE, SIDE, 3)
    devices = [LocalDevice(f"device{index}", index, engine=f"paced:{pace_ms:g}") for index in range(DEVICES)]
    bare_engines = [partial(paced, pace_ms, shape, DIM)] * DEVICES
    with tempfile.TemporaryDirectory(prefix="devit-") as place:
        bundle = Path(place) / "bundle"
        write_null_bundle(bundle, (DIM,) * DEVICES, CLASSES, shape)
        cell = LocalCell(bundle, Path(place) / "cell", devices, deadline_ms=5000)
        with cell, cell.client() as client, BareCell(bare_engines, shape, CLASSES * 4) as bare:
            raw = image.tobytes()
            devit = partial(asked, lambda: client.classify(image).latency_s, pace_ms)
            other = partial(asked, lambda: bare.ask(raw), pace_ms)
            ours, theirs = alternate(f"pace {pace_ms:g} ms", (devit, other), duration_s)
    return [
        difference(f"pace {pace_ms:g} ms, {statistic.__name__}", statistic, ours, theirs, bound_us)
        for statistic, bound_us in WANTED
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 60.0, "how long each side is measured at each pace")
    parser.add_argument("--paces", type=float, nargs="+", default=PACES_MS, metavar="MS", help="what the engines take")
    chosen = parser.parse_args(argv)
    show(run(chosen.duration, chosen.paces), chosen)


if __name__ == "__main__":
    main()
