"""What a node notices: the latest events for its status, every one in the log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from devit_contract.service.journal import Log, Priority
from devit_contract.wire.status import Event

_KEPT = 64
_SPAN_NS, _MAX_PER_SPAN = 60_000_000_000, 20


class Events:
    """The latest events of one node."""

    def __init__(self, log: Log) -> None:
        """Start with none."""
        self._log = log
        self._latest: deque[tuple[int, str, str]] = deque(maxlen=_KEPT)
        self.listener: Callable[[str, str, Priority], None] | None = None
        """Who is told of each event that is kept."""
        self._noted: dict[str, tuple[int, int]] = {}  # by device: start of the present span, events in it

    def note(self, device: str, text: str, priority: Priority = Priority.INFO) -> None:
        """Keep an event and log it; ``device``, or a client, is empty if it concerns no single one.

        Each has twenty a minute: a faulty one must not push out the events of others, nor fill the disk. An error is
        the node's own, and always told.
        """
        now_ns = time.monotonic_ns()
        start_ns, count = self._noted.get(device, (now_ns, 0))
        if now_ns - start_ns > _SPAN_NS:
            start_ns, count = now_ns, 0
        self._noted[device] = start_ns, count + 1
        if count >= _MAX_PER_SPAN and priority > Priority.ERROR:
            if count > _MAX_PER_SPAN:
                return
            text = "more events than are kept, for a minute"
        self._latest.appendleft((now_ns, device, text))
        if self.listener is not None:
            self.listener(device, text, priority)
        self._log.log(priority, f"{device}: {text}" if device else text, **({"device": device} if device else {}))

    def latest(self) -> tuple[Event, ...]:
        """Show them, newest first."""
        now_ns = time.monotonic_ns()
        return tuple(Event((now_ns - at_ns) / 1e9, device, text) for at_ns, device, text in self._latest)
