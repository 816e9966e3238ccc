"""The server: a socket, its application, and a stop on request."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from devit_contract.errors import AddressError
from devit_contract.service.lifecycle import StopSignal
from devit_gateway.access import Address

_MAX_CONNECTIONS = 256
_MAX_HEADER_BYTES = 16 * 1024
_KEEP_ALIVE_S = 30
_GRACE_S = 5


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
    should_stop: StopSignal,
    *,
    on_ready: Callable[[], None],
    logs_requests: bool,
) -> None:
    """Serve until ``should_stop``; pending requests get some seconds to end.

    ``on_ready`` is called once the port, ``opened`` by :func:`listen`, accepts connections. With ``logs_requests``,
    stderr gets a line for each request; headers are never in it.
    """
    if logs_requests:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    config = uvicorn.Config(
        app,
        # h11, as it bounds the headers.
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=logs_requests,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=address.tls_cert,
        ssl_keyfile=address.tls_key,
    )
    # Invalid input from unknown peers is no event; bugs are.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(config, on_ready)
    threading.Thread(target=_stop, args=(server, should_stop), daemon=True).start()
    server.run(sockets=[opened])


class _Server(uvicorn.Server):
    """Leaves the signals to :class:`StopSignal`, and reports when it accepts connections."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


def _stop(server: uvicorn.Server, should_stop: StopSignal) -> None:
    should_stop.wait()
    server.should_exit = True
