"""Samples the machine of the fusion node during a run, where that is the host."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from devit_contract.artefacts.fleet import parse_endpoint
from devit_contract.errors import EnergyError
from devit_contract.machine import board_compatible, board_model
from devit_contract.wire.messages import Description, PowerLine
from devit_profiling.record.record import NODE, DeviceRecord
from devit_profiling.sensor.local_sampler import LocalSampler

ELSEWHERE = (
    "the node runs on another machine than profile: run profile there, or state its watts as [[extra]] in the fleet "
    "file, unless it runs on one of the devices, whose joules contain it then"
)
_TURN_S = 0.1


class NodePower:
    """A context manager; without a sensor of the node's machine it has no lines, and its record says why."""

    def __init__(self, endpoint: str, interval_ms: int, left_out: str = "") -> None:
        """Keep the node's ``client_endpoint``, the sampling period, and why it shall not be sampled, if so."""
        self._endpoint = endpoint
        self._interval_ms = interval_ms
        self._error = left_out
        self._sampler: LocalSampler | None = None
        self._stop = threading.Event()
        # Lines are stamped when they are read, so a thread reads them while requests are sent.
        self._thread = threading.Thread(target=self._collect, daemon=True)

    @property
    def lines(self) -> tuple[PowerLine, ...]:
        """All lines so far."""
        return tuple(self._sampler.lines) if self._sampler is not None else ()

    @property
    def record(self) -> DeviceRecord:
        """What a run keeps of the machine; its sensor is empty where sampling never started."""
        sensor = " ".join(self._sampler.command) if self._sampler is not None else ""
        cost = self._sampler.whole_cost if self._sampler is not None else None
        about = Description(board_model(), "", "", sensor, 0, compatible=board_compatible())
        return DeviceRecord(NODE, -1, about, self._error, cost)

    def __enter__(self) -> NodePower:
        """Start sampling; a failure is kept in the record."""
        if not self._error and not is_here(self._endpoint):
            self._error = ELSEWHERE
        if self._error:
            return self
        try:
            self._sampler = LocalSampler(self._interval_ms).__enter__()
        except EnergyError as err:
            self._error = str(err)
        else:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop sampling."""
        self._stop.set()
        if self._sampler is not None:
            self._thread.join()
            self._sampler.__exit__()

    def _collect(self) -> None:
        assert self._sampler is not None  # the thread is started with one
        while not self._stop.is_set() and not self._sampler.problem:
            self._sampler.collect(_TURN_S)
        self._error = self._sampler.problem


def is_here(endpoint: str) -> bool:
    """Check whether an endpoint belongs to this machine: only its own addresses can be bound.

    >>> is_here("tcp://127.0.0.1:7712"), is_here("tcp://192.0.2.1:7712")
    (True, False)
    """
    host, _ = parse_endpoint(endpoint, "endpoint")
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in addresses:
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
            return True
    return False
