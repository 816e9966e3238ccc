"""Power samples on request: the sampler's lines become telemetry, its failures become text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from devit_contract.errors import EnergyError
from devit_contract.wire.messages import SamplingCost, Telemetry
from devit_contract.wire.waiting import Waiter

if TYPE_CHECKING:
    from devit_profiling.sensor.sampler import PowerSampler

_MAX_LINES = 8
"""In one message, so that it stays below what the node accepts."""


class PowerFeed:
    """At most one running sampler, watched by the agent's loop."""

    def __init__(self, command: Sequence[str]) -> None:
        """Keep the command; empty means that this device has no sensor."""
        self.cost: SamplingCost | None = None
        """Of the last sampling, once it has ended; ``None`` if no sample came."""
        self._command = command
        self._sampler: PowerSampler | None = None
        self._reader_cpu_ns = 0
        self._descriptor = -1
        self._waiter: Waiter | None = None

    def start(self, interval_ms: int, waiter: Waiter) -> None:
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
        from devit_profiling.sensor.sampler import PowerSampler

        sampler = PowerSampler(self._command, interval_ms).__enter__()
        self._sampler, self._descriptor, self._waiter = sampler, sampler.fileno(), waiter
        self._reader_cpu_ns = 0
        waiter.add(self._descriptor)

    def stop(self) -> None:
        """Stop sampling, if it runs; lines that were not fed are dropped."""
        if self._sampler is not None and self._waiter is not None:
            self._waiter.remove(self._descriptor)
            self._sampler.leave()  # a child may take two seconds to go, and frames do not wait for that
            self.cost = self._sampler.cost(self._reader_cpu_ns / 1e9)
            self._sampler = None

    def feed(self, device: str, send: Callable[[Telemetry], None]) -> None:
        """Send the lines since the last call, all of them: a slow engine leaves many; or why there are no more."""
        if self._sampler is None:
            return
        start_ns = time.thread_time_ns()
        try:
            lines = self._sampler.read_lines()
        except EnergyError as err:
            self.stop()
            send(Telemetry(device, (), str(err)))
            return
        for first in range(0, len(lines), _MAX_LINES):
            send(Telemetry(device, tuple(lines[first : first + _MAX_LINES]), ""))
        self._reader_cpu_ns += time.thread_time_ns() - start_ns
