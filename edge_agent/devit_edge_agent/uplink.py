"""The agent's link to a fusion node: made, introduced, watched, and made again.

What ends a link, and what brings it back:

==================================  ==============================================================================
the node or the network goes        libzmq reconnects automatically, :class:`Reach` looks for another address of the
                                    node's name, and this device introduces itself again
a refused handshake                 libzmq may never try again: the agent reconnects after two seconds
no message from the node for 5 s    it pings every second, so the route is gone: reconnect
the node sends REFUSED              at the start an error: only the operator can help (other bundle, name or key); later
                                    the agent introduces itself again every five seconds: the cause may be another's
==================================  ==============================================================================
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import suppress

import zmq

from devit_contract.artefacts.keys import KeyPair
from devit_contract.choices import FeatureDtype
from devit_contract.errors import RefusedError, WireError
from devit_contract.service.journal import Log, Priority
from devit_contract.wire.codec import MAX_IMAGE_MESSAGE_BYTES, Dtype, Kind, Message, pack, unpack
from devit_contract.wire.messages import Hello, Refused, Welcome, body, read_body
from devit_contract.wire.reach import Reach
from devit_contract.wire.sockets import (
    HANDSHAKE_FAILURES,
    NO_LINK,
    WRONG_PORT,
    connect_dealer,
    open_context,
    receive_all,
)
from devit_edge_agent.config import AgentConfig, StandbyNode

_HELLO_NS = 1_000_000_000
"""Until an unanswered introduction is repeated."""
_RETRY_NS = 2_000_000_000
"""Pause before a reconnection after a failed handshake."""
_SILENCE_NS = 5_000_000_000
_REFUSED_NS = 5_000_000_000
"""Pause before another introduction after a refusal."""
_LINGER_MS = 200
_NOW = int(zmq.NOBLOCK)
"""As a plain number: the enum class costs a microsecond at each use."""
_LINK_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | NO_LINK | HANDSHAKE_FAILURES


class Uplink:
    """One link, for one thread."""

    def __init__(
        self,
        config: AgentConfig,
        keys: KeyPair | None,
        log: Log,
        hello: Hello,
        revision: int,
        *,
        node: StandbyNode | None = None,
        boot_id: int | None = None,
    ) -> None:
        """Connect in the background; introduce this device by ``hello`` with the engine's ``revision``.

        ``node`` is another one than the first of ``config``.
        """
        address = node or config
        self._node = address.node
        self._log = log
        self.boot_id = secrets.randbits(64) if boot_id is None else boot_id
        self.run_id: int | None = None
        """The node's run; ``None`` until it has accepted this device."""
        self.feature_dtype: FeatureDtype = "float32"
        """What the node wants features as."""
        self._hello, self._revision = body(hello), revision
        self._hello_ns: int | None = None
        self._retry_ns: int | None = None
        self._heard_ns = 0
        self._has_logged_refusal = False
        self._opened = open_context()
        self.socket, self.monitor = connect_dealer(
            self._opened.__enter__(),
            address.node,
            keys=keys,
            node_key=address.node_public_key.encode() or None,
            max_bytes=MAX_IMAGE_MESSAGE_BYTES,
            events=_LINK_EVENTS,
        )
        self._reach = Reach(self.socket, address.node)

    @property
    def is_introducing(self) -> bool:
        """Whether an introduction is unanswered: no feature may be sent before the node knows its engine."""
        return self._hello_ns is not None

    def close(self) -> None:
        """Close the link; the last messages still go out."""
        self.socket.close(linger=_LINGER_MS)
        self._opened.__exit__(None, None, None)

    def watch(self, *, has_events: bool) -> bool:
        """Watch the link; tell whether it ended, so that the queued frames are obsolete."""
        had_run = self.run_id is not None
        for found in self.monitor.read() if has_events else ():
            event = found.kind
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._retry_ns = None
                self._has_logged_refusal = False
                self._hello_ns = time.monotonic_ns()
                self._reach.linked()
            elif event == zmq.EVENT_CONNECT_RETRIED:
                self._reach.failed()
            elif event == zmq.EVENT_DISCONNECTED:
                self._reach.lost()
                self._end("the link to the node is gone, waiting for it")
            else:
                self._reach.refused()
                self._end("")
                if not self._has_logged_refusal:
                    why = WRONG_PORT if found.is_wrong_port else "check both keys"
                    self._log.log(Priority.WARNING, f"the node refuses the handshake: {why}; trying again")
                self._has_logged_refusal = True
                self._retry_ns = time.monotonic_ns() + _RETRY_NS
        now_ns = time.monotonic_ns()
        if self.run_id is not None and now_ns - self._heard_ns > _SILENCE_NS:
            self._end(f"nothing came from the node for {_SILENCE_NS // 1_000_000_000} s, connecting again")
            self._retry_ns = now_ns
        if self._hello_ns is not None and now_ns >= self._hello_ns:
            self._send_hello()
        if self._retry_ns is not None and now_ns >= self._retry_ns:
            self._retry_ns = None
            self._reach.reconnect()
        if told := self._reach.tend():
            self._log.log(Priority.WARNING, told)
        return had_run and self.run_id is None

    def introduce(self, hello: Hello, revision: int) -> None:
        """Introduce another engine to the node; :attr:`is_introducing` holds until it has answered."""
        self._hello, self._revision = body(hello), revision
        self._send_hello()  # now: no frame is worked on until the answer

    def try_again(self) -> None:
        """After a refusal, have no link for some seconds, then introduce this device again."""
        self._hello_ns = time.monotonic_ns() + _REFUSED_NS
        self.run_id = None

    def receive(self) -> Iterator[Message]:
        """Take what has come, without waiting; messages for the link itself are kept here, except WELCOME.

        Raises:
            RefusedError: The node refuses this device.
        """
        for frame in receive_all(self.socket):
            self._heard_ns = time.monotonic_ns()
            try:
                message = unpack(frame.buffer)
                if message.kind is Kind.WELCOME:
                    self._check_revision(message)
                    welcome = read_body(message, Welcome)
                    self.run_id, self.feature_dtype = message.run_id, welcome.feature_dtype
                    self._hello_ns = None
                elif message.kind is Kind.REFUSED:
                    if message.engine_revision:  # else the device is refused, whatever it runs
                        self._check_revision(message)
                    self._hello_ns = None
                    raise RefusedError(f"{self._node} refuses this device: {read_body(message, Refused).text}")
                elif message.run_id != self.run_id:
                    raise WireError("run", f"{message.kind.name} of run {message.run_id}, not of the present one")
                yield message
            except WireError as err:
                self._log.log(Priority.WARNING, f"a message of the node was not used: {err}")

    def send(self, message: Message) -> None:
        """Send without waiting.

        If the link has just gone or is full, nothing is sent: the node counts the frame as missing.
        """
        with suppress(zmq.Again):
            self.socket.send(pack(message), _NOW)

    def _check_revision(self, message: Message) -> None:
        if message.engine_revision != self._revision:  # it is late, another engine is introduced by now
            found = f"{message.kind.name} of engine {message.engine_revision:08x}"
            raise WireError("engine", f"{found}, expected {self._revision:08x}")

    def _send_hello(self) -> None:
        self._hello_ns = time.monotonic_ns() + _HELLO_NS  # repeated by then: either message may be lost
        hello = Message(
            Kind.HELLO, Dtype.BODY, payload=self._hello, engine_revision=self._revision, boot_id=self.boot_id
        )
        self.send(hello)

    def _end(self, text: str) -> None:
        if text and (self.run_id is not None or self._retry_ns is None):
            self._log.log(Priority.NOTICE, text)
        self._hello_ns = None
        self.run_id = None
