"""The undivided model behind HTTP: one server on one device, and as many of them behind HAProxy as there are devices.

This is what a user would choose who can run the whole model on one device: no fusion, one hop less. Starlette and
uvicorn are the lightest of Python's usual servers, and what LitServe and Ray Serve stand on too.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.network.bare import Children, receive
from benchmarks.peers.peer import ANSWER_S, Pooled, Reply
from benchmarks.peers.work import Work

from devit_contract.arrays import UInt8Array

KEEP_S = 600
"""How long a connection stays without requests: it has to outlast the turns of all other sides."""
CONFIG = """\
global
  maxconn 256
  nbthread 1
defaults
  mode http
  balance leastconn
  http-reuse always
  timeout connect 5s
  timeout client {keep_s}s
  timeout server {keep_s}s
frontend cell
  bind fd@{fd}
  default_backend replicas
backend replicas
"""


class OneServer(Pooled):
    """Client -> server, which runs the undivided model."""

    name = "one model, HTTP"
    needs = ("starlette", "uvicorn")
    part = "baseline"

    def start(self, stack: ExitStack) -> None:
        """Start the server."""
        self._port = receive(stack.enter_context(Children()).start(_serve, self.work), int)
        self.pool(stack)

    def connect(self) -> Callable[[UInt8Array], Reply]:
        """Open a connection that stays."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        return lambda image: self.reply(post(connection, image.tobytes()))


class Replicas(OneServer):
    """Client -> HAProxy -> the least busy of several servers."""

    name = "replicas, HAProxy"
    program = "haproxy"

    def start(self, stack: ExitStack) -> None:
        """Start servers and proxy."""
        children = stack.enter_context(Children())
        servers = [children.start(_serve, self.work) for _ in range(self.work.devices)]
        lines = [f"  server s{n} 127.0.0.1:{receive(each, int)}\n" for n, each in enumerate(servers)]
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._port = listener.getsockname()[1]
        file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="devit-"))) / "haproxy.cfg"
        file.write_text(CONFIG.format(fd=listener.fileno(), keep_s=KEEP_S) + "".join(lines))
        program = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")
        assert program is not None
        proxy = subprocess.Popen(
            [program, "-db", "-q", "-f", str(file)], pass_fds=[listener.fileno()], start_new_session=True
        )
        stack.callback(proxy.wait)
        stack.callback(proxy.terminate)
        self.pool(stack)


def post(connection: http.client.HTTPConnection, content: bytes) -> bytes:
    """Send a request and take its answer."""
    connection.request("POST", "/", content, {"Content-Type": "application/octet-stream"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise RuntimeError(f"expected an answer, found {response.status}: {answer[:200]!r}")
    return answer


def _serve(parent: Connection, work: Work) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    answer = work.worker("baseline")

    async def classify(request: Request) -> Response:
        return Response(answer(await request.body()), media_type="application/octet-stream")

    app = Starlette(routes=[Route("/", classify, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    parent.send(listener.getsockname()[1])
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_keep_alive=KEEP_S)
    uvicorn.Server(config).run([listener])
