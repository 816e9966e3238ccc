"""How long an engine takes for one image, measured where it was built."""

from __future__ import annotations

import time

import numpy as np

from devit_contract.arrays import UInt8Array
from devit_contract.machine import power_mode
from devit_engines.building.store import Latency
from devit_engines.engine import CheckedEngine

_WARM_UP_S = 0.2  # idle clocks are low, and the first frames after a pause are slow (dusty-nv, jetson-inference #2042)
_LONGEST_S = 3.0
_RUNS = 200
_FEWEST_RUNS = 10


def measure_latency(engine: CheckedEngine, images: UInt8Array, run_options: tuple[str, ...]) -> Latency:
    """Run single images ``(n, H, W, C)`` one after the other, 200 times or three seconds long, after a warm-up.

    ``run_options`` say how the engine was loaded.
    """
    start_s = time.perf_counter()
    while time.perf_counter() - start_s < _WARM_UP_S:
        engine.unchecked_features(images[:1])
    taken_ms: list[float] = []
    start_s = time.perf_counter()
    while len(taken_ms) < _RUNS and (len(taken_ms) < _FEWEST_RUNS or time.perf_counter() - start_s < _LONGEST_S):
        index = len(taken_ms) % len(images)
        before_s = time.perf_counter()
        engine.unchecked_features(images[index : index + 1])
        taken_ms.append((time.perf_counter() - before_s) * 1000.0)
    p50_ms, p99_ms = np.percentile(taken_ms, (50, 99))
    return Latency(float(p50_ms), float(p99_ms), len(taken_ms), run_options)


def mode_name() -> str | None:
    """Name the power mode that decides latency and joules, as nvpmodel calls it; None where there is no such thing."""
    mode = power_mode()
    return None if mode is None else str(mode)
