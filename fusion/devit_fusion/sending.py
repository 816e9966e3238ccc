"""Sending to one peer of a ROUTER without ever waiting for it."""

from __future__ import annotations

import enum

import zmq

from devit_contract.wire.sockets import Socket


class Sent(enum.Enum):
    """What became of a message."""

    YES = enum.auto()
    GONE = enum.auto()
    """The peer has no link."""
    FULL = enum.auto()
    """The peer takes no more at the moment."""


_NOW = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
"""As plain numbers: pyzmq converts the enum class at each call."""


def send(socket: Socket, route: bytes, data: bytes) -> Sent:
    """Send one message to the peer with a routing id."""
    try:
        # Not send_multipart: that takes as long again to look at the parts.
        socket.send(route, _MORE)
        socket.send(data, _NOW)
    except zmq.Again:
        return Sent.FULL
    except zmq.ZMQError as err:
        if err.errno == zmq.EHOSTUNREACH:
            return Sent.GONE
        raise
    return Sent.YES
