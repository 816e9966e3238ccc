"""A guard against messages that never end.

libzmq bounds the size of one frame and the number of finished messages, but keeps the frames of an unfinished multipart
without any bound. The kernel knows what each connection has received (``TCP_INFO``), and a connection delivers its
messages in order: bytes that keep coming while nothing is delivered belong to one message that does not end. Beyond a
limit that connection alone is shut; so is the greediest one where many small ones exceed a common limit.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket as tcp
import struct
import termios
from contextlib import suppress
from dataclasses import dataclass

import zmq

from devit_contract.wire.sockets import Connection

CHECK_NS = 10_000_000
"""Between two checks: at a gigabit a second, a megabyte comes meanwhile."""

_LOOK_NS = 100_000
"""Added for each connection, so that many cost no more than a few per cent of the time: a check takes 2.5 us."""
_TOGETHER = 16
"""All connections together may hold as much as that many at their limit."""
_SRCFD = int(zmq.SRCFD)
_BYTES_RECEIVED_OFFSET = 128
"""In the kernel's ``struct tcp_info``, since Linux 4.1."""
_TcpInfo = ctypes.c_uint64 * (_BYTES_RECEIVED_OFFSET // 8 + 1)
_LIBC = ctypes.CDLL(None, use_errno=True)
"""Python's own sockets ask the kernel for their address first, which takes three times as long as the question."""
_UNREAD = struct.Struct("i")
_HEARTBEATS_BYTES_PER_S = 1024
"""What an idle connection may still send."""


@dataclass
class _Watched:
    """A connection that was accepted."""

    connection: Connection | None
    """``None`` if it has gone already, or was shut."""
    base_bytes: int | None
    """Received when it was last known to have nothing unfinished, or a check later; ``None`` until then."""
    base_ns: int
    has_spoken: bool = False
    """Whether it has ever delivered a message."""


class FloodGuard:
    """Watches the connections of one ROUTER; call :meth:`check` after its messages were taken."""

    def __init__(self, limit_bytes: int) -> None:
        """Let a connection receive ``limit_bytes`` without delivering a message; more than the largest one has."""
        self.cut = 0
        """Connections that were shut."""
        self._limit_bytes = limit_bytes
        self._watched: dict[int, _Watched] = {}  # by descriptor
        self._spoke: set[int] = set()
        self._suspects: set[int] = set()
        self._is_crowded = False
        """Whether all connections together held too much at the last check."""
        self._next_ns = 0

    def accepted(self, descriptor: int, now_ns: int) -> None:
        """Watch a new connection (``EVENT_ACCEPTED``)."""
        self._watched[descriptor] = _Watched(Connection.of_descriptor(descriptor), 0, now_ns)

    def ended(self, descriptor: int) -> bool:
        """Forget a connection (``EVENT_DISCONNECTED``); tell whether it never delivered a message.

        Most of those had no allowed key; of some of them (garbage, HTTP, an old protocol) libzmq reports nothing
        but their end.
        """
        watched = self._watched.pop(descriptor, None)
        was_silent = watched is not None and not watched.has_spoken and descriptor not in self._spoke
        self._spoke.discard(descriptor)  # the kernel gives the number to the next connection
        return was_silent

    def delivered(self, frame: zmq.Frame) -> int:
        """Note that a connection has delivered a whole message; give its descriptor."""
        descriptor = int(frame.get(_SRCFD))
        self._spoke.add(descriptor)
        return descriptor

    def next_ns(self) -> int | None:
        """Tell when :meth:`check` has something to do."""
        return self._next_ns if self._watched else None

    def check(self, now_ns: int) -> None:
        """Shut the connections that have received too much since their last message.

        None is shut at its first excess: if this thread was held up, a whole message may be waiting. The next
        check is due immediately, after another round of taking messages.
        """
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + CHECK_NS + _LOOK_NS * len(self._watched)
        held_bytes = {descriptor: self._held_bytes(descriptor, now_ns) for descriptor in self._watched}
        self._spoke.clear()
        suspects = {descriptor for descriptor, held in held_bytes.items() if held > self._limit_bytes}
        is_crowded = sum(held_bytes.values()) > _TOGETHER * self._limit_bytes
        for descriptor in suspects & self._suspects:
            self._shut(self._watched[descriptor])
        if is_crowded and self._is_crowded:  # the greediest need not be the same one as before
            self._shut(self._watched[max(held_bytes, key=held_bytes.__getitem__)])
        self._suspects, self._is_crowded = suspects, is_crowded
        if suspects or is_crowded:
            self._next_ns = now_ns

    def _shut(self, watched: _Watched) -> None:
        if watched.connection is not None:
            watched.connection.cut()
            watched.connection, watched.has_spoken = None, True  # parts of a message, at least
            self.cut += 1

    def _held_bytes(self, descriptor: int, now_ns: int) -> int:
        """Bytes of an unfinished message that libzmq may hold."""
        watched = self._watched[descriptor]
        if descriptor in self._spoke:  # so it is not asked for what it has received, which takes a while
            watched.has_spoken, watched.base_bytes = True, None
            return 0
        if watched.connection is None:
            return 0
        with suppress(OSError):  # libzmq has closed it, and its event is on its way
            received = _bytes_received(descriptor)
            if watched.base_bytes is None:
                watched.base_bytes, watched.base_ns = received, now_ns
            heartbeats_bytes = (now_ns - watched.base_ns) * _HEARTBEATS_BYTES_PER_S // 1_000_000_000
            held = received - watched.base_bytes - heartbeats_bytes
            # What waits in the kernel may be the next message of an honest peer; the kernel bounds it.
            return max(0, held if held <= self._limit_bytes else held - _unread_bytes(descriptor))
        return 0


def _bytes_received(descriptor: int) -> int:
    info, size = _TcpInfo(), ctypes.c_uint32(ctypes.sizeof(_TcpInfo))
    if _LIBC.getsockopt(descriptor, tcp.IPPROTO_TCP, tcp.TCP_INFO, info, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return info[-1]


def _unread_bytes(descriptor: int) -> int:
    (unread,) = _UNREAD.unpack(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(_UNREAD.size)))
    return int(unread)
