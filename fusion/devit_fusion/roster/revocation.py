"""Revoked keys: the node rereads their file while it serves, and ends every connection of those listed."""

from __future__ import annotations

from collections.abc import Mapping

from devit_contract.artefacts.fleet import ClientEntry, Device, Fleet, Node
from devit_contract.artefacts.revoked import RevokedKeys
from devit_contract.service.journal import Priority
from devit_contract.wire.sockets import Authenticator
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.ports.clients import ClientPort
from devit_fusion.ports.devices import DevicePort


class Revocation:
    """The file of revoked keys of one fleet, and what follows from it."""

    def __init__(
        self,
        revoked: RevokedKeys,
        authenticator: Authenticator,
        links: Mapping[str, Link],
        devices: DevicePort,
        clients: ClientPort,
        events: Events,
    ) -> None:
        """Join the parts; ``links`` is by device name."""
        self._revoked = revoked
        self._authenticator = authenticator
        self._links = links
        self._devices = devices
        self._clients = clients
        self._events = events
        self._locked: dict[str, str] = {}  # by name: the key

    def refresh(self, fleet: Fleet) -> list[Link]:
        """Reread the file; return the links that it ended, or that another fleet has given a revoked key."""
        self._revoked.refresh()
        if self._revoked.problem:
            self._events.note("", self._revoked.problem, Priority.ERROR)
        keys = self._revoked.keys
        members: tuple[Device | ClientEntry | Node, ...] = (*fleet.device, *fleet.client, *fleet.nodes)
        locked = {member.name: member.public_key for member in members if keys and member.public_key.encode() in keys}
        if keys == self._authenticator.revoked and locked == self._locked:
            return []
        self._authenticator.revoked, self._locked = keys, locked
        names = frozenset(locked)
        ended = []
        for device in fleet.device:
            link = self._links[device.name]
            link.is_revoked = device.name in names
            if link.is_revoked and link.hello is not None:
                self._devices.cut(link)
                ended.append(link)
        for port in (self._devices, self._clients):
            port.peers.revoke(names)
        return ended
