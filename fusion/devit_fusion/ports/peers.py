"""Who is connected to a port: strangers until their first message, then peers under the name of their key.

A routing id says nothing, as every peer may choose it: only the key tells who speaks. Connections are bounded for each
key, and those of all strangers together; else whoever has one key, or none, could take every descriptor of the node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

import zmq

from devit_contract.service.journal import Priority
from devit_contract.wire.sockets import Connection, user_id
from devit_fusion.events import Events

_MAX_STRANGERS = 128
"""Connections that have not said anything yet; a fleet that comes back at once has a few dozen for some ms."""
_MAX_NAMELESS = 256
"""Connections of a port without keys, which is on loopback."""


@dataclass(frozen=True, eq=False)
class Peer:
    """A connection that has spoken."""

    route: bytes
    """Its routing id at this port."""
    name: str
    """Of its key in ``fleet.toml``; empty without encryption."""
    place: int
    """Among the connections of its key: the lowest that was free."""
    connection: Connection


class Peers:
    """The connections of one ROUTER."""

    def __init__(self, events: Events, *, served: int, refused: int, has_keys: bool) -> None:
        """Start with none.

        Of each key, connections at places below ``served`` are for use; ``refused`` more may stay to be told that they
        are not; all others are shut at their first message.
        """
        self._events = events
        self._served = served if has_keys else _MAX_NAMELESS
        self._places = self._served + refused
        self._has_keys = has_keys
        self._revoked: frozenset[str] = frozenset()
        self._strangers: dict[int, Connection] = {}  # by descriptor, the oldest first
        self._peers: dict[bytes, Peer] = {}  # by route

    def accepted(self, descriptor: int) -> None:
        """Take in a stranger (``EVENT_ACCEPTED``); shut one if there are too many."""
        connection = Connection.of_descriptor(descriptor)
        if connection is None or any(peer.connection == connection for peer in self._peers.values()):
            return  # it has gone already, or its first message was taken before this event
        self._strangers.pop(descriptor, None)
        self._strangers[descriptor] = connection
        if len(self._strangers) > _MAX_STRANGERS:
            self._shut_stranger()

    def ended(self, descriptor: int) -> None:
        """Forget a connection (``EVENT_DISCONNECTED``)."""
        self._strangers.pop(descriptor, None)
        for peer in list(self._peers.values()):
            if peer.connection.descriptor == descriptor and not peer.connection.is_open:  # not the next one's yet
                del self._peers[peer.route]

    def of(self, route: bytes, frame: zmq.Frame, descriptor: int) -> Peer | None:
        """Find who sent a message by a connection; ``None`` if nobody may send it, and the connection was shut."""
        name = user_id(frame) if self._has_keys else ""
        peer = self._peers.get(route)
        if peer is not None and peer.connection.descriptor == descriptor and peer.name == name:
            if peer.place < self._served:
                return peer
            del self._peers[route]  # a place may have become free
        return self._meet(route, name, descriptor)

    def is_served(self, peer: Peer) -> bool:
        """Tell whether a peer's connection is within the bound of its key."""
        return peer.place < self._served

    def cut(self, peer: Peer) -> None:
        """End a connection; its peer may connect again."""
        self._peers.pop(peer.route, None)
        peer.connection.cut()

    def revoke(self, names: frozenset[str]) -> None:
        """Accept nothing more under the keys of these names, and end all their connections."""
        self._revoked = names
        self.end(names)

    def end(self, names: Container[str]) -> None:
        """End all connections under the keys of these names; a stranger may have such a key, so all come again."""
        for stranger in self._strangers.values():
            stranger.cut()
        for peer in list(self._peers.values()):
            if peer.name in names:
                self.cut(peer)

    def _meet(self, route: bytes, name: str | None, descriptor: int) -> Peer | None:
        self._strangers.pop(descriptor, None)
        connection = Connection.of_descriptor(descriptor)
        if connection is None or not connection.is_open:
            return None
        place = self._free_place(name) if name is not None and name not in self._revoked else None
        if name is None or place is None:
            connection.cut()
            return None
        peer = self._peers[route] = Peer(route, name, place, connection)
        return peer

    def _free_place(self, name: str) -> int | None:
        mine = [peer for peer in self._peers.values() if peer.name == name]
        if len(mine) >= self._served:
            for peer in mine:
                if not peer.connection.is_open:
                    del self._peers[peer.route]
            mine = [peer for peer in mine if peer.route in self._peers]
        if len(mine) >= self._served:
            text = f"{len(mine) + 1} connections with its key: expected {self._served} at most"
            self._events.note(name, text, Priority.WARNING)
        taken = {peer.place for peer in mine}
        return next((place for place in range(self._places) if place not in taken), None)

    def _shut_stranger(self) -> None:
        """Shut the oldest of the address that has most: an honest newcomer is rarely there."""
        crowd = Counter(str(connection.peer[0]) for connection in self._strangers.values())
        address, count = crowd.most_common(1)[0]
        oldest = next(number for number, found in self._strangers.items() if found.peer[0] == address)
        self._strangers.pop(oldest).cut()
        text = f"{count} connections of {address} say nothing: the oldest was shut"
        self._events.note("", text, Priority.WARNING)
