"""What the heads of a cell cost: CPU time and memory at the node's start, and the first frame of a new subset.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/fusion_head/start.py 4x384x1000 10x192x1000

Each head, DEVICESxDIMxCLASSES, is measured in a process of its own. Memory is what the process holds after the head was
made, beyond what it held with the statistics alone. Times of frames are CPU time of the thread that fuses them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics


def random_head(devices: int, dim: int, classes: int) -> FusionHead:
    """Make a head whose features are correlated, as those of submodels of one image are."""
    rng, total = np.random.default_rng(1), devices * dim
    mixing = rng.standard_normal((total, 64)) @ rng.standard_normal((64, total)) / 8 + rng.standard_normal(
        (total, total)
    )
    return FusionHead(
        (dim,) * devices,
        rng.standard_normal((classes, total)) / total**0.5,
        rng.standard_normal(classes),
        FusionStatistics(rng.standard_normal(total), mixing @ mixing.T / total),
    )


def resident_mb() -> float:
    """Read how much memory this process holds now, in MB of 10^6 bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def measure(devices: int, dim: int, classes: int) -> dict[str, float]:
    """Make one head, then fuse two frames of each number of missing devices."""
    head, before_mb = random_head(devices, dim, classes), resident_mb()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    fusion = Fusion(head)
    found = {
        "start_s": time.perf_counter() - start_s,
        "start_cpu_s": time.process_time() - start_cpu_s,
        "heads_mb": resident_mb() - before_mb,
        "resident_mb": resident_mb(),
    }
    features = np.random.default_rng(2).standard_normal((devices, dim)).astype(np.float32)
    for lost in range(devices):
        frame = {device: features[device] for device in range(lost, devices)}
        for name, wait_s in (("first", 0.0), ("second", 0.0), ("later", 2.0)):
            time.sleep(wait_s)  # a head that is computed beside the frames gets its time
            start_s = time.thread_time()
            fusion.logits(frame)
            found[f"{lost}_lost_{name}_frame_cpu_ms"] = (time.thread_time() - start_s) * 1000
    return found | {"resident_at_end_mb": resident_mb()}


def main(heads: list[str]) -> None:
    """Measure each head in a process of its own, and print a line of JSON for it."""
    if os.environ.get("DEVIT_MEASURE") == "1":
        figures = measure(*map(int, heads[0].split("x")))
        print(json.dumps({name: round(value, 2) for name, value in figures.items()}))  # noqa: T201 - its output
        return
    for head in heads:
        print(head, flush=True)  # noqa: T201 - its output
        subprocess.run([sys.executable, __file__, head], env=os.environ | {"DEVIT_MEASURE": "1"}, check=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["4x384x1000", "10x192x1000"])
