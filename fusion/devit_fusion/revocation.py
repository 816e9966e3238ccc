"""Revoked keys: the node rereads their file while it serves, and ends every connection of those listed."""

from __future__ import annotations

from collections.abc import Mapping

from devit_contract.artefacts.fleet import ClientEntry, Device, Fleet
from devit_contract.artefacts.revoked import RevokedKeys
from devit_contract.service.journal import Priority
from devit_contract.wire.sockets import Authenticator
from devit_fusion.events import Events
from devit_fusion.links import Link
from devit_fusion.ports.clients import ClientPort
from devit_fusion.ports.devices import DevicePort

_PERIOD_NS = 200_000_000
"""Between two looks at the file."""


class Revocation:
    """The file of revoked keys of one fleet, and what follows from it."""

    def __init__(
        self,
        revoked: RevokedKeys,
        fleet: Fleet,
        authenticator: Authenticator,
        links: Mapping[str, Link],
        devices: DevicePort,
        clients: ClientPort,
        events: Events,
    ) -> None:
        """Join the parts; ``links`` is by device name."""
        self._revoked = revoked
        self._fleet = fleet
        self._authenticator = authenticator
        self._links = links
        self._devices = devices
        self._clients = clients
        self._events = events
        self.next_ns = 0
        """When :meth:`refresh` has something to do."""

    def refresh(self, now_ns: int) -> list[Link]:
        """Reread the file if it is time; return the links that it ended."""
        if now_ns < self.next_ns:
            return []
        self.next_ns = now_ns + _PERIOD_NS
        self._revoked.refresh()
        if self._revoked.problem:
            self._events.note("", self._revoked.problem, Priority.ERROR)
        keys = self._revoked.keys
        if keys == self._authenticator.revoked:
            return []
        self._authenticator.revoked = keys
        members: tuple[Device | ClientEntry, ...] = (*self._fleet.device, *self._fleet.client)
        names = frozenset(member.name for member in members if member.public_key.encode() in keys)
        ended = []
        for device in self._fleet.device:
            link = self._links[device.name]
            link.is_revoked = device.name in names
            if link.is_revoked and link.hello is not None:
                self._devices.cut(link)
                ended.append(link)
        for port in (self._devices, self._clients):
            port.peers.revoke(names)
        return ended
