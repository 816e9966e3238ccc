"""The members of a running cell: devices and clients come and go as the fleet file says, and revoked keys go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from devit_contract.artefacts.fleet import ClientEntry, Device, Fleet, Node
from devit_contract.artefacts.revoked import RevokedKeys
from devit_contract.errors import DevitError, InputError
from devit_contract.service.journal import Priority
from devit_contract.wire.sockets import Authenticator
from devit_contract.wire.status import FleetStatus
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.ports.clients import ClientPort
from devit_fusion.ports.devices import DevicePort
from devit_fusion.roster.members import allowed_keys, new_link
from devit_fusion.roster.revocation import Revocation
from devit_fusion.roster.watched import WatchedFleet

_PERIOD_NS = 200_000_000
"""Between two looks at the files."""
_APPLIED = {"device", "client", "extra"}
"""What a change of needs no restart; other loads are the profile's alone."""


Lose = Callable[[Link, str], None]
"""Ends what was expected of a link, and says why it ended."""


@dataclass(frozen=True)
class Parts:
    """The parts of a node that know its members."""

    links: dict[str, Link]
    """By device name, in the order of the fleet file."""
    devices: DevicePort
    clients: ClientPort
    authenticator: Authenticator | None
    """``None`` without keys."""
    refill: Callable[[Fleet], None]
    """Told when other links, or clients, belong to the node."""
    know: Callable[[Fleet], None]
    """Told when other devices may grant leases."""
    events: Events


class Roster:
    """Takes what has changed in the files into a node."""

    def __init__(
        self,
        parts: Parts,
        fleet: Fleet,
        watched: WatchedFleet | None,
        revoked: RevokedKeys | None,
        check: Callable[[Fleet], None],
        place: int,
    ) -> None:
        """Start with the fleet that the parts were made for; ``check`` raises if another one does not fit the node.

        The node is the fleet's at ``place``.
        """
        self._place = place
        self._parts = parts
        self._started_with = self._fleet = fleet
        self._watched = watched
        self._revocation = None
        if revoked is not None and parts.authenticator is not None:
            ports = parts.links, parts.devices, parts.clients
            self._revocation = Revocation(revoked, parts.authenticator, *ports, parts.events)
        self._check = check
        self._problem = ""
        self._needs_restart: tuple[str, ...] = ()
        self.next_ns = 0 if watched is not None or self._revocation is not None else None
        """When :meth:`refresh` has something to do."""

    @property
    def fleet(self) -> Fleet:
        """The fleet as it is taken now."""
        return self._fleet

    def refresh(self, now_ns: int, lose: Lose, *, at_once: bool = False) -> None:
        """Look at the files if it is time, and do what follows; ``at_once``: read the fleet file whatever its stamp."""
        if self.next_ns is None or (now_ns < self.next_ns and not at_once):
            return
        self.next_ns = now_ns + _PERIOD_NS
        if self._watched is not None and self._watched.refresh(at_once=at_once):
            self._read(self._watched, lose)
        if self._revocation is not None:
            for link in self._revocation.refresh(self._fleet):
                lose(link, "its key was revoked")

    def status(self) -> FleetStatus | None:
        """Describe the fleet file for people."""
        if self._watched is None:
            return None
        return FleetStatus(self._watched.sha256, self._problem, self._needs_restart)

    def _read(self, watched: WatchedFleet, lose: Lose) -> None:
        before, self._problem = self._problem, watched.problem
        try:
            if not self._problem:
                self._check(watched.fleet)
                self._apply(watched.fleet, lose)
        except DevitError as err:
            self._problem = f"{watched.path}: {err}"
        if not self._problem:
            self._tell_what_needs_restart(watched.fleet)
        elif self._problem != before:
            self._parts.events.note("", f"the fleet stays as it is: {self._problem}", Priority.ERROR)

    def _tell_what_needs_restart(self, fleet: Fleet) -> None:
        before, start = self._needs_restart, self._started_with
        fleet = msgspec.structs.replace(fleet, node=_as_started(start.node, fleet.node))
        fields = [field for field in Fleet.__struct_fields__ if field not in _APPLIED]
        self._needs_restart = tuple(f"[{field}]" for field in fields if getattr(start, field) != getattr(fleet, field))
        if self._needs_restart and self._needs_restart != before:
            text = f"{', '.join(self._needs_restart)} in fleet.toml changed: restart fusion-node to apply it"
            self._parts.events.note("", text, Priority.WARNING)

    def _apply(self, fleet: Fleet, lose: Lose) -> None:
        before, serving, parts = self._fleet, self._started_with.serving, self._parts
        if fleet.has_keys != before.has_keys:
            raise InputError("the public_key of node came or went: restart fusion-node to apply that")
        if len({device.submodel for device in fleet.device}) < serving.min_devices:
            raise InputError(f"expected devices for {serving.min_devices} submodels, as min_devices was at the start")
        self._fleet = fleet
        if parts.authenticator is not None:
            start = self._started_with
            known = msgspec.structs.replace(fleet, node=start.node, standby=start.standby)
            parts.authenticator.allowed = allowed_keys(known, self._place)
        gone = _gone(before.device, fleet.device)
        lost = [parts.links.pop(name) for name in gone]
        links = {each.name: parts.links.get(each.name) or new_link(each, serving) for each in fleet.device}
        new = links.keys() - parts.links.keys()
        parts.links.clear()
        parts.links.update(links)
        parts.refill(fleet)
        parts.know(fleet)
        for link in lost:
            parts.devices.cut(link)
            lose(link, f"{'replaced' if link.name in links else 'removed'} in fleet.toml")
        for name in [name for name in links if name in new and name not in gone]:
            parts.events.note(name, "added in fleet.toml")
        for port, names in ((parts.devices, gone), (parts.clients, _gone(before.client, fleet.client))):
            if names:
                port.watch(time.monotonic_ns())  # a connection with an old key may be known to the monitor alone
                port.peers.end(names)


def _as_started(start: Node, now: Node) -> Node:
    """Take a free port that the node has found, and somebody has written into the file, for no change."""
    changes = {
        field: getattr(start, field)
        for field in ("endpoint", "client_endpoint")
        if getattr(start, field).endswith(":0")
    }
    return msgspec.structs.replace(now, **changes)


def _gone(before: tuple[Device | ClientEntry, ...], now: tuple[Device | ClientEntry, ...]) -> list[str]:
    """Name the members that are not there any more, or have another key or submodel."""
    kept = {_identity(member) for member in now}
    return [member.name for member in before if _identity(member) not in kept]


def _identity(member: Device | ClientEntry) -> tuple[str, str, int | None]:
    return member.name, member.public_key, member.submodel if isinstance(member, Device) else None
