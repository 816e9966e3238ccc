"""Power samples on request: the sampler's lines become telemetry, its failures become text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from devit_contract.errors import EnergyError
from devit_contract.wire.messages import PowerLine, SamplingCost, Telemetry
from devit_profiling.sensor.sampler import PowerSampler

_MAX_LINES = 8
"""In one message, so that it stays below what the node accepts."""
_MAX_WAITING = 4096


class PowerFeed:
    """At most one running sampler, watched by the agent's poller."""

    def __init__(self, command: Sequence[str]) -> None:
        """Keep the command; empty means that this device has no sensor."""
        self.cost: SamplingCost | None = None
        """Of the last sampling, once it has ended; ``None`` if no sample came."""
        self._command = command
        self._sampler: PowerSampler | None = None
        self._waiting: deque[PowerLine] = deque()
        self._ended = ""
        self._reader_cpu_ns = 0
        self._descriptor = -1
        self._poller: zmq.Poller | None = None

    @property
    def has_more(self) -> bool:
        """Whether something waits to be sent, for which no event will come."""
        return bool(self._waiting or self._ended)

    def start(self, interval_ms: int, poller: zmq.Poller) -> None:
        """Start sampling; a running sampling ends first.

        Raises:
            EnergyError: It could not be started.
        """
        self.stop()
        self.cost = None
        if not self._command:
            raise EnergyError("expected a power sensor, found none: set `tegrastats` in agent.toml")
        if not 10 <= interval_ms <= 60_000:
            raise EnergyError(f"expected a sampling interval of 10 to 60000 ms, found {interval_ms}")
        sampler = PowerSampler(self._command, interval_ms).__enter__()
        self._sampler, self._descriptor, self._poller = sampler, sampler.fileno(), poller
        self._reader_cpu_ns = 0
        poller.register(self._descriptor, zmq.POLLIN)

    def stop(self) -> None:
        """Stop sampling, if it runs; unsent lines are dropped."""
        self._end()
        self._waiting.clear()
        self._ended = ""

    def feed(self, device: str, send: Callable[[Telemetry], None]) -> None:
        """Send the lines since the last call, some at a time; the reason of an early end comes last."""
        if self._sampler is None and not self.has_more:
            return
        start_ns = time.thread_time_ns()
        self._read()
        batch = [self._waiting.popleft() for _ in range(min(_MAX_LINES, len(self._waiting)))]
        ended = ""
        if not self._waiting:
            ended, self._ended = self._ended, ""
        if batch or ended:
            send(Telemetry(device, tuple(batch), ended))
        self._reader_cpu_ns += time.thread_time_ns() - start_ns

    def _read(self) -> None:
        if self._sampler is None:
            return
        try:
            lines = self._sampler.read_lines()
            if len(self._waiting) + len(lines) > _MAX_WAITING:
                raise EnergyError(f"{self._command[0]} prints more lines than can be sent: sample less often")
            self._waiting.extend(lines)
        except EnergyError as err:
            self._ended = str(err)
            self._end()

    def _end(self) -> None:
        if self._sampler is not None and self._poller is not None:
            self._poller.unregister(self._descriptor)
            self._sampler.leave()  # a child may take two seconds to go, and frames do not wait for that
            self.cost = self._sampler.cost(self._reader_cpu_ns / 1e9)
            self._sampler = None
