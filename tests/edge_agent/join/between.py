"""Somebody between a joiner and a node, who hears every byte and may change each frame."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from devit_contract.wire.pairing import HEADER, Kind

Sender = Literal["joiner", "node"]
Change = Callable[[Sender, Kind, int, bytes], bytes]
"""Of a frame: who sent it, its kind, its number among those of the same sender, its body; gives the frames to pass on,
headers and all."""


class Between:
    """What it has heard."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = b""
        """All bytes of both directions."""


def unchanged(_sender: Sender, kind: Kind, _number: int, body: bytes) -> bytes:
    return HEADER.pack(kind, len(body)) + body


@contextmanager
def between(node_port: int, change: Change = unchanged) -> Iterator[Between]:
    """Stand between one joiner and the node while the block runs."""
    heard = Between()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        heard.port = listening.getsockname()[1]
        thread = threading.Thread(target=_carry, args=(listening, node_port, change, heard))
        thread.start()
        try:
            yield heard
        finally:
            thread.join(20)
            assert not thread.is_alive()


def _carry(listening: socket.socket, node_port: int, change: Change, heard: Between) -> None:
    listening.settimeout(20)
    joiner, _ = listening.accept()
    with joiner, socket.create_connection(("127.0.0.1", node_port)) as node:
        back = threading.Thread(target=_pass_on, args=("node", node, joiner, change, heard))
        back.start()
        _pass_on("joiner", joiner, node, change, heard)
        back.join(20)


def _pass_on(sender: Sender, source: socket.socket, target: socket.socket, change: Change, heard: Between) -> None:
    source.settimeout(20)
    number = 0
    with suppress(OSError), source.makefile("rb") as stream:
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            kind, size = HEADER.unpack(header)
            body = stream.read(size)
            heard.heard += header + body
            target.sendall(change(sender, Kind(kind), number, body))
            number += 1
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
