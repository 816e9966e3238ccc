"""How long things take, counted into fixed buckets: two additions a measurement, no list that grows."""

from __future__ import annotations

from bisect import bisect_left

from devit_contract.wire.messages import Histogram

BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""From half a millisecond to a second, 1-2-5: what a cell's parts take."""
_BOUNDS_US = tuple(round(bound_s * 1e6) for bound_s in BOUNDS_S)


class Meter:
    """Durations since start."""

    __slots__ = ("_counts", "_sum_us")

    def __init__(self) -> None:
        """Start with none."""
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_us = 0

    def add_us(self, duration_us: int) -> None:
        """Count one duration."""
        self._counts[bisect_left(_BOUNDS_US, duration_us)] += 1
        self._sum_us += duration_us

    def histogram(self) -> Histogram:
        """Show what has been counted."""
        return Histogram(BOUNDS_S, tuple(self._counts), self._sum_us / 1e6)
