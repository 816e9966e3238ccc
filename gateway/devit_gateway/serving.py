"""The server: a socket, its application, and a stop on request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from devit_contract.errors import AddressError
from devit_contract.service.journal import Log, Priority
from devit_gateway.access import Address
from devit_gateway.connection import Connection, Patience

_BACKLOG = 512
_RETRY_S = 0.1
"""Until another connection is taken after one could not be."""
_LOOK_S = 0.1
"""How often connections are looked at: those whose peers take too long are ended."""
_BODY_GRACE_S = 1.0
"""For the rest of a body that is coming when the stop comes."""
_CLOSING_GRACE_S = 0.5
"""For what was answered last to reach its client."""


def listen(address: Address) -> tuple[socket.socket, str]:
    """Open the port; return the socket, and its URL with the real port.

    Raises:
        AddressError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off, which costs 40 ms on every answer.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((address.host, address.port))
    except OSError as err:
        opened.close()
        raise AddressError(
            f"--http {address.host}:{address.port}: expected a free address of this machine, found: {err.strerror}: "
            "stop what listens there or choose another port"
        ) from err
    host = f"[{address.host}]" if family == socket.AF_INET6 else address.host
    return opened, f"{address.scheme}://{host}:{opened.getsockname()[1]}"


def serve(
    app: ASGIApp,
    opened: socket.socket,
    address: Address,
    wait_for_stop: Callable[[], object],
    *,
    on_ready: Callable[[], None],
    logs_requests: bool,
    grace_s: float,
    patience: Patience,
) -> None:
    """Serve until ``wait_for_stop`` returns; what has come whole by then is answered, within ``grace_s``.

    ``on_ready`` is called once the port, ``opened`` by :func:`listen`, accepts connections. With ``logs_requests``,
    stderr gets a line for each request; headers are never in it.
    """
    if logs_requests:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    config = uvicorn.Config(
        app,
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=logs_requests,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(patience.idle_s),
        ssl_certfile=address.tls_cert,
        ssl_keyfile=address.tls_key,
    )
    # Invalid input from unknown peers is no event; bugs are.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(config, patience, on_ready, grace_s)
    threading.Thread(target=_stop, args=(server, wait_for_stop), daemon=True).start()
    server.run(sockets=[opened])
    if server.bug is not None:
        raise server.bug
    if server.refused:
        text = f"stopped; requests refused, as they had not come whole or were not answered in time: {server.refused}"
        Log("gateway").log(Priority.WARNING, text)


class _Server(uvicorn.Server):
    """Accepts connections within bounds, and leaves the signals to whoever stops it."""

    def __init__(
        self, config: uvicorn.Config, patience: Patience, on_ready: Callable[[], None], grace_s: float
    ) -> None:
        super().__init__(config)
        self.refused = 0
        """Requests that a stop has ended."""
        self._patience = patience
        self._on_ready = on_ready
        self._grace_s = grace_s
        self.bug: BaseException | None = None
        """What has ended one of its loops."""
        self._loops: list[asyncio.Task[None]] = []
        self._greeting: dict[asyncio.Task[None], None] = {}  # in the order of their coming

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # asyncio's own server bounds neither connections nor handshakes
        for listener in sockets or []:
            listener.setblocking(False)
            listener.listen(_BACKLOG)
            self._loops.append(asyncio.create_task(self._accept(listener)))
        self._loops.append(asyncio.create_task(self._watch()))
        for task in self._loops:
            task.add_done_callback(self._note_end)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        *accepting, watching = self._loops
        for task in [*accepting, *self._greeting]:
            task.cancel()
        loop = asyncio.get_running_loop()
        loop.call_later(_BODY_GRACE_S, self._cut, lambda connection: connection.is_idle)
        loop.call_later(_BODY_GRACE_S, self._refuse, lambda connection: connection.is_body_coming)
        loop.call_later(self._grace_s, self._refuse, lambda connection: connection.is_under_way)
        loop.call_later(self._grace_s + _CLOSING_GRACE_S, self._cut, lambda _: True)
        await super().shutdown(sockets)
        watching.cancel()

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.bug, self.should_exit = task.exception(), True

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                opened, _ = await loop.sock_accept(listener)
            except OSError:  # it has gone again, or there are no descriptors
                await asyncio.sleep(_RETRY_S)
                continue
            if len(self._greeting) >= self._patience.handshakes:
                oldest = next(iter(self._greeting))
                del self._greeting[oldest]
                oldest.cancel()
            task = loop.create_task(self._greet(opened))
            self._greeting[task] = None
            task.add_done_callback(lambda done: self._greeting.pop(done, None))
            await asyncio.sleep(0)  # or connections that wait to be accepted would leave no turn to the others

    async def _greet(self, opened: socket.socket) -> None:
        ssl = self.config.ssl
        with contextlib.suppress(OSError):  # it has gone, or does not speak TLS
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self.config, self.server_state, self._patience),
                opened,
                ssl=ssl,
                ssl_handshake_timeout=None if ssl is None else self._patience.handshake_s,
            )

    async def _watch(self) -> None:
        while True:
            now_s = time.monotonic()
            for connection in self._connections():
                connection.look(now_s)
            await asyncio.sleep(_LOOK_S)

    def _connections(self) -> list[Connection]:
        return [each for each in self.server_state.connections if isinstance(each, Connection)]

    def _refuse(self, is_meant: Callable[[Connection], bool]) -> None:
        for connection in filter(is_meant, self._connections()):
            connection.refuse("the gateway is stopping: try again later")
            self.refused += 1

    def _cut(self, is_meant: Callable[[Connection], bool]) -> None:
        for connection in filter(is_meant, self._connections()):
            connection.transport.abort()


def _stop(server: uvicorn.Server, wait_for_stop: Callable[[], object]) -> None:
    wait_for_stop()
    server.should_exit = True
