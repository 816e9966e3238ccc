"""A thread with its own connection to the node that has every agent sample power, and adds it up.

The connection is its own because a question to a hung agent waits: answers must not wait with it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from devit_contract.errors import DevitError
from devit_contract.wire.client import Client
from devit_contract.wire.status import DeviceStatus
from devit_contract.wire.words import DeviceState
from devit_gateway.joules import EnergyMeter, MeteredEnergy

_LOOK_S = 2.0
"""How often new devices are looked for."""
_RETRY_S = 30.0
"""Until a device that could not be sampled is tried again."""
_SILENCE_S = 600.0
"""Until a device that sends nothing is tried again: a profiler that took the sensor over is not disturbed."""


class PowerWatch:
    """Meters all devices of one cell; a context manager around its thread."""

    def __init__(self, connect: Callable[[], Client], interval_ms: int) -> None:
        """Keep what opens a connection, and the sampling period."""
        self._connect = connect
        self._interval_ms = interval_ms
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power-watch", daemon=True)
        self._meters: dict[str, EnergyMeter] = {}
        self._due_s: dict[str, float] = {}
        self._links: dict[str, int] = {}
        self.readings: tuple[MeteredEnergy, ...] = ()
        """Energy by device so far; replaced as a whole, so that any thread may read it."""

    def __enter__(self) -> PowerWatch:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """End the thread; the node stops the agents' sampling when it finds the subscriber gone."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(DevitError), self._connect() as client:
                self._watch(client)
            self._stopping.wait(_LOOK_S)

    def _watch(self, client: Client) -> None:
        look_s, links = 0.0, 0
        while not self._stopping.is_set():
            if time.monotonic() >= look_s:
                status = client.status()
                if client.links != links:
                    self._due_s.clear()  # the node has no subscriber on this link yet
                links = client.links
                for device in status.devices:
                    self._look(client, device)
                look_s = time.monotonic() + _LOOK_S
            client.collect(min(_LOOK_S, self._interval_ms / 1000), wake=self._wake)
            for telemetry in client.take_telemetry():
                meter = self._meters.get(telemetry.device)
                if meter is None:
                    continue
                meter.take(telemetry)
                self._due_s[telemetry.device] = time.monotonic() + (_RETRY_S if telemetry.ended else _SILENCE_S)
            readings = (meter.reading() for meter in self._meters.values())
            self.readings = tuple(reading for reading in readings if reading is not None)

    def _look(self, client: Client, device: DeviceStatus) -> None:
        """Start sampling if it is due: at first, after a new link, and after it has ended."""
        if device.state is not DeviceState.READY or self._stopping.is_set():
            return
        is_new = device.links != self._links.get(device.name)
        if not is_new and time.monotonic() < self._due_s.get(device.name, 0.0):
            return
        self._links[device.name] = device.links
        self._due_s[device.name] = time.monotonic() + _RETRY_S
        meter = self._meters.setdefault(device.name, EnergyMeter(device.name, self._interval_ms))
        with suppress(DevitError):  # no sensor, or gone again: its metric is absent, and it is tried again
            meter.name_board(client.describe(device.name))
            client.start_sampling(device.name, self._interval_ms)
            self._due_s[device.name] = time.monotonic() + _SILENCE_S
