"""Power samples on request: the sampler's lines become telemetry, its failures become words."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import zmq

from devit_contract.errors import EnergyError
from devit_contract.messages import PowerLine, Telemetry
from devit_profiling.sampler import TegrastatsSampler

if TYPE_CHECKING:
    from devit_profiling.tegrastats import StampedLine


_MAX_LINE_CHARS = 4096
_MAX_LINES = 8
"""In one message, so that it stays below what the node accepts."""
_MAX_WAITING = 4096


class PowerFeed:
    """At most one running sampler, watched by the agent's own poller."""

    def __init__(self, command: Sequence[str]) -> None:
        """Keep the command; empty means that this device has no sensor."""
        self._command = command
        self._sampler: TegrastatsSampler | None = None
        self._waiting: deque[StampedLine] = deque()
        self._descriptor = -1
        self._poller: zmq.Poller | None = None

    def start(self, interval_ms: int, poller: zmq.Poller) -> str:
        """Start sampling; a run that is under way ends first.

        Returns:
            Why it could not be started, empty if it was.
        """
        self.stop()
        if not self._command:
            return "expected a power sensor, found none: set `tegrastats` in agent.toml"
        if not 10 <= interval_ms <= 60_000:
            return f"expected a sampling interval of 10 to 60000 ms, found {interval_ms}"
        sampler = TegrastatsSampler(self._command, interval_ms)
        try:
            sampler.__enter__()
        except EnergyError as err:
            return str(err)
        self._sampler, self._descriptor, self._poller = sampler, sampler.fileno(), poller
        poller.register(self._descriptor, zmq.POLLIN)
        return ""

    def stop(self) -> None:
        """Stop sampling, if it is under way."""
        if self._sampler is not None and self._poller is not None:
            self._poller.unregister(self._descriptor)
            self._sampler.__exit__(None, None, None)
            self._sampler = None
            self._waiting.clear()

    def take(self, device: str) -> Telemetry | None:
        """Hand out what has come since the last call; ``None`` where nothing has."""
        if self._sampler is None:
            return None
        try:
            self._waiting.extend(self._sampler.read_lines())
            if len(self._waiting) > _MAX_WAITING or any(len(line.text) > _MAX_LINE_CHARS for line in self._waiting):
                raise EnergyError(f"{self._command[0]} prints more than lines of tegrastats: correct agent.toml")
        except EnergyError as err:
            self.stop()
            return Telemetry(device, (), ended=str(err))
        if not self._waiting:
            return None
        batch = [self._waiting.popleft() for _ in range(min(_MAX_LINES, len(self._waiting)))]
        return Telemetry(device, tuple(PowerLine(line.monotonic_ns, line.text) for line in batch))
