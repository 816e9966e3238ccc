"""LitServe: the front and each worker a server of its own, JSON over HTTP as its documentation has it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection

from benchmarks.network.bare import Children, receive
from benchmarks.peers.http_server import KEEP_S
from benchmarks.peers.peer import ANSWER_S, Pooled, Reply
from benchmarks.peers.work import Work

from devit_contract.arrays import UInt8Array

START_S = 60.0
Ask = Callable[[bytes], bytes]


class LitServe(Pooled):
    """Client -> front -> workers; each server has LitServe's own processes: HTTP, model, manager."""

    name = "LitServe"
    needs = ("litserve",)

    def start(self, stack: ExitStack) -> None:
        """Start workers, then the front."""
        children = stack.enter_context(Children())
        stack.callback(_kill, children)
        ports = [_start(children, Worker(self.work, device)) for device in range(self.work.devices)]
        for port in ports:
            _wait(port)
        self._port = _start(children, Front(self.work, ports))
        _wait(self._port)
        self.pool(stack)

    def connect(self) -> Callable[[UInt8Array], Reply]:
        """Open a connection that stays."""
        ask = Connected(self._port)

        def asked(image: UInt8Array) -> Reply:
            ask.send(image.tobytes())
            return self.reply(ask.receive())

        return asked


class Connected:
    """A connection to one server; sending and receiving apart, so that a front can ask all before it waits."""

    def __init__(self, port: int) -> None:
        """Connect with the first request."""
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)

    def send(self, content: bytes) -> None:
        """Send a request."""
        body = json.dumps({"content": base64.b64encode(content).decode()})
        self._connection.request("POST", "/predict", body, {"Content-Type": "application/json"})

    def receive(self) -> bytes:
        """Take its answer."""
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"expected an answer, found {response.status}: {answer[:200]!r}")
        return base64.b64decode(json.loads(answer)["content"])


class Worker:
    """What a worker does; made in LitServe's process for the model."""

    def __init__(self, work: Work, device: int) -> None:
        """Remember which device it is."""
        self._work, self._device = work, device

    def make(self) -> Ask:
        """Load the engine."""
        return self._work.worker(self._device)


class Front:
    """What the front does: it asks all workers, then takes their features."""

    def __init__(self, work: Work, ports: list[int]) -> None:
        """Remember where the workers are."""
        self._work, self._ports = work, ports

    def make(self) -> Ask:
        """Connect to the workers."""
        fuse = self._work.front()
        workers = [Connected(port) for port in self._ports]

        def ask(image: bytes) -> bytes:
            for worker in workers:
                worker.send(image)
            return fuse([worker.receive() for worker in workers])

        return ask


def _start(children: Children, role: Worker | Front) -> int:
    return receive(children.start(_serve, role, has_children=True), int)


def _kill(servers: Children) -> None:
    """Kill each server with the processes that it started: ended in order, they take seconds and tell tracebacks."""
    for pid in servers.pids:
        os.killpg(pid, signal.SIGKILL)


def _wait(port: int) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"LitServe: expected a server to be ready within {START_S:g} s, found none: see its output")


def _serve(parent: Connection, role: Worker | Front) -> None:
    import litserve
    from benchmarks.peers.litserve_api import Api

    server = litserve.LitServer(Api(role), accelerator="cpu", workers_per_device=1, timeout=ANSWER_S)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    parent.send(port)
    keep = {"timeout_keep_alive": KEEP_S}
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False, **keep)
