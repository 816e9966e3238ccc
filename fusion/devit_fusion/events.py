"""What a node notices: the latest for whoever asks, every one in the log."""

from __future__ import annotations

import time
from collections import deque

from devit_contract.journal import Log, Priority
from devit_contract.messages import Happening

_KEPT = 32


class Events:
    """The latest events of one node."""

    def __init__(self, log: Log) -> None:
        """Start with none."""
        self._log = log
        self._latest: deque[tuple[int, str, str]] = deque(maxlen=_KEPT)

    def note(self, device: str, text: str, priority: Priority = Priority.INFO) -> None:
        """Keep an event and log it; ``device`` is empty where it concerns no single one."""
        self._latest.appendleft((time.monotonic_ns(), device, text))
        self._log.say(priority, f"{device}: {text}" if device else text, **({"device": device} if device else {}))

    def latest(self) -> tuple[Happening, ...]:
        """Show them, newest first."""
        now_ns = time.monotonic_ns()
        return tuple(Happening((now_ns - at_ns) / 1e9, device, text) for at_ns, device, text in self._latest)
