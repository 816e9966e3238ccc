"""Sending to one peer of a ROUTER without ever waiting for it."""

from __future__ import annotations

import enum

import zmq

from devit_contract.sockets import Socket


class Sent(enum.Enum):
    """What became of a message."""

    YES = enum.auto()
    GONE = enum.auto()
    """The peer has no link."""
    FULL = enum.auto()
    """The peer takes no more at the moment."""


def send(socket: Socket, route: bytes, data: bytes) -> Sent:
    """Send one message to the peer with a routing id."""
    try:
        socket.send_multipart((route, data), zmq.NOBLOCK)
    except zmq.Again:
        return Sent.FULL
    except zmq.ZMQError as err:
        if err.errno == zmq.EHOSTUNREACH:
            return Sent.GONE
        raise
    return Sent.YES
