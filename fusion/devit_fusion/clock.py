"""The node's time: read once for each thing that it handles, so that a replay can set it."""

from __future__ import annotations

import time


class Clock:
    """The time of what is handled now. Whatever follows from one message happens at the same time."""

    def __init__(self) -> None:
        """Start now."""
        self.now_ns = time.monotonic_ns()
        """When what is handled now came, on the monotonic clock."""

    def tick(self) -> int:
        """Go on to the next thing."""
        self.now_ns = now_ns = time.monotonic_ns()
        return now_ns

    def read_ns(self) -> int:
        """Read the time itself, to measure by; nothing is decided by it."""
        return time.monotonic_ns()
