"""The bare cell: the same engines in as many processes, joined over plain DEALER and ROUTER sockets.

It is what devit is held against: the same bytes, image down and feature up, under CURVE, with blocking calls and
nothing else: no headers, no checks, no credit, no join by frame, no deadlines, no fusion, and nobody asks whose key it
is. A lost message would make it wait for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import TypeVar

import numpy as np
import zmq
from benchmarks.common.measure import Samples

from devit_contract.artefacts.keys import KeyPair
from devit_engines.engine import Engine

T = TypeVar("T")
Socket = zmq.Socket[bytes]
MakeEngine = Callable[[], Engine]
"""Called in the agent's process, so it must pickle: a :func:`functools.partial` of a module's function."""
SPAWN = multiprocessing.get_context("spawn")

_START_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Address:
    """Where to connect, and the key of who listens there."""

    endpoint: str
    key: bytes


class Children:
    """Processes that end with this one, however it ends; a context manager."""

    def __init__(self) -> None:
        """Start with none."""
        self._processes: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    @property
    def pids(self) -> list[int]:
        """Process ids, in the order of their starts."""
        return [process.pid for process, _ in self._processes if process.pid is not None]

    def start(self, function: Callable[..., None], *arguments: object, has_children: bool = False) -> Connection:
        """Run ``function(connection, *arguments)`` in a new process, which may start processes only if this says so."""
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=_child, args=(function, theirs, *arguments), daemon=not has_children)
        process.start()
        theirs.close()
        self._processes.append((process, ours))
        return ours

    def __enter__(self) -> Children:
        """Use them in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them all."""
        for process, connection in self._processes:
            process.terminate()
            process.join()
            connection.close()


def receive(connection: Connection, kind: type[T], timeout_s: float = _START_DEADLINE_S) -> T:
    """Take what a child sends; one that says nothing in time, or dies, is an error."""
    if not connection.poll(timeout_s):
        raise SystemExit(f"expected a process to answer within {timeout_s:g} s, found that it hangs: see its output")
    try:
        found = connection.recv()
    except EOFError:
        raise SystemExit("expected a process to answer, found that it ended: see its output") from None
    assert isinstance(found, kind)
    return found


class BareEcho:
    """One hub and one agent that answers the same bytes to every image; a context manager."""

    def __init__(self, image: bytes, answer_bytes: int) -> None:
        """Start both processes, and wait until they are connected."""
        self._children = Children()
        self._hub = self._children.start(_echo_hub, image)
        devices = receive(self._hub, Address)
        self._children.start(_agent, devices, b"device0", (), partial(bytes, answer_bytes))
        receive(self._hub, str)

    def __enter__(self) -> BareEcho:
        """Use it in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End both processes."""
        self._children.__exit__(kind, error, trace)

    @property
    def pids(self) -> list[int]:
        """Process ids of hub and agent."""
        return self._children.pids

    def round_trips(self, duration_s: float) -> Samples:
        """Have the hub send image after image, and give its round trips."""
        self._hub.send(duration_s)
        return np.asarray(receive(self._hub, list, duration_s + _START_DEADLINE_S), np.float64)


class BareCell:
    """One hub, an agent for each engine, and a client in this process; a context manager."""

    def __init__(self, engines: Sequence[MakeEngine], shape: tuple[int, int, int], answer_bytes: int) -> None:
        """Start all processes, and wait until they are connected.

        Args:
            engines: Makes each agent's engine.
            shape: The image's, ``(H, W, C)``.
            answer_bytes: What the client gets for an image.
        """
        self._children = Children()
        names = [f"device{index}".encode() for index in range(len(engines))]
        hub = self._children.start(_hub, names, answer_bytes)
        devices, clients = receive(hub, Address), receive(hub, Address)
        for name, engine in zip(names, engines, strict=True):
            self._children.start(_agent, devices, name, shape, engine)
        receive(hub, str)
        self._context: zmq.Context[Socket] = zmq.Context()
        self.client = _dealer(self._context, clients, b"client")

    def __enter__(self) -> BareCell:
        """Use it in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        self._context.destroy(linger=0)
        self._children.__exit__(kind, error, trace)

    def ask(self, image: bytes) -> float:
        """Have one image answered, and give the time that took, in seconds."""
        start_s = time.perf_counter()
        self.client.send(image)
        self.client.recv()
        return time.perf_counter() - start_s


def _child(function: Callable[..., None], connection: Connection, *arguments: object) -> None:
    # A session of its own, as each process of the real cell has: the kernel shares a busy core out by session.
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function(connection, *arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _echo_hub(parent: Connection, image: bytes) -> None:
    context: zmq.Context[Socket] = zmq.Context()
    devices, address = _router(context)
    parent.send(address)
    route, _ = devices.recv_multipart()
    parent.send("ready")
    clock = time.perf_counter_ns
    while True:
        duration_s = parent.recv()
        taken_us = []
        start_ns = clock()
        end_ns = start_ns + round(duration_s * 1e9)
        while start_ns < end_ns:
            devices.send_multipart((route, image))
            devices.recv_multipart()
            done_ns = clock()
            taken_us.append((done_ns - start_ns) / 1000)
            start_ns = done_ns
        parent.send(taken_us)


def _hub(parent: Connection, names: list[bytes], answer_bytes: int) -> None:
    context: zmq.Context[Socket] = zmq.Context()
    devices, device_address = _router(context)
    clients, client_address = _router(context)
    parent.send(device_address)
    parent.send(client_address)
    answer = bytes(answer_bytes)
    for _ in names:
        devices.recv_multipart()
    parent.send("ready")
    while True:
        client, image = clients.recv_multipart()
        for name in names:
            devices.send_multipart((name, image))
        for _ in names:
            devices.recv_multipart()
        clients.send_multipart((client, answer))


def _agent(
    _parent: Connection,
    devices: Address,
    name: bytes,
    shape: tuple[int, ...],
    answers: Callable[[], Engine | bytes],
) -> None:
    context: zmq.Context[Socket] = zmq.Context()
    engine = answers()
    socket = _dealer(context, devices, name)
    socket.send(b"")
    if isinstance(engine, bytes):
        while True:
            socket.recv()
            socket.send(engine)
    engine.warm_up(3)
    while True:
        image = np.frombuffer(socket.recv(), np.uint8).reshape(1, *shape)  # (H * W * C,) -> (1, H, W, C)
        socket.send(engine.features(image)[0].data)  # (1, dim) -> (dim,)


def _router(context: zmq.Context[Socket]) -> tuple[Socket, Address]:
    public, secret = zmq.curve_keypair()
    socket = context.socket(zmq.ROUTER)
    socket.curve_server = True
    socket.curve_publickey, socket.curve_secretkey = public, secret
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    return socket, Address(f"tcp://127.0.0.1:{port}", public)


def _dealer(context: zmq.Context[Socket], address: Address, name: bytes) -> Socket:
    own = KeyPair(*zmq.curve_keypair())
    socket = context.socket(zmq.DEALER)
    socket.routing_id = name
    socket.curve_serverkey = address.key
    socket.curve_publickey, socket.curve_secretkey = own.public, own.secret
    socket.connect(address.endpoint)
    return socket
