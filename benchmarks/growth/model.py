"""Many cells as a discrete-event simulation (SimPy), from what one node was measured to cost.

See README.md for what is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simpy

from devit_contract.arrays import Float64Array

_WARM_UP_SHARE = 0.1
"""Of the frames, which find the cell emptier than later ones do."""


@dataclass(frozen=True)
class Cell:
    """One node and its devices."""

    devices: int
    node_us: float
    """What a frame costs the node's one thread."""
    engine_ms: float
    """Mean time of an inference."""
    engine_spread: float = 0.05
    """Standard deviation of that over its mean."""

    @property
    def most_hz(self) -> float:
        """Frames a second that the slower one of node and devices can take."""
        return min(1e6 / self.node_us, 1e3 / self.engine_ms if self.engine_ms else np.inf)


def simulate(cell: Cell, rate_hz: float, frames: int, seed: int) -> Float64Array:
    """Send frames at random moments (Poisson), and give what each took from its request to its answer, in ms."""
    rng = np.random.default_rng(seed)
    environment = simpy.Environment()
    node = simpy.Resource(environment)
    devices = [simpy.Resource(environment) for _ in range(cell.devices)]
    taken_ms: list[float] = []

    def infer(device: simpy.Resource, engine_ms: float) -> Iterator[simpy.Event]:
        with device.request() as turn:
            yield turn
            yield environment.timeout(engine_ms)

    def frame(engines_ms: Float64Array) -> Iterator[simpy.Event]:
        start_ms = environment.now
        with node.request() as turn:
            yield turn
            yield environment.timeout(cell.node_us / 1e3)
        if cell.engine_ms:
            work = zip(devices, engines_ms.tolist(), strict=True)
            yield environment.all_of([environment.process(infer(device, ms)) for device, ms in work])
        taken_ms.append(environment.now - start_ms)

    def arrive() -> Iterator[simpy.Event]:
        sigma = cell.engine_spread * cell.engine_ms
        for gap_ms in rng.exponential(1e3 / rate_hz, frames).tolist():
            yield environment.timeout(gap_ms)
            engines_ms = np.maximum(rng.normal(cell.engine_ms, sigma, cell.devices), 0.0)
            environment.process(frame(engines_ms))

    environment.process(arrive())
    environment.run()
    return np.array(taken_ms[round(_WARM_UP_SHARE * frames) :])


def fleet(devices: int, most_in_cell: int) -> list[int]:
    """Split devices into as few cells as hold them, of sizes as equal as can be."""
    cells = -(-devices // most_in_cell)
    return [devices // cells + (place < devices % cells) for place in range(cells)]
