"""Counts this board's over-current events since the agent's start, for the node's status."""

from __future__ import annotations

import time
from pathlib import Path

from devit_contract.machine import OverCurrentEvents, over_current_events

_PERIOD_NS = 5_000_000_000
"""Between two readings: each asks the board's firmware three times, and frames wait for that."""


class OverCurrentWatch:
    """Answers every ping of the node, and reads the board's counters now and then."""

    def __init__(self, root: Path) -> None:
        """Count from now on; or, where the kernel's counters appear later, from the first reading on."""
        self._root = root
        self._first = over_current_events(root)
        self._since = self._first.since(self._first) if self._first is not None else None
        self._next_ns = time.monotonic_ns() + _PERIOD_NS

    def since_start(self) -> OverCurrentEvents | None:
        """Give the events, as of some seconds ago; ``None`` where the board does not count them."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + _PERIOD_NS
            found = over_current_events(self._root)
            self._first = self._first or found
            self._since = found.since(self._first) if found is not None else None
        return self._since
