"""How one loop waits for messages and descriptors: in a third of the time of ``zmq.Poller``.

That asks each socket what has come before and after each of two waits, by a pair of system calls each time. Here each
socket is asked once, and then the kernel waits for the descriptors by which libzmq wakes a reader. Such a descriptor
becomes readable once for all that comes until its socket is looked at, or is sent on: so a socket is asked before.
"""

from __future__ import annotations

import select

import zmq

from devit_contract.wire.sockets import Socket

_EVENTS, _READABLE, _WRITABLE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.POLLOUT)
"""As plain numbers: the enum class costs a microsecond at each use."""


class Waiter:
    """The sockets and descriptors of one loop, for one thread."""

    def __init__(self) -> None:
        """Wait for nothing yet."""
        self.room_for: Socket | None = None
        """The socket for which a wait also ends as soon as something can be sent on it."""
        self._sockets: dict[int, Socket] = {}
        self._poll = select.poll()

    def add_socket(self, socket: Socket) -> int:
        """Wait for messages too; return the descriptor by which :meth:`wait` tells of them."""
        descriptor = socket.getsockopt(zmq.FD)
        assert isinstance(descriptor, int)
        self._sockets[descriptor] = socket
        self.add(descriptor)
        return descriptor

    def add(self, descriptor: int) -> None:
        """Wait for a descriptor to become readable too."""
        self._poll.register(descriptor, select.POLLIN)

    def remove(self, descriptor: int) -> None:
        """Wait for it no longer."""
        self._poll.unregister(descriptor)

    def wait(self, timeout_ms: float) -> list[int]:
        """Wait until something has come; tell where, though there may be no message after all.

        Who reads a socket need not take all its messages, as the next wait tells of the others.
        """
        room_for = self.room_for
        ready = [
            number
            for number, socket in self._sockets.items()
            if int(socket.getsockopt(_EVENTS)) & (_READABLE if socket is not room_for else _READABLE | _WRITABLE)
        ]
        for number, _ in self._poll.poll(0 if ready else timeout_ms):
            if number not in ready:
                ready.append(number)
        return ready
