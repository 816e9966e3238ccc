"""Samples the machine of the fusion node while a run lasts, where that is the machine that asks."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType

from devit_contract.artefacts.fleet import parse_endpoint
from devit_contract.errors import EnergyError
from devit_contract.machine import board_model
from devit_contract.wire.messages import Description, PowerLine, SamplingCost
from devit_profiling.record.record import NODE, DeviceRecord
from devit_profiling.sensor.local_sampler import LocalSampler

ELSEWHERE = (
    "the node runs on another machine than profile: run profile there, or state its watts as [[extra]] in the fleet "
    "file, unless it runs on one of the devices, whose joules contain it then"
)


class NodePower:
    """A context manager; without a sensor of the node's machine it has no lines, and tells why."""

    def __init__(self, endpoint: str, interval_ms: int) -> None:
        """Choose the sensor; nothing is started yet.

        Args:
            endpoint: The node's ``client_endpoint``.
            interval_ms: Sampling period in milliseconds.
        """
        self._problem = "" if is_here(endpoint) else ELSEWHERE
        self._sampler: LocalSampler | None = None
        self._cost: SamplingCost | None = None
        self._stop = threading.Event()
        # Lines carry the time at which they are taken, so somebody has to wait for them while the cell is asked.
        self._thread = threading.Thread(target=self._collect, daemon=True)
        if not self._problem:
            try:
                self._sampler = LocalSampler(interval_ms)
            except EnergyError as err:
                self._problem = str(err)

    @property
    def lines(self) -> tuple[PowerLine, ...]:
        """All that have come."""
        return tuple(self._sampler.lines) if self._sampler is not None else ()

    @property
    def record(self) -> DeviceRecord:
        """What a run keeps of it; its sensor is empty where it was never started."""
        sensor = " ".join(self._sampler.command) if self._sampler is not None else ""
        return DeviceRecord(NODE, -1, Description(board_model(), "", "", sensor, 0), self._problem, self._cost)

    def __enter__(self) -> NodePower:
        """Start sampling; what fails is told in the record."""
        if self._sampler is not None:
            try:
                self._sampler.__enter__()
            except EnergyError as err:
                self._sampler, self._problem = None, str(err)
            else:
                self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and keep what it has cost."""
        self._stop.set()
        if self._sampler is not None:
            self._thread.join()
            self._sampler.__exit__(kind, error, trace)
            self._cost = self._sampler.cost

    def _collect(self) -> None:
        assert self._sampler is not None  # the thread is started with one
        while not self._stop.is_set() and not self._sampler.problem:
            self._sampler.collect(_TURN_S)
        self._problem = self._sampler.problem


_TURN_S = 0.1


def is_here(endpoint: str) -> bool:
    """Tell whether an endpoint belongs to this machine: only an own address can be bound.

    >>> is_here("tcp://127.0.0.1:7712"), is_here("tcp://192.0.2.1:7712")
    (True, False)
    """
    host, _ = parse_endpoint(endpoint, "endpoint")
    with suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
    return False
