"""What a fleet means for a node: its links, the keys that it accepts, and whether it fits the bundle."""

from __future__ import annotations

from devit_contract.artefacts.fleet import Device, Fleet, Serving
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError
from devit_contract.wire.sockets import CLIENTS, DEVICES
from devit_fusion.devices.links import Link
from devit_fusion.standby.nodes import place_of


def new_link(device: Device, serving: Serving) -> Link:
    """Begin with a device that has not connected yet."""
    return Link(device.submodel, device.name, serving.credit, round(serving.deadline_ms * 1e6))


def allowed_keys(fleet: Fleet, place: int) -> dict[bytes, dict[bytes, str]]:
    """List the keys that may connect, by port, with their names; this node is the fleet's at ``place``."""
    nodes = {node.public_key.encode(): node.name for index, node in enumerate(fleet.nodes) if index != place}
    return {
        DEVICES: {device.public_key.encode(): device.name for device in fleet.device} | nodes,
        CLIENTS: {client.public_key.encode(): client.name for client in fleet.client},
    }


def check_fleet(bundle: Bundle, fleet: Fleet, keys: KeyPair | None, name: str) -> int:
    """Check that fleet, bundle and the node's keys fit together; tell which of the fleet's nodes this one is.

    Raises:
        InputError: Something does not fit.
    """
    check_submodels(bundle, fleet)
    if fleet.has_keys and keys is None:
        raise InputError("fleet.toml has the node's public_key, but no secret key was given: give it with --key")
    place = place_of(fleet.nodes, keys, name)
    if place is None and keys is not None:
        raise InputError("the secret key is not that of the node's public_key in fleet.toml: give it with --key")
    if place is None or (name and fleet.nodes[place].name != name):
        known = ", ".join(node.name for node in fleet.nodes)
        raise InputError(f"--name {name}: expected the name of this node in fleet.toml, one of {known}")
    return place


def check_submodels(bundle: Bundle, fleet: Fleet) -> None:
    """Check that the bundle has every device's submodel."""
    count = len(bundle.manifest.submodels)
    for device in fleet.device:
        if not 0 <= device.submodel < count:
            raise InputError(
                f"device {device.name}: expected a submodel from 0 to {count - 1} of bundle {bundle.folder}, "
                f"found {device.submodel}"
            )
