"""Tells a sensor from a program that prints without end, before its lines fill the memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

from devit_contract.wire.messages import PowerLine

_TIMES_AS_OFTEN = 10
_AT_ONCE = 1000
"""Lines that may come beyond that, as after a pause of the reader."""
_MAX_LINE_CHARS = 4096


class LineBudget:
    """Counts the lines of one sampling: ten times as many as were asked for are no sensor's, nor are long ones."""

    def __init__(self, interval_ms: int) -> None:
        """Start now."""
        self._per_ns = _TIMES_AS_OFTEN / (interval_ms * 1e6)
        self._start_ns = time.monotonic_ns()
        self._lines = 0

    def has_room(self, lines: Sequence[PowerLine]) -> bool:
        """Count these lines, and check that a sensor can have printed them."""
        self._lines += len(lines)
        allowed = _AT_ONCE + (time.monotonic_ns() - self._start_ns) * self._per_ns
        return self._lines <= allowed and all(len(line.text) <= _MAX_LINE_CHARS for line in lines)
