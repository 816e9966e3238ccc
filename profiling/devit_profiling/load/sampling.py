"""Power sampling on the devices of a cell while it is measured."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from devit_contract.errors import LinkError
from devit_contract.wire.client import Client
from devit_contract.wire.messages import PowerLine, SamplingCost
from devit_profiling.load.schedule import STEP_S, first_line_s, tail_s
from devit_profiling.sensor.flood import LineBudget


class Sampling:
    """Starts and stops every device's sampler, and collects the lines; failures are kept, and raise nothing."""

    def __init__(self, client: Client, devices: Iterable[str], interval_ms: int) -> None:
        """Keep whom to ask for samples, and how often they take them; nothing is started yet."""
        self.lines: dict[str, list[PowerLine]] = {device: [] for device in devices}
        self.errors: dict[str, str] = {}
        """Device to why there are no power samples, or no more."""
        self.costs: dict[str, SamplingCost] = {}
        """Device to what sampling has cost it."""
        self._client = client
        self._interval_ms = interval_ms
        self._running: set[str] = set()
        self._budgets = {device: LineBudget(interval_ms) for device in self.lines}

    def start(self) -> None:
        """Start every sampler, and wait for the first line of each."""
        for device in self.lines:
            self._running.add(device)
            try:
                self._client.start_sampling(device, self._interval_ms)
            except LinkError as err:
                self._running.discard(device)
                self.errors[device] = str(err)
        limit_s = first_line_s(self._interval_ms)
        end_s = time.monotonic() + limit_s
        while self._silent() and time.monotonic() < end_s:
            self.wait(STEP_S)
        for device in self._silent():
            self.errors[device] = f"no power sample came within {limit_s:.1f} s: run its sampler by hand"

    def stop(self) -> None:
        """Stop every sampler, ask what it has cost, and collect the last lines."""
        for device in self.lines:
            # An agent that cannot be reached stops its sampler on its own.
            with suppress(LinkError):
                if (cost := self._client.stop_sampling(device)) is not None:
                    self.costs[device] = cost
        self._running.clear()
        self.collect()

    def wait(self, duration_s: float) -> None:
        """Let time pass, and collect the lines that come."""
        self._client.wait(duration_s)
        self.collect()

    def wait_for_tail(self) -> None:
        """Wait for the samples after the last phase, which its end is interpolated with."""
        self.wait(tail_s(self._interval_ms) if self._running else 0.0)

    def collect(self) -> None:
        """Take the lines that have come."""
        for telemetry in self._client.take_telemetry():
            device, ended = telemetry.device, telemetry.ended
            if device not in self._budgets:
                continue
            if self._budgets[device].has_room(telemetry.lines):
                self.lines[device] += [PowerLine(line.monotonic_ns, line.text) for line in telemetry.lines]
            else:
                del self._budgets[device]  # all that it sends from now on is left out
                ended = f"it sends more than lines of tegrastats every {self._interval_ms} ms: check its agent"
            if ended:
                self.errors[device] = ended
                self._running.discard(device)

    def _silent(self) -> list[str]:
        return [device for device in sorted(self._running) if not self.lines[device]]
