"""Every ZeroMQ socket and every option it has, in one place; keys are checked here too.

Traps behind the options, each tried (libzmq 4.3.5):

* A CURVE server without an authenticator accepts any key: the ZAP domain is enforced.
* The ZAP request does not carry the peer's routing id (its field holds the server's own), which the peer chooses as it
  likes. So it says nothing: the node draws one for each connection, and knows who speaks by ``User-Id`` alone.
* A client whose key was answered with 400 never connects again; 300 makes it retry.
* With ``ROUTER_HANDOVER`` a peer that gives itself another's routing id gets that one's messages, before anyone could
  look at its key. Without, nothing that it says is ever delivered, even if the other one leaves.
* A peer whose routing id is the one that a ROUTER draws next aborts the process (libzmq 4.3.5, ``ok``). They are drawn
  in a row, the first one from ``rand()``, which libzmq seeds by time and process id: the seed is made random.
* Message sizes are allocated as announced: ``MAXMSGSIZE`` is always set.
* A ROUTER that sends heartbeats aborts the process (libzmq 4.3.5, ``!_io_error``) when one is due on a link whose
  peer sends without reading. Devices and clients send them, with the time after which a dead one is dropped.
* A DEALER with heartbeats whose receive queue is full when its link is remade aborts its process (``_input_stopped``):
  it has no high-water mark there; credit, and a client's own requests, bound what comes.
* A monitor made after ``connect`` may miss the handshake (one of four did on a busy machine): it is made before.
"""

from __future__ import annotations

import ctypes
import enum
import secrets
import socket as tcp
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

from devit_contract.artefacts.keys import KeyPair
from devit_contract.errors import AddressError
from devit_contract.wire.codec import MAX_DEVICE_MESSAGE_BYTES, MAX_IMAGE_MESSAGE_BYTES

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]

HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL  # one side has keys, the other has not
)
"""Events of a monitor for a failed link; NO_DETAIL is the only one after which libzmq tries again."""

NO_LINK = zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_DISCONNECTED
"""Events of a monitor for a connection that could not be made, and for one that has ended."""

_RETRY_LATER, _WRONG_PORT = b"300", b"400"
"""Status codes of ZAP; a peer is told the second one."""
WRONG_PORT = "the node knows this key on its other port: devices connect to endpoint, clients to client_endpoint"

_EVENT = struct.Struct("=Hi")
"""First frame of a monitor's message: what happened, and its value, see zmq_socket_monitor(3)."""

DEVICES = b"devices"
CLIENTS = b"clients"
_MAX_BYTES = {DEVICES: MAX_DEVICE_MESSAGE_BYTES, CLIENTS: MAX_IMAGE_MESSAGE_BYTES}
"""Largest message accepted; a peer that announces more is disconnected."""
_UNREAD = {DEVICES: 256, CLIENTS: 2048}  # messages kept for a connection: more than a client has under way at a time
_IO_THREAD_BITS = {DEVICES: 0b01, CLIENTS: 0b10}

_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS, _HEARTBEAT_TTL_MS = 500, 1500, 2000
_HANDSHAKE_MS = 2000
_RECONNECT_MS, _RECONNECT_MAX_MS = 100, 1000
_CURVE_OVERHEAD_BYTES = 64
_NOW, _MORE, _READABLE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.POLLIN)
"""As plain numbers: the enum classes cost a microsecond at each use."""
_send = zmq.backend.Socket.send
"""Without what pyzmq puts around it for other kinds of sockets, which takes half as long again."""
_LIBC = ctypes.CDLL(None)
_TCP_ESTABLISHED = 1
"""First byte of the kernel's ``struct tcp_info``."""


@contextmanager
def open_context(io_threads: int = 1) -> Iterator[Context]:
    """Open a ZeroMQ context; on exit, close all its sockets without waiting for unsent messages.

    With two threads for encryption, the ports of :func:`bind_router` have one each: what clients send, 4 MiB in 90 ms,
    holds no device up.
    """
    context: Context = zmq.Context(io_threads)
    try:
        yield context
    finally:
        context.destroy(linger=0)


def bind_router(context: Context, endpoint: str, domain: bytes, keys: KeyPair | None) -> tuple[Socket, str, Monitor]:
    """Open the node's side of a port; return the socket, the endpoint with its real port, and its connections' monitor.

    With keys, an :class:`Authenticator` must live in the context before. Port 0 of the endpoint takes a free one;
    ``domain``, :data:`DEVICES` or :data:`CLIENTS`, says whose keys are accepted.

    Raises:
        AddressError: The address cannot be bound.
    """
    _LIBC.srand(secrets.randbits(32))
    socket = context.socket(zmq.ROUTER)
    _set_common(socket)
    socket.setsockopt(zmq.SNDHWM, _UNREAD[domain])  # once bound, it would hold for no connection
    # With it, an IPv4 address would be bound, and shown, as one mapped into IPv6.
    socket.setsockopt(zmq.IPV6, int(endpoint.startswith("tcp://[")))
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if context.get(zmq.IO_THREADS) > 1:
        socket.setsockopt(zmq.AFFINITY, _IO_THREAD_BITS[domain])
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_BYTES[domain] + _CURVE_OVERHEAD_BYTES)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, domain)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    monitor = Monitor(socket, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
    try:
        socket.bind(endpoint[:-1] + "*" if endpoint.endswith(":0") else endpoint)
    except zmq.ZMQError as err:
        socket.close()
        monitor.socket.close()
        raise AddressError(
            f"{endpoint}: expected a free address of this machine, found: {zmq.strerror(err.errno or 0)}: "
            "stop what listens there or choose another port"
        ) from err
    real: str = socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]
    return socket, real, monitor


def connect_dealer(
    context: Context,
    endpoint: str,
    *,
    name: bytes | None = None,
    keys: KeyPair | None,
    node_key: bytes | None,
    max_bytes: int,
    events: int,
) -> tuple[Socket, Monitor]:
    """Open a device's or client's side; the connection is made and remade in the background.

    The routing id is ``name``; ``None``, as for all devices and clients, lets the node draw one. ``node_key`` is the
    node's public key, and ``max_bytes`` the largest message accepted. The monitor reports ``events``, ``zmq.EVENT_*``
    or-ed together, from the first connection on: read it, or close the context by ``destroy``. libzmq's thread waits
    once 2,000 events are unread, and ``disable_monitor`` then waits for that thread.
    """
    socket = context.socket(zmq.DEALER)
    _set_common(socket)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes + _CURVE_OVERHEAD_BYTES)
    if name is not None:
        socket.setsockopt(zmq.ROUTING_ID, name)
    if keys is not None and node_key is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, node_key)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    monitor = Monitor(socket, events)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as err:
        raise AddressError(
            f"{endpoint}: expected an address to connect to, found: {zmq.strerror(err.errno or 0)}: correct it"
        ) from err
    return socket, monitor


class SocketEvent(NamedTuple):
    """A monitor's event of one connection."""

    kind: int
    """One of ``zmq.EVENT_*``."""
    value: int
    """Its descriptor, for most kinds."""

    @property
    def is_wrong_port(self) -> bool:
        """Whether the node refused the handshake since the key belongs to its other port."""
        return self == (zmq.EVENT_HANDSHAKE_FAILED_AUTH, int(_WRONG_PORT))


class Monitor:
    """Connection events of a socket; poll :attr:`descriptor` and call :meth:`read`."""

    def __init__(self, socket: Socket, events: int) -> None:
        """Watch ``socket``, not bound or connected yet, for ``events`` (``zmq.EVENT_*`` or-ed together)."""
        self.socket: Socket = socket.get_monitor_socket(events)
        self.descriptor = _poll_descriptor(self.socket)
        """Readable when :meth:`read` has something to read."""

    def read(self) -> list[SocketEvent]:
        """Take the events that have come since the last call, without waiting."""
        events: list[SocketEvent] = []
        while True:
            try:
                event, _endpoint = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return events
            # zmq.utils.monitor does this too, and brings asyncio: 3 MB of each agent.
            events.append(SocketEvent(*_EVENT.unpack(event)))


class Authenticator:
    """Accepts the keys it was given, each under its name (ZAP, https://rfc.zeromq.org/spec/27), without a thread.

    Poll :attr:`descriptor` and call :meth:`answer`; until it is called, no handshake succeeds.
    """

    def __init__(self, context: Context, allowed: Mapping[bytes, Mapping[bytes, str]]) -> None:
        """Take over a context's authentication before its sockets bind; ``allowed`` is domain to (Z85 key to name)."""
        self.allowed = allowed
        """Domain to (Z85 key to name)."""
        self.refused = 0
        self.revoked: frozenset[bytes] = frozenset()
        """Z85 public keys that are not accepted any more, whatever ``allowed`` says."""
        self.socket: Socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind("inproc://zeromq.zap.01")
        self.descriptor = _poll_descriptor(self.socket)
        """Readable when :meth:`answer` has something to answer."""

    def answer(self) -> None:
        """Answer every handshake that is waiting."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart([b"1.0", parts[1], *self._verdict(parts)])

    def _verdict(self, request: list[bytes]) -> tuple[bytes, bytes, bytes, bytes]:
        """Give status code, its text, the name, and no metadata."""
        version, _, domain, _, _, mechanism, *credentials = request
        code = _RETRY_LATER  # not 400: a peer refused with that would not come back once its key is allowed
        if version == b"1.0" and mechanism == b"CURVE" and len(credentials) == 1:
            key = z85.encode(credentials[0])
            known_in = [] if key in self.revoked else [each for each, keys in self.allowed.items() if key in keys]
            if domain in known_in:
                return b"200", b"OK", self.allowed[domain][key].encode(), b""
            code = _WRONG_PORT if known_in else code
        self.refused += 1
        return code, b"unknown key", b"", b""


@dataclass(frozen=True)
class Connection:
    """The TCP connection that a message came by."""

    descriptor: int
    peer: tuple[Any, ...]
    """Address at the other end: the kernel gives a closed connection's descriptor to the next."""

    @classmethod
    def of(cls, frame: zmq.Frame) -> Connection | None:
        """Find the connection of a received frame; ``None`` if it is gone already."""
        return cls.of_descriptor(int(frame.get(zmq.SRCFD)))

    @classmethod
    def of_descriptor(cls, descriptor: int) -> Connection | None:
        """Find the connection of a descriptor; ``None`` if it is gone already."""
        with suppress(OSError), _borrowed(descriptor) as link:
            return cls(descriptor, link.getpeername())
        return None

    @property
    def is_open(self) -> bool:
        """Tell whether both ends have it open, as far as this machine knows."""
        with suppress(OSError), _borrowed(self.descriptor) as link:
            state: int = link.getsockopt(tcp.IPPROTO_TCP, tcp.TCP_INFO, 1)[0]
            return link.getpeername() == self.peer and state == _TCP_ESTABLISHED
        return False

    def cut(self) -> None:
        """End this connection alone; its peer notices, and connects again if it wants to."""
        with suppress(OSError), _borrowed(self.descriptor) as link:
            if link.getpeername() == self.peer:
                # Reset when libzmq closes it: a peer that is sending would else wait for a minute.
                link.setsockopt(tcp.SOL_SOCKET, tcp.SO_LINGER, struct.pack("ii", 1, 0))
                link.shutdown(tcp.SHUT_RDWR)


@contextmanager
def _borrowed(descriptor: int) -> Iterator[tcp.socket]:
    """Use libzmq's own descriptor: none may be left for a copy just when a peer is to be cut."""
    borrowed = tcp.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _poll_descriptor(socket: Socket) -> int:
    """Give what to poll in place of a socket on which something comes once in a while.

    A poll asks each socket twice what has come, by eight system calls; a descriptor costs next to nothing. It becomes
    readable once for all that comes until the socket was read in vain, so the reader must read everything.
    """
    is_readable(socket)  # as if read in vain: nothing can have come yet
    descriptor = socket.getsockopt(zmq.FD)
    assert isinstance(descriptor, int)
    return descriptor


def is_readable(socket: Socket) -> bool:
    """Tell whether a message is there; half the time of trying to read one in vain."""
    events = socket.getsockopt(zmq.EVENTS)
    return isinstance(events, int) and events & _READABLE != 0


def receive_all(socket: Socket) -> Iterator[zmq.Frame]:
    """Take what has come, each message of one frame, without waiting; to be called when something has."""
    with suppress(zmq.Again):
        yield socket.recv(_NOW, copy=False)
    while is_readable(socket):
        yield socket.recv(_NOW, copy=False)


def receive_routed(socket: Socket) -> tuple[bytes, zmq.Frame, int]:
    """Take one message of a ROUTER without waiting: route, first frame, and how many frames came after it.

    A third of the time of ``recv_multipart``.

    Raises:
        zmq.Again: There is none.
    """
    route = socket.recv(_NOW)
    frame = socket.recv(_NOW, copy=False)
    surplus, last = 0, frame
    while last.more:
        last = socket.recv(_NOW, copy=False)
        surplus += 1
    return route, frame, surplus


def receive_all_routed(socket: Socket, most: int) -> Iterator[tuple[bytes, zmq.Frame, int]]:
    """Take what has come as :func:`receive_routed` does, so many messages at most."""
    for count in range(most):
        if count == 1 and not is_readable(socket):  # one comes alone most often, and then a look costs less
            return
        try:
            received = receive_routed(socket)
        except zmq.Again:
            return
        yield received


class Sent(enum.Enum):
    """What became of a message of :func:`send_routed`."""

    YES = enum.auto()
    GONE = enum.auto()
    """The peer has no link."""
    FULL = enum.auto()
    """The peer's queue is full."""


_YES = Sent.YES


def send_routed(socket: Socket, route: bytes, data: bytes) -> Sent:
    """Send one message of a ROUTER to the peer with a routing id, without waiting."""
    try:
        # Not send_multipart: it takes as long again to look at the parts.
        _send(socket, route, _MORE)
        _send(socket, data, _NOW)
    except zmq.Again:
        return Sent.FULL
    except zmq.ZMQError as err:
        if err.errno == zmq.EHOSTUNREACH:
            return Sent.GONE
        raise
    return _YES


def user_id(frame: zmq.Frame) -> str | None:
    """Name under which a message's sender was accepted, or ``None`` without encryption."""
    try:
        return frame.get("User-Id") or None  # type: ignore[return-value]
    except zmq.ZMQError:
        return None


def _set_common(socket: Socket) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    # High-water marks only bound memory; flow control is credit.
    socket.setsockopt(zmq.SNDHWM, 256)
    socket.setsockopt(zmq.RCVHWM, 256)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, _HEARTBEAT_TTL_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 3)
