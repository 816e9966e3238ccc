"""Engines of one model, timed and metered in turns, so that a device whose clocks fall judges none of them alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from devit_contract.arrays import UInt8Array
from devit_engines.building.kept import Energy
from devit_engines.building.store import Latency
from devit_engines.engine import CheckedEngine

ROUNDS = 6
"""If one engine is better in all of six rounds, its median is, at 97 % confidence (1 - 2 / 2**6)."""
_BLOCK_S = 0.5
_FEWEST_RUNS, _FEWEST_METERED = 5, 12
"""Of a block; metered, each run takes a sample at least, and the meter needs ten."""
_UNTIMED_RUNS = 3  # the caches still hold the engine of the block before


class Meter(Protocol):
    """The power sensor of this device, while it samples."""

    @property
    def settle_s(self) -> float:
        """How long its readings follow a change of load."""

    @property
    def block_s(self) -> float:
        """How long the load has to last after that."""

    @property
    def scope(self) -> str:
        """What the sensor measures."""

    @property
    def is_simulated(self) -> bool:
        """Whether the board is."""

    def collect(self) -> None:
        """Take what the sensor has sent, without waiting; call it between images.

        Raises:
            EnergyError: The sensor's program has ended.
        """

    def mean_w(self, start_s: float, end_s: float) -> float:
        """Give the mean power of a stretch of the monotonic clock that has just ended.

        Raises:
            EnergyError: It has too few readings.
        """


OpenMeter = Callable[[], AbstractContextManager[Meter]]
"""Starts the sensor; an :class:`~devit_contract.errors.EnergyError` says that there is none."""
Clock = Callable[[], float]
"""Monotonic, in seconds; ``time.monotonic``, the meter's, is as fine on Linux as ``time.perf_counter``."""


@dataclass(frozen=True)
class Figures:
    """Of one engine, over all rounds."""

    latency: Latency
    energy: Energy | None
    """Absent without a meter."""
    p50_ms: tuple[float, ...]
    """Of each round."""
    j_per_answer: tuple[float, ...]
    """Of each round; empty without a meter."""


def measure_side_by_side(
    engines: Sequence[CheckedEngine],
    images: UInt8Array,
    run_options: tuple[str, ...],
    *,
    meter: Meter | None = None,
    clock_s: Clock = time.monotonic,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Figures]:
    """Run single images ``(n, H, W, C)`` through each engine for a block, then the next one, six times around.

    A block is half a second long, or with a meter what that needs, behind a part that is not counted. ``report`` is
    called with the blocks that are done, and with their number.

    Raises:
        EngineError: An engine fails.
        EnergyError: The meter does.
    """
    blocks: list[list[_Block]] = [[] for _ in engines]
    for index in range(ROUNDS * len(engines)):
        report(index, ROUNDS * len(engines))
        place = index % len(engines)
        blocks[place].append(_block(engines[place], images, meter, clock_s))
    report(ROUNDS * len(engines), ROUNDS * len(engines))
    return [_figures(of_one, run_options, meter) for of_one in blocks]


@dataclass(frozen=True)
class _Block:
    taken_ms: list[float]
    mean_w: float | None
    j_per_answer: float | None


def _block(engine: CheckedEngine, images: UInt8Array, meter: Meter | None, clock_s: Clock) -> _Block:
    _run_for(engine, images, meter, clock_s, meter.settle_s if meter is not None else 0.0, _UNTIMED_RUNS)
    start_s = clock_s()
    block_s, fewest = (_BLOCK_S, _FEWEST_RUNS) if meter is None else (meter.block_s, _FEWEST_METERED)
    taken_ms = _run_for(engine, images, meter, clock_s, block_s, fewest)
    end_s = clock_s()
    if meter is None:
        return _Block(taken_ms, None, None)
    mean_w = meter.mean_w(start_s, end_s)
    return _Block(taken_ms, mean_w, mean_w * (end_s - start_s) / len(taken_ms))


def _run_for(
    engine: CheckedEngine, images: UInt8Array, meter: Meter | None, clock_s: Clock, duration_s: float, fewest: int
) -> list[float]:
    taken_ms: list[float] = []
    until_s = clock_s() + duration_s
    while len(taken_ms) < fewest or clock_s() < until_s:
        index = len(taken_ms) % len(images)
        before_s = clock_s()
        engine.unchecked_features(images[index : index + 1])
        taken_ms.append((clock_s() - before_s) * 1000.0)
        if meter is not None:
            meter.collect()
    return taken_ms


def _figures(blocks: Sequence[_Block], run_options: tuple[str, ...], meter: Meter | None) -> Figures:
    taken_ms = [each for block in blocks for each in block.taken_ms]
    p50_ms, p99_ms = np.percentile(taken_ms, (50, 99))
    latency = Latency(float(p50_ms), float(p99_ms), len(taken_ms), run_options)
    joules = [block.j_per_answer for block in blocks if block.j_per_answer is not None]
    watts = [block.mean_w for block in blocks if block.mean_w is not None]
    energy = None
    if meter is not None:
        energy = Energy(statistics.median(joules), statistics.median(watts), meter.scope, meter.is_simulated)
    return Figures(latency, energy, tuple(statistics.median(block.taken_ms) for block in blocks), tuple(joules))
