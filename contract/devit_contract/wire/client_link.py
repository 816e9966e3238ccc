"""The link of one client, or of another node, to a node: handshakes, refusals and new connections after a loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import zmq

from devit_contract.artefacts.keys import KeyPair
from devit_contract.errors import RefusedError
from devit_contract.wire.codec import MAX_IMAGE_MESSAGE_BYTES, Message, unpack
from devit_contract.wire.reach import Reach
from devit_contract.wire.sockets import (
    HANDSHAKE_FAILURES,
    NO_LINK,
    WRONG_PORT,
    connect_dealer,
    is_readable,
    open_context,
)
from devit_contract.wire.waiting import Waiter

_NOW = int(zmq.NOBLOCK)
"""As a plain number: the enum class costs a microsecond at each use."""
_FAILURES_TO_REFUSE = 3
"""Failed handshakes before the first good one that count as a refusal; one may fail because the node is stopping."""
_RETRY_S = 2.0
"""Pause before a new connection after an outright refusal."""


class ClientLink:
    """One DEALER and its monitor, for one thread."""

    def __init__(
        self,
        endpoint: str,
        keys: KeyPair | None,
        node_key: bytes | None,
        tell: Callable[[str], None],
        waiter: Waiter,
    ) -> None:
        """Connect in the background; ``tell`` is given one line if that fails, and then once a minute.

        Call :meth:`tend` after each wait of ``waiter``, and at :attr:`next_s`.
        """
        self.is_linked = False
        """Whether the node is reached now, as far as is known."""
        self.links = 0
        """How often the node was reached."""
        self.is_refused = False
        """Whether the node refuses this client, so that it will answer nothing."""
        self._endpoint = endpoint
        self._tell = tell
        self._advice = (
            "check the client's entry in the node's fleet.toml, the node's public_key, and that the node is not hung"
            if keys is not None
            else "if the node has keys, give its fleet.toml and a client's key; else check that it is a node, not hung"
        )
        self._opened = open_context()
        self.socket, self._monitor = connect_dealer(
            self._opened.__enter__(),
            endpoint,
            keys=keys,
            node_key=node_key,
            max_bytes=MAX_IMAGE_MESSAGE_BYTES,
            events=HANDSHAKE_FAILURES | zmq.EVENT_HANDSHAKE_SUCCEEDED | NO_LINK,
        )
        self._reach = Reach(self.socket, endpoint)
        self._descriptor = waiter.add_socket(self.socket)
        self._has_come = False
        waiter.add(self._monitor.descriptor)
        self.descriptors = self._descriptor, self._monitor.descriptor
        """Readable when :meth:`tend` has something to look at."""
        self._failed_handshakes = 0
        self._retry_s = math.inf

    @property
    def problem(self) -> str:
        """Why the node cannot be reached, in a few words; empty if it can, as far as is known."""
        return self._reach.problem

    def close(self, linger_ms: int = 0) -> None:
        """Close the link, waiting so long for unsent messages; a second call does nothing."""
        if not self.socket.closed:
            self.socket.close(linger=linger_ms)
            self._opened.__exit__(None, None, None)

    @property
    def next_s(self) -> float:
        """When :meth:`tend` has something to do, on ``time.monotonic``."""
        return min(self._retry_s, self._reach.next_s)

    def tend(self, ready: Sequence[int]) -> None:
        """Look at what a wait has found ``ready``.

        Raises:
            RefusedError: The node refuses this client.
        """
        self._has_come = self._descriptor in ready
        if self._monitor.descriptor in ready:
            self._read_monitor()
        if time.monotonic() >= self._retry_s:
            self._retry_s = math.inf
            self._reach.reconnect()
        if told := self._reach.tend():
            self._tell(told)

    def send(self, data: bytes) -> bool:
        """Send a message, unless there is no link or it is full."""
        try:
            self.socket.send(data, _NOW)
        except zmq.Again:
            return False
        return True

    def receive(self) -> Iterator[Message]:
        """Take what :meth:`tend` has found.

        Raises:
            WireError: The bytes are no message.
        """
        while self._has_come and is_readable(self.socket):
            yield unpack(self.socket.recv(_NOW))

    def _read_monitor(self) -> None:
        for found in self._monitor.read():
            event = found.kind
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.links += 1
                self.is_linked = True
                self._retry_s, self.is_refused = math.inf, False
                self._reach.linked()
                continue
            self.is_linked = False
            if event & NO_LINK:
                (self._reach.lost if event == zmq.EVENT_DISCONNECTED else self._reach.failed)()
                continue
            self._reach.refused()
            if found.is_wrong_port:
                self.is_refused = True
                raise RefusedError(f"{self._endpoint}: {WRONG_PORT}")
            self._failed_handshakes += 1
            is_outright = event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL  # libzmq never tries again
            if is_outright:
                self._retry_s = time.monotonic() + _RETRY_S
            self.is_refused |= not self.links and (is_outright or self._failed_handshakes >= _FAILURES_TO_REFUSE)
        if self.is_refused:
            raise RefusedError(
                f"{self._endpoint}: the node does not accept this client, the handshake failed: {self._advice}"
            )
