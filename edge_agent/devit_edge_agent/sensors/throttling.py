"""Looks now and then whether this board slows itself down, for the node, which may then ask others first."""

from __future__ import annotations

import time
from pathlib import Path

from devit_contract.machine import ROOT, Throttling, highest_clocks_mhz, power_mode, throttle_alerts

_PERIOD_NS = 5_000_000_000
"""Between two looks: each reads some dozen files, and frames wait for that."""


class ThrottlingWatch:
    """Answers every ping of the node, and reads the board's files now and then."""

    def __init__(self, root: Path) -> None:
        """Look for the first time."""
        self._root = root
        self._highest_mhz: dict[tuple[object, str], int] = {}
        """By power mode and clock: more than it allows was never seen."""
        self._now = self._look()
        self._next_ns = time.monotonic_ns() + _PERIOD_NS

    def now(self) -> Throttling | None:
        """Tell how the board is slowed down, as of some seconds ago; ``None`` where its files do not say."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + _PERIOD_NS
            self._now = self._look()
        return self._now

    def _look(self) -> Throttling | None:
        alerts, allowed_mhz = throttle_alerts(self._root), highest_clocks_mhz(self._root)
        if alerts is None and not allowed_mhz:
            return None
        mode = power_mode(self._root)
        share = 1.0
        for name, mhz in allowed_mhz.items():
            clock = mode and mode.number, name
            highest_mhz = self._highest_mhz[clock] = max(mhz, self._highest_mhz.get(clock, 1))
            share = min(share, mhz / highest_mhz)
        return Throttling(alerts or 0, share, is_simulated=self._root != ROOT)
