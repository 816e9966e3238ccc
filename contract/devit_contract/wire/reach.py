"""Where a node can be reached, and why it cannot: libzmq tells neither.

libzmq 4.3.5 takes the first address of a name, whether anything answers there or not, and repeats a connection that
fails without a word. So while there is no link, plain TCP connections to all addresses of the node are tried: the first
that answers is the one to use. A thread does it, since a name may take the resolver seconds.
"""

from __future__ import annotations

import math
import socket as tcp
import threading
import time
from contextlib import suppress
from typing import Any

import zmq

from devit_contract.artefacts.fleet import parse_endpoint
from devit_contract.wire.sockets import Socket

_PATIENCE_S = 1.0
"""Until a link that has not failed is taken for one that will not come."""
_PAUSE_S = 1.0
"""Between two searches."""
_SETTLE_S = 0.3
"""From the loss of a link until a search: libzmq makes most links again by then."""
_ANSWER_S = 0.6
"""How long one address may take to answer."""
_TELL_S = 1.5
"""Until the reason is told: a node that restarts is back by then, or soon after."""
_TELL_AGAIN_S = 60.0
_LOOK_S = 0.02
"""How often a search under way is looked after."""


class Reach:
    """Watches one DEALER's link, for one thread: call :meth:`tend` at :attr:`next_s`, or more often."""

    def __init__(self, socket: Socket, endpoint: str) -> None:
        """Watch a socket that has been connected to ``endpoint`` just now."""
        self.problem = ""
        """Why there is no link, in a few words; empty while there is one, or none is missed yet."""
        self._socket = socket
        self._endpoint = endpoint
        self._connected_to = endpoint
        self._search: _Search | None = None
        self._is_refused = self._is_reached = False
        self._search_s = math.inf
        self._tell_again_s = -math.inf
        self.lost()
        self._earliest_s = -math.inf  # a first connection that fails has nothing to settle

    @property
    def next_s(self) -> float:
        """When :meth:`tend` has something to do, on ``time.monotonic``."""
        return time.monotonic() + _LOOK_S if self._search is not None else self._search_s

    def linked(self) -> None:
        """Note that the handshake succeeded."""
        self.problem, self._search, self._search_s, self._is_refused = "", None, math.inf, False

    def lost(self) -> None:
        """Note that a connection has ended, with a link on it or not, and that libzmq is about to make another."""
        if self._search_s == math.inf:  # it had been linked
            now_s = time.monotonic()
            self._earliest_s = now_s + _SETTLE_S
            self._search_s, self._tell_s = now_s + _PATIENCE_S, max(self._tell_again_s, now_s + _TELL_S)

    def failed(self) -> None:
        """Note that libzmq could not connect, or waits before it tries again."""
        self._search_s = max(self._earliest_s, time.monotonic())

    def refused(self) -> None:
        """Note that the peer ended the handshake: it can be reached, and the reason is another's to tell."""
        self._is_refused = True

    def reconnect(self) -> None:
        """Have libzmq connect again, which it never does after an outright refusal."""
        self._connect(self._connected_to)

    def tend(self) -> str:
        """Search, and connect where the node answers; give one line to tell the user, now and then, else nothing."""
        now_s = time.monotonic()
        if self._search is None:
            if now_s < self._search_s:
                return ""
            self._search = _Search(self._endpoint)
            self._earliest_s = self._search_s = now_s + _PAUSE_S
        search = self._search
        if search.is_alive():
            self.problem = self.problem or search.problem
        else:
            self._search = None
            self._is_reached = search.found != ""
            self._is_refused &= self._is_reached
            self.problem = "" if self._is_refused else search.problem
            if search.found not in ("", self._connected_to):
                self._connect(search.found)
        # What takes connections will end the handshake, or libzmq will: that is told by who watches the link.
        if not self.problem or self._is_reached or now_s < self._tell_s:
            return ""
        self._tell_s = self._tell_again_s = now_s + _TELL_AGAIN_S
        return f"{self._endpoint}: no link to the node, {self.problem}: check that fusion-node runs there; trying again"

    def _connect(self, endpoint: str) -> None:
        with suppress(zmq.ZMQError):  # after an outright refusal it has given the endpoint up already
            self._socket.disconnect(self._connected_to)
        self._socket.connect(endpoint)
        self._connected_to = endpoint


class _Search(threading.Thread):
    """One look at all addresses of an endpoint."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(name="reach", daemon=True)
        self._host, self._port = parse_endpoint(endpoint, "endpoint")
        self.found = ""
        """Endpoint with the address that answers."""
        self.problem = "its name is still being looked up"
        self.start()

    def run(self) -> None:
        try:
            addresses = tcp.getaddrinfo(self._host, self._port, type=tcp.SOCK_STREAM)
        except (OSError, UnicodeError) as err:
            self.problem = f"its name is not known ({getattr(err, 'strerror', err)})"
            return
        problems: dict[str, str] = {}
        for family, kind, protocol, _, address in addresses:
            try:
                with tcp.socket(family, kind, protocol) as trial:
                    trial.settimeout(_ANSWER_S)
                    trial.connect(address)
                    self.found = _numeric_endpoint(address)
                self.problem = "it takes connections, but does not answer as a node"
                return
            except OSError as err:
                timed_out = isinstance(err, TimeoutError)
                problems[str(address[0])] = "nothing answers" if timed_out else (err.strerror or str(err)).lower()
            self.problem = _summary(problems)


def _numeric_endpoint(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    if len(address) == 2:
        return f"tcp://{host}:{port}"
    zone = f"%{tcp.if_indextoname(address[3])}" if address[3] and "%" not in host else ""
    return f"tcp://[{host}{zone}]:{port}"


def _summary(problems: dict[str, str]) -> str:
    """Say what went wrong, and where if there are several addresses."""
    if len(set(problems.values())) == 1:
        return next(iter(problems.values()))
    return ", ".join(f"{problem} at {address}" for address, problem in problems.items())
