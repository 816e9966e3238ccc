"""Raw TCP: length-prefixed messages over blocking sockets, fan-out and join, no keys, no checks."""

from __future__ import annotations

import select
import socket
import struct
import threading
from contextlib import ExitStack
from multiprocessing.connection import Connection

from benchmarks.network.bare import Children, receive
from benchmarks.peers.peer import Ordered, Peer, Reply
from benchmarks.peers.work import Work

from devit_contract.arrays import UInt8Array

LENGTH = struct.Struct("<I")


class Tcp(Peer):
    """Client -> front -> workers; the front sends and joins in two threads, so that it takes the next image early."""

    name = "raw TCP"

    def start(self, stack: ExitStack) -> None:
        """Start front and workers."""
        children = stack.enter_context(Children())
        workers = [children.start(_worker, self.work, device) for device in range(self.work.devices)]
        front = children.start(_front, self.work, [receive(worker, int) for worker in workers])
        self._socket = stack.enter_context(_connect(receive(front, int)))
        self._order = Ordered()

    def ask(self, image: UInt8Array) -> Reply:
        """Send one image and take its answer."""
        _send(self._socket, image.tobytes())
        return self.reply(_receive(self._socket))

    def submit(self, image: UInt8Array, number: int) -> None:
        """Send one image."""
        _send(self._socket, image.tobytes())
        self._order.sent(number)

    def collect(self, timeout_s: float) -> list[int]:
        """Take what has come."""
        found: list[int] = []
        while select.select([self._socket], [], [], 0 if found else timeout_s)[0]:
            _receive(self._socket)
            found += self._order.answered(1)
        return found


def _worker(parent: Connection, work: Work, device: int) -> None:
    answer = work.worker(device)
    front = _accept(parent)
    while True:
        _send(front, answer(_receive(front)))


def _front(parent: Connection, work: Work, ports: list[int]) -> None:
    fuse = work.front()
    workers = [_connect(port) for port in ports]
    client = _accept(parent)

    def fan_out() -> None:
        while True:
            image = _receive(client)
            for worker in workers:
                _send(worker, image)

    threading.Thread(target=fan_out, daemon=True).start()
    while True:
        _send(client, fuse([_receive(worker) for worker in workers]))


def _accept(parent: Connection) -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        parent.send(listener.getsockname()[1])
        accepted, _ = listener.accept()
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return accepted


def _connect(port: int) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _send(to: socket.socket, payload: bytes) -> None:
    to.sendall(LENGTH.pack(len(payload)) + payload)


def _receive(source: socket.socket) -> bytes:
    return _exactly(source, LENGTH.unpack(_exactly(source, LENGTH.size))[0])


def _exactly(source: socket.socket, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = source.recv(count)
        if not part:
            raise SystemExit  # the client hung up, so this side ends
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
