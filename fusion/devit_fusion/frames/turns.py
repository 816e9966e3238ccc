"""Whose request is next: clients share the time of the devices by weight. No sockets, no clock of its own.

This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) on the time that devices work. Each client has a
tag: the time that its frames have taken, divided by its weight. The lowest goes first; of its connections the one that
has had the least, and of that one's requests the one whose deadline is first. What a frame took is known when it has
ended; until then it counts as much as the client's last ones. Whoever comes after a pause starts level with the others:
time cannot be saved up. So while two clients both wait, what one gets for its weight is ahead of the other by no more
than one frame of each, and those that are with devices.

Clients whose requests ask different devices do not wait for each other, so tags may drift apart; what a client lags
behind by more than ``_MOST_LAG_NS`` of devices' time is forgiven, or it would keep all others waiting for as long.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from devit_contract.artefacts.fleet import ClientEntry
from devit_contract.wire.codec import State
from devit_contract.wire.status import ClientStatus
from devit_contract.wire.words import ShedReason
from devit_fusion.frames.decoding import Decoding
from devit_fusion.ports.clients import Request

_SMOOTHING = 4
"""The time of a client's frames is averaged over about as many."""
_MAX_LINES = 256
"""Connections that are remembered, beyond those with open requests."""
_LEAST_BYTES = 1 << 16
"""A waiting request weighs at least so much, or a client with many small ones would never be the heaviest."""
_MOST_LAG_NS = 100_000_000
_ALONE_NS = 1_000_000_000
"""A client that was the only one to ask for so long is alone."""


@dataclass
class _Turn:
    """What a client or a connection has had."""

    had_ns: float = 0.0
    """Time of devices, by weight."""
    open: int = 0
    """Requests that wait or are with devices."""
    waiting_bytes: int = 0
    """Of its requests that wait, see :data:`_LEAST_BYTES`."""


@dataclass
class _Client(_Turn):
    name: str = ""
    weight: int = 1
    max_in_flight: int = 0
    level_ns: float = 0.0
    """How much the connection had had whose turn it was last."""
    asked_ns: int = -_ALONE_NS
    """When it asked last."""
    frame_ns: float = 1e6
    """What one of its frames takes of the devices, lately."""
    waiting: int = 0
    device_ns: int = 0
    frames: Counter[str] = field(default_factory=Counter)
    shed: Counter[ShedReason] = field(default_factory=Counter)
    decoding: Decoding = field(default_factory=Decoding)


@dataclass
class _Line(_Turn):
    """The requests of one connection, in the order of their deadlines."""

    client: _Client = field(default_factory=_Client)
    waiting: deque[Request] = field(default_factory=deque)


class Turns:
    """All requests that wait, and the time that each client has had."""

    def __init__(self, clients: Iterable[ClientEntry]) -> None:
        """Know the clients of the fleet from the start."""
        self._clients: dict[str, _Client] = {}
        self._lines: dict[bytes, _Line] = {}
        self._level_ns = 0.0
        self._newest: _Client | None = None
        """Who asked last."""
        self._changed_ns = -_ALONE_NS
        """When another client asked than before."""
        self.waiting = 0
        """Requests."""
        self.waiting_bytes = 0
        """Of their pictures."""
        for entry in clients:
            self.set_client(entry)

    @property
    def names(self) -> frozenset[str]:
        """The clients it knows."""
        return frozenset(self._clients)

    def set_client(self, entry: ClientEntry) -> None:
        """Add a client, or change the limits of one; its requests and what it has had stay."""
        client = self._client(entry.name)
        client.weight, client.max_in_flight = entry.weight, entry.max_in_flight

    def remove_client(self, name: str) -> list[Request]:
        """Forget a client, and take out its requests that wait; those with devices end as usual."""
        client = self._clients.pop(name)
        lines = {route: line for route, line in self._lines.items() if line.client is client}
        taken = [request for line in lines.values() for request in line.waiting]
        for route, line in lines.items():
            while line.waiting:
                self._remove(line, line.waiting.pop())
                line.open -= 1
                client.open -= 1
            if not line.open:
                del self._lines[route]
        return taken

    def is_at_limit(self, request: Request) -> bool:
        """Tell whether a client has as many requests under way as it may."""
        client = self._client(request.name)
        return 0 < client.max_in_flight <= client.open

    def add(self, request: Request) -> None:
        """Let a request wait at its place in its connection's line."""
        line, waiting_bytes = self._line_of(request), _least_bytes(request)
        client = line.client
        if client is not self._newest:
            if self._newest is not None:
                self._changed_ns = request.arrival_ns
            self._newest = client
        waiting = line.waiting
        if not waiting:  # after a pause it starts at the level of the others
            if not client.waiting and client.had_ns < self._level_ns:
                client.had_ns = self._level_ns
            if line.had_ns < client.level_ns:
                line.had_ns = client.level_ns
        client.asked_ns = request.arrival_ns
        client.open += 1
        line.open += 1
        client.waiting_bytes += waiting_bytes
        line.waiting_bytes += waiting_bytes
        if waiting and waiting[-1].deadline_ns > request.deadline_ns:
            insort(waiting, request, key=lambda other: other.deadline_ns)
        else:
            waiting.append(request)
        client.waiting += 1
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

    def lowest_ns(self, now_ns: int) -> float:
        """Give the lowest tag with which a client that has asked lately asks next; infinity where one asks alone."""
        if now_ns - self._changed_ns >= _ALONE_NS:
            return math.inf
        level_ns, since_ns = self._level_ns, now_ns - _ALONE_NS
        tags = [client.had_ns for client in self._clients.values() if client.asked_ns > since_ns]
        return max(level_ns, min(tags, default=level_ns))

    def leaves_room(self, request: Request, lowest_ns: float) -> bool:
        """Tell whether a client that has frames with devices is to leave the last place there to others.

        So it is if another one would go first: else one that asks now and then would wait for all frames of one that
        floods, and no device stops a frame once it is there.
        """
        client = self._lines[request.came_by].client
        return client.had_ns > lowest_ns and client.open > client.waiting

    def take(self, request: Request) -> None:
        """Take the first of a line out: it is sent to devices now."""
        line = self._lines[request.came_by]
        self._remove(line, line.waiting.popleft())
        client = line.client
        least_ns = self._level_ns - _MOST_LAG_NS / client.weight
        if client.had_ns < least_ns:
            client.had_ns = least_ns
        self._level_ns, client.level_ns = max(self._level_ns, client.had_ns), max(client.level_ns, line.had_ns)
        request.charged_ns = client.frame_ns
        client.had_ns += client.frame_ns / client.weight
        line.had_ns += client.frame_ns

    def take_heaviest(self) -> Request:
        """Take out the last request of the client that has most waiting for its weight: there is no room for it."""
        line = self._heaviest()
        request = line.waiting.pop()
        self._remove(line, request)
        return request

    def is_heaviest(self, request: Request) -> bool:
        """Tell whether :meth:`take_heaviest` would take this request if it was added."""
        line = self._lines.get(request.came_by)
        if line is None or not line.waiting or line.waiting[-1].deadline_ns > request.deadline_ns:
            return False
        return self._heaviest() is line

    def ended(self, request: Request, took_ns: int, state: State) -> None:
        """Note how a request ended that was taken, and what its frame took of the devices."""
        line = self._lines[request.came_by]
        client = line.client
        more_ns = took_ns - request.charged_ns
        client.had_ns += more_ns / client.weight
        line.had_ns += more_ns
        client.open -= 1
        line.open -= 1
        client.device_ns += took_ns
        if took_ns:  # else no device was asked
            client.frame_ns += (took_ns - client.frame_ns) / _SMOOTHING
        client.frames[state.name.lower()] += 1

    def shed(self, request: Request, why: ShedReason, *, is_new: bool = False) -> None:
        """Note that a request is not served: one that was taken, or a new one that was not added."""
        client = self._client(request.name)
        client.shed[why] += 1
        client.frames["failed"] += 1
        client.frames["shed"] += 1
        if not is_new:
            line = self._lines[request.came_by]
            client.had_ns -= request.charged_ns / client.weight
            line.had_ns -= request.charged_ns
            client.open -= 1
            line.open -= 1

    def limit_of(self, name: str) -> int:
        """Give the ``max_in_flight`` of a client."""
        return self._client(name).max_in_flight

    def status(self) -> tuple[ClientStatus, ...]:
        """Describe every client for people."""
        return tuple(
            ClientStatus(
                name=client.name,
                waiting=client.waiting,
                in_flight=client.open - client.waiting,
                frames=dict(client.frames),
                device_s=client.device_ns / 1e9,
                shed=dict(client.shed),
                weight=client.weight,
                max_in_flight=client.max_in_flight,
            )
            for client in self._clients.values()
        )

    def decoding(self, name: str) -> Decoding:
        """Find what is known of how long a client's picture files take."""
        return self._client(name).decoding

    def _client(self, name: str) -> _Client:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(name=name)
        return client

    def _line_of(self, request: Request) -> _Line:
        line = self._lines.get(request.came_by)
        if line is None:
            if len(self._lines) >= _MAX_LINES:
                self._lines = {route: kept for route, kept in self._lines.items() if kept.open}
            line = self._lines[request.came_by] = _Line(client=self._client(request.name))
        return line

    def _heaviest(self) -> _Line:
        lines = (line for line in self._lines.values() if line.waiting)
        return max(lines, key=lambda line: (line.client.waiting_bytes / line.client.weight, line.waiting_bytes))

    def _remove(self, line: _Line, request: Request) -> None:
        waiting_bytes = _least_bytes(request)
        line.waiting_bytes -= waiting_bytes
        line.client.waiting_bytes -= waiting_bytes
        line.client.waiting -= 1
        self.waiting -= 1
        self.waiting_bytes -= len(request.picture.payload)


def _least_bytes(request: Request) -> int:
    return max(_LEAST_BYTES, len(request.picture.payload))
