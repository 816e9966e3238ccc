"""What a fleet means for a node: its links, the keys that it accepts, and whether it fits the bundle."""

from __future__ import annotations

from devit_contract.artefacts.fleet import Device, Fleet, Serving
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError
from devit_contract.wire.sockets import CLIENTS, DEVICES
from devit_fusion.links import Link


def new_link(device: Device, serving: Serving) -> Link:
    """Begin with a device that has not connected yet."""
    return Link(device.submodel, device.name, serving.credit, round(serving.deadline_ms * 1e6))


def allowed_keys(fleet: Fleet) -> dict[bytes, dict[bytes, str]]:
    """List the keys that may connect, by port, with their names."""
    return {
        DEVICES: {device.public_key.encode(): device.name for device in fleet.device},
        CLIENTS: {client.public_key.encode(): client.name for client in fleet.client},
    }


def check_fleet(bundle: Bundle, fleet: Fleet, keys: KeyPair | None) -> None:
    """Check that fleet, bundle and the node's keys fit together; an :class:`InputError` says what does not."""
    check_submodels(bundle, fleet)
    if fleet.has_keys and keys is None:
        raise InputError("fleet.toml has the node's public_key, but no secret key was given: give it with --key")
    if keys is not None and keys.public.decode() != fleet.node.public_key:
        raise InputError("the secret key is not that of the node's public_key in fleet.toml: give it with --key")


def check_submodels(bundle: Bundle, fleet: Fleet) -> None:
    """Check that the bundle has every device's submodel."""
    count = len(bundle.manifest.submodels)
    for device in fleet.device:
        if not 0 <= device.submodel < count:
            raise InputError(
                f"device {device.name}: expected a submodel from 0 to {count - 1} of bundle {bundle.folder}, "
                f"found {device.submodel}"
            )
