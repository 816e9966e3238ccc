"""Whose request is next: clients share the time of the devices, whoever asks most. No sockets, no clock of its own.

The client that has had the least time goes first, and of its connections the one that has. What a frame took is known
when it has ended; until then it counts as much as the client's last ones. Whoever comes after a pause starts level with
the others: time cannot be saved up (start-time fair queueing).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from devit_contract.wire.codec import State
from devit_contract.wire.status import ClientStatus
from devit_fusion.frames.decoding import Decoding
from devit_fusion.ports.clients import Request

_SMOOTHING = 4
"""The time of a client's frames is averaged over about as many."""
_MAX_LINES = 256
"""Connections that are remembered, beyond those with open requests."""
_LEAST_BYTES = 1 << 16
"""A waiting request weighs at least so much, or a client with many small ones would never be the heaviest."""


@dataclass
class _Turn:
    """What a client or a connection has had."""

    had_ns: float = 0.0
    open: int = 0
    """Requests that wait or are with devices."""
    weight_bytes: int = 0
    """Of its requests that wait, see :data:`_LEAST_BYTES`."""

    def begin(self, level_ns: float, weight_bytes: int) -> None:
        """Let one more request wait; after a pause, start at the level of the others."""
        if not self.open:
            self.had_ns = max(self.had_ns, level_ns)
        self.open += 1
        self.weight_bytes += weight_bytes


@dataclass
class _Client(_Turn):
    name: str = ""
    level_ns: float = 0.0
    """How much the connection had had whose turn it was last."""
    frame_ns: float = 1e6
    """What one of its frames takes of the devices, lately."""
    waiting: int = 0
    device_ns: int = 0
    frames: Counter[str] = field(default_factory=Counter)
    decoding: Decoding = field(default_factory=Decoding)


@dataclass
class _Line(_Turn):
    """The requests of one connection, in their order."""

    client: _Client = field(default_factory=_Client)
    waiting: deque[Request] = field(default_factory=deque)


class Turns:
    """All requests that wait, and the time that each client has had."""

    def __init__(self, names: Iterable[str]) -> None:
        """Know the clients of the fleet from the start."""
        self._clients = {name: _Client(name=name) for name in names}
        self._lines: dict[bytes, _Line] = {}
        self._level_ns = 0.0
        self.waiting = 0
        """Requests."""
        self.waiting_bytes = 0
        """Of their pictures."""

    def know(self, names: Iterable[str]) -> None:
        """Know these clients; others are forgotten that have no open requests."""
        kept = {name: client for name, client in self._clients.items() if client.open}
        self._clients = {name: self._client(name) for name in names} | kept

    def add(self, request: Request) -> None:
        """Let a request wait at the end of its connection's line."""
        line, weight_bytes = self._line_of(request), _weight_bytes(request)
        line.client.begin(self._level_ns, weight_bytes)
        line.begin(line.client.level_ns, weight_bytes)
        line.waiting.append(request)
        line.client.waiting += 1
        self.waiting += 1
        self.waiting_bytes += len(request.picture.payload)

    def heads(self) -> list[Request]:
        """List the first request of every line, in the order of their turns."""
        if not self.waiting:
            return []
        lines = [line for line in self._lines.values() if line.waiting]
        if len(lines) > 1:
            lines.sort(key=lambda line: (line.client.had_ns, line.had_ns, line.waiting[0].arrival_ns))
        return [line.waiting[0] for line in lines]

    def take(self, request: Request) -> None:
        """Take the first of a line out: it is sent to devices now."""
        line = self._lines[request.came_by]
        self._remove(line, line.waiting.popleft())
        client = line.client
        self._level_ns, client.level_ns = max(self._level_ns, client.had_ns), max(client.level_ns, line.had_ns)
        request.charged_ns = client.frame_ns
        client.had_ns += client.frame_ns
        line.had_ns += client.frame_ns

    def take_heaviest(self) -> Request:
        """Take out the newest request of the client that has most waiting: there is no room for it."""
        lines = (line for line in self._lines.values() if line.waiting)
        line = max(lines, key=lambda line: (line.client.weight_bytes, line.weight_bytes))
        request = line.waiting.pop()
        self._remove(line, request)
        return request

    def ended(self, request: Request, took_ns: int, state: State, *, is_shed: bool) -> None:
        """Note how a request ended, and what its frame took of the devices."""
        line = self._lines[request.came_by]
        client = line.client
        for turn in (client, line):
            turn.had_ns += took_ns - request.charged_ns
            turn.open -= 1
        client.device_ns += took_ns
        if took_ns:  # else no device was asked
            client.frame_ns += (took_ns - client.frame_ns) / _SMOOTHING
        client.frames[state.name.lower()] += 1
        if is_shed:
            client.frames["shed"] += 1

    def status(self) -> tuple[ClientStatus, ...]:
        """Describe every client for people."""
        return tuple(
            ClientStatus(
                name=client.name,
                waiting=client.waiting,
                in_flight=client.open - client.waiting,
                frames=dict(client.frames),
                device_s=client.device_ns / 1e9,
            )
            for client in self._clients.values()
        )

    def decoding(self, name: str) -> Decoding:
        """Find what is known of how long a client's picture files take."""
        return self._client(name).decoding

    def _client(self, name: str) -> _Client:
        return self._clients.setdefault(name, _Client(name=name))

    def _line_of(self, request: Request) -> _Line:
        line = self._lines.get(request.came_by)
        if line is None:
            if len(self._lines) >= _MAX_LINES:
                self._lines = {route: kept for route, kept in self._lines.items() if kept.open}
            line = self._lines[request.came_by] = _Line(client=self._client(request.name))
        return line

    def _remove(self, line: _Line, request: Request) -> None:
        weight_bytes = _weight_bytes(request)
        line.weight_bytes -= weight_bytes
        line.client.weight_bytes -= weight_bytes
        line.client.waiting -= 1
        self.waiting -= 1
        self.waiting_bytes -= len(request.picture.payload)


def _weight_bytes(request: Request) -> int:
    return max(_LEAST_BYTES, len(request.picture.payload))
