"""The bare cell of :mod:`benchmarks.network.bare`: pyzmq's lower limit; it joins by counting and fuses nothing."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import numpy as np
import zmq
from benchmarks.network.bare import BareCell
from benchmarks.peers.alarm import Alarm
from benchmarks.peers.peer import Ordered, Peer, Reply

from devit_contract.arrays import UInt8Array


class Bare(Peer):
    """Client -> hub -> agents, under CURVE."""

    name = "bare cell"
    is_checked = False

    def start(self, stack: ExitStack) -> None:
        """Start hub and agents."""
        work = self.work
        engines = [partial(work.engine, device) for device in range(work.devices)]
        self._logits = np.zeros(work.classes, np.float32)
        self._cell = stack.enter_context(BareCell(engines, work.shape, self._logits.nbytes))
        self._alarm = Alarm()
        self._poller = zmq.Poller()
        self._poller.register(self._cell.client, zmq.POLLIN)
        self._poller.register(self._alarm.fd, zmq.POLLIN)
        self._order = Ordered()

    def ask(self, image: UInt8Array) -> Reply:
        """Send one image and take its answer."""
        self._cell.client.send(image.tobytes())
        self._cell.client.recv()
        return Reply(self._logits, self.work.everybody)

    def submit(self, image: UInt8Array, number: int) -> None:
        """Send one image."""
        self._cell.client.send(image.tobytes())
        self._order.sent(number)

    def collect(self, timeout_s: float) -> list[int]:
        """Take what has come."""
        self._alarm.set(timeout_s)
        self._poller.poll()
        found: list[int] = []
        while self._cell.client.poll(0):
            self._cell.client.recv()
            found += self._order.answered(1)
        return found
