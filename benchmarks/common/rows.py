"""Rows of ``benchmarks/results.json``: what was measured of one side, and how it compares with ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from benchmarks.common.machine import Machine

Interval = tuple[float, float]
RESULTS = Path(__file__).parents[1] / "results"
_RESAMPLES = 1000


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One side's figure."""

    figure: str
    """What was measured: ``null cell of 4, client to answer``."""
    side: str
    """Whose it is: ``devit``, ``grpcio unary``."""
    unit: str
    p50: float
    p99: float | None = None
    """``None`` where the figure is no distribution, such as a rate or a size."""
    p50_interval: Interval | None = None
    """95 % by bootstrap over blocks, as those of neighbouring seconds are alike."""
    p99_interval: Interval | None = None
    samples: int
    ratio: float | None = None
    """p50 of this side over that of ``against``, as measured."""
    against: str = ""
    """The side that ``ratio`` compares with."""
    wanted: str = ""
    """What is wanted of the ratio, ``>= 4 x`` or ``<= 0.55 x``; empty where nothing is wanted of it."""
    holds: bool | None = None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What one benchmark found in one run: ``benchmarks/results/NAME.json``."""

    benchmark: str
    about: str
    command: str
    settings: dict[str, str | float]
    versions: dict[str, str]
    """Packages of the other sides, and their versions."""
    machine: Machine
    rows: tuple[Row, ...]

    def save(self, folder: Path = RESULTS) -> Path:
        """Write the file, whole or not at all."""
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.benchmark}.json"
        path.with_suffix(".part").write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        return path.with_suffix(".part").replace(path)


def bootstrap(blocks: list[npt.NDArray[np.float64]], statistic: Callable[[npt.NDArray[np.float64]], float]) -> Interval:
    """Give the 95 % interval of a statistic, resampling whole blocks."""
    rng = np.random.default_rng(1)
    draws = rng.integers(len(blocks), size=(_RESAMPLES, len(blocks)))
    found = [statistic(np.concatenate([blocks[index] for index in draw])) for draw in draws]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)
