"""``fleet.toml``: who is who, and where the node listens."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import msgspec

from devit_contract.artefacts.files import convert, read_toml_tables
from devit_contract.artefacts.keys import check_key, check_name
from devit_contract.choices import (
    FeatureDtype,
    ImageChoice,
    LiarChoice,
    Order,
    Policy,
)
from devit_contract.errors import InputError, ManifestError

FLEET_SCHEMA = 2
_ENDPOINT = r"tcp://(\[[0-9a-fA-F:.]+(?:%[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9_.-]+|\*):([0-9]{1,5})"
_MOST_PIXELS, LEAST_PIXELS = 16_000_000, 250_000
DECODED_PER_MS = 60_000
"""Pixels of a JPEG that a fast device decodes in a millisecond."""
_LEASE_MS = 400
_FLEET_HINT = "see examples/fleet.toml"


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fusion node."""

    endpoint: str
    """Where devices connect, ``tcp://HOST:PORT``."""
    client_endpoint: str
    public_key: str = ""
    """Empty only if both endpoints are on loopback and no device or client has a key."""
    name: str = ""
    """By default ``node`` for the first one, ``standby1`` for the next, and so on."""


class Serving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How frames end."""

    deadline_ms: float = 50.0
    """From a request's arrival to its end with whatever has come; half of it is the most it waits for credit."""
    min_devices: int = 1
    """Fewest features an answer is given on."""
    credit: int = 2
    """Frames in flight per device; fewer where more would not keep the deadline."""
    queue: int = 64
    """Requests that may wait for a free device, 12 MiB of them at most; where that is full, the client that has most
    waiting for its weight loses its newest."""
    startup_grace_ms: float = 1000.0
    """How long the first requests after the node's start may wait for devices that have not connected yet."""
    feature_dtype: FeatureDtype = "float32"
    """What features travel as: ``float16`` halves their bytes, and rounds them."""
    max_pixels: int = 0
    """Of a picture file that devices are to decode, and its bytes; larger ones are refused. 0 is what they decode in a
    third of the deadline: 20,000 a millisecond, or fewer where they were slower, from 250,000 to 16 million."""
    policy: Policy = "all"
    """Which devices a frame asks, unless its request names another policy."""
    images: ImageChoice = "auto"
    """What clients send images of 16 KiB and more as, once for all devices: ``raw``; ``jpeg`` rounds their pixels;
    ``lossless`` does not; ``auto`` is ``raw`` or ``jpeg``, whichever reaches the devices sooner."""

    @property
    def most_pixels(self) -> int:
        """Give the number for ``max_pixels``."""
        most = round(self.deadline_ms / 3 * DECODED_PER_MS)
        return self.max_pixels or max(LEAST_PIXELS, min(most, _MOST_PIXELS))


class Certain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an answer of some devices is certain, and how they are asked until one is."""

    flips: float = 0.01
    """The promise: the largest share of answers that may differ from that of all devices."""
    confidence: float = 0.95
    """Of the promise."""
    stages: tuple[int, ...] = (1, 1)
    """How many devices are asked together, stage by stage; the rest are asked together in a last one."""
    order: Order = "rotating"
    """Which come first: ``rotating`` the idlest, by turns; ``best`` the most accurate; ``cost`` the fastest."""
    audit: float = 0.01
    """Share of certain answers that all devices check afterwards, where they have room."""
    early_release: bool = False
    """With policy ``all``: answer as soon as the features that have come are certain."""


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the node does about devices that answer wrongly."""

    liars: LiarChoice = "warn"
    """A device whose features do not fit those of the others: ``warn`` says so, ``exclude`` also leaves it out."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the node may be recorded, images included."""

    socket: str = ""
    """Path of the socket that the node listens at for ``devit record`` on its machine, for its own user alone; empty:
    nobody can record."""


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An edge device."""

    name: str
    submodel: int
    """Several devices may have the same one: the first of them that is ready serves, the others are its spares."""
    public_key: str = ""
    host: str = ""
    """For ssh; used by deployment only."""


class ClientEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who may ask. In a fleet without keys, a single entry stands for all clients."""

    name: str
    public_key: str = ""
    max_in_flight: int = 0
    """Requests of it that may wait or be with devices; those above are refused at once. 0 is no limit of its own."""
    weight: int = 1
    """Its share of the devices' time, and of the queue, beside the weights of the clients that ask at the same time."""


class Extra(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something else that a cell needs and no sensor measures: a network switch, what supplies lose."""

    name: str
    watts: float
    source: str
    """Where the watts come from, e.g. ``wall meter, 2026-01-05``."""


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``fleet.toml``."""

    schema: int
    node: Node
    device: tuple[Device, ...]
    serving: Serving = Serving()
    certain: Certain = Certain()
    watch: Watch = Watch()
    record: Record = Record()
    client: tuple[ClientEntry, ...] = ()
    extra: tuple[Extra, ...] = ()
    """Added to the joules of the whole cell, by name."""
    standby: tuple[Node, ...] = ()
    """Nodes that take over, in this order."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, the first one first, each with its name."""
        names = ("node", *(f"standby{index + 1}" for index in range(len(self.standby))))
        given = (self.node, *self.standby)
        return tuple(
            msgspec.structs.replace(node, name=node.name or name) for node, name in zip(given, names, strict=True)
        )

    @property
    def lease_ms(self) -> int:
        """Give how long a lease lasts: longer than a device takes to reply, which it does between two frames.

        A frame takes the deadline at most, else the device is too slow. It is asked every 100 ms, and an eighth of a
        lease is left for clocks that differ.
        """
        return max(_LEASE_MS, round(8 / 7 * (self.serving.deadline_ms + 150)))

    @property
    def shares(self) -> tuple[ClientEntry, ...]:
        """Whose requests are told apart: the clients, by name; without keys they are one, without a name."""
        if self.has_keys:
            return self.client
        return (msgspec.structs.replace((*self.client, ClientEntry(""))[0], name=""),)

    @property
    def has_keys(self) -> bool:
        """Whether the wire is encrypted and peers are known by key."""
        return self.node.public_key != ""

    def find_device(self, name: str) -> Device:
        """Find a device by name; an :class:`InputError` lists those there are."""
        for device in self.device:
            if device.name == name:
                return device
        known = ", ".join(device.name for device in self.device)
        raise InputError(f"device {name!r}: expected one of {known}")


def load_fleet(path: Path) -> Fleet:
    """Read ``fleet.toml``.

    Raises:
        InputError: The file cannot be read, or a name or key is not usable.
        ManifestError: The format is broken.
    """
    return to_fleet(path, read_toml_tables(path, _FLEET_HINT))


def to_fleet(path: Path, tables: dict[str, Any]) -> Fleet:
    """Turn the tables of a file ``path`` into a fleet; it raises what :func:`load_fleet` does."""
    if isinstance(tables.get("node"), list):
        raise ManifestError(f"{path}: [[node]] is the form of schema 1: write [node] instead, and schema = 2")
    fleet = convert(path, tables, Fleet, schema=FLEET_SCHEMA, hint=_FLEET_HINT)
    if not fleet.device:
        raise ManifestError(f"{path}: has no [[device]]: {_FLEET_HINT}")
    _check_numbers(path, fleet)
    members: tuple[Device | ClientEntry, ...] = *fleet.device, *fleet.client
    for member in members:
        check_name(member.name, f"{path}: name")
    nodes = fleet.nodes
    for node in nodes if fleet.standby else ():
        check_name(node.name, f"{path}: name of a node")
    names = [member.name for member in (*(nodes if fleet.standby else ()), *members)]
    _refuse_twins(path, "name", names)
    _check_extras(path, fleet.extra)
    for endpoint in (each for node in nodes for each in (node.endpoint, node.client_endpoint)):
        parse_endpoint(endpoint, str(path))
        if not fleet.has_keys and not is_loopback(endpoint):
            raise InputError(
                f"{path}: {endpoint}: others can reach this address, so it needs keys: make them with devit keys new"
            )
    keys = [member.public_key for member in members]
    if fleet.has_keys:
        for member in members:
            check_key(member.public_key, f"{path}: public_key of {member.name}")
        for node in nodes:
            check_key(node.public_key, f"{path}: public_key of {node.name}")
        _refuse_twins(path, "public_key", [*(node.public_key for node in nodes if fleet.standby), *keys])
    elif any(keys) or any(node.public_key for node in nodes):
        raise InputError(f"{path}: public_key of node: missing, though devices or clients have keys")
    elif len(fleet.client) > 1 and any(entry.max_in_flight or entry.weight != 1 for entry in fleet.client):
        text = "without keys all clients are one: give one [[client]], whose limits they share"
        raise ManifestError(f"{path}: expected one client, found {len(fleet.client)}: {text}")
    return fleet


def parse_endpoint(endpoint: str, where: str) -> tuple[str, int]:
    """Split ``tcp://HOST:PORT``; a link-local address may have its zone, ``tcp://[fe80::1%eth0]:7711``.

    Raises:
        InputError: It is something else.
    """
    match = re.fullmatch(_ENDPOINT, endpoint)
    if match is None or int(match[2]) > 65535:
        raise InputError(f"{where}: expected an endpoint like tcp://10.0.0.2:7711, found {endpoint!r}")
    return match[1].strip("[]"), int(match[2])


def is_loopback(endpoint: str) -> bool:
    """Tell whether only this machine can reach an endpoint.

    >>> is_loopback("tcp://127.0.0.1:7711"), is_loopback("tcp://10.0.0.2:7711")
    (True, False)
    """
    host, _ = parse_endpoint(endpoint, "endpoint")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_numbers(path: Path, fleet: Fleet) -> None:
    serving, certain = fleet.serving, fleet.certain
    checks = (
        ("serving.deadline_ms", serving.deadline_ms, 1, 60_000),
        ("serving.min_devices", serving.min_devices, 1, len({each.submodel for each in fleet.device})),
        ("serving.credit", serving.credit, 1, 16),
        ("serving.queue", serving.queue, 0, 4096),
        ("serving.startup_grace_ms", serving.startup_grace_ms, 0, 60_000),
        ("serving.max_pixels", serving.max_pixels, 0, 64_000_000),
        ("certain.flips", certain.flips, 0.0001, 0.1),
        ("certain.confidence", certain.confidence, 0.5, 0.9999),
        ("certain.audit", certain.audit, 0, 1),
        *(("certain.stages", count, 1, 64) for count in certain.stages or (0,)),
        *((f"max_in_flight of client {entry.name}", entry.max_in_flight, 0, 65_535) for entry in fleet.client),
        *((f"weight of client {entry.name}", entry.weight, 1, 100) for entry in fleet.client),
    )
    for field, value, low, high in checks:
        if not low <= value <= high:
            raise ManifestError(f"{path}: field {field}: expected {low} to {high}, found {value}: {_FLEET_HINT}")


def _check_extras(path: Path, extras: tuple[Extra, ...]) -> None:
    for extra in extras:
        where = f"of [[extra]] {extra.name!r}"
        check_name(extra.name, f"{path}: name of [[extra]]")
        if not 0 < extra.watts <= 100_000:
            raise ManifestError(f"{path}: watts {where}: expected more than 0, found {extra.watts:g}: {_FLEET_HINT}")
        if not extra.source.strip():
            raise ManifestError(f"{path}: source {where}: say where its watts come from: {_FLEET_HINT}")
    _refuse_twins(path, "name of [[extra]]", [extra.name for extra in extras])


def _refuse_twins(path: Path, field: str, values: list[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ManifestError(f"{path}: {field} {value!r} is there twice: {_FLEET_HINT}")
