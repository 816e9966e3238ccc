"""The node of simulated devices, in a process and on a core of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.network.bundles import light_head
from benchmarks.network.devices import Device

from devit_contract.artefacts.fleet import FLEET_SCHEMA, ClientEntry, Fleet, Serving
from devit_contract.artefacts.fleet import Device as FleetDevice
from devit_contract.artefacts.fleet import Node as FleetNode
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Bundle
from devit_contract.service.journal import Log, Priority
from devit_contract.service.lifecycle import StopSignal
from devit_fusion.node import FusionNode

CLASSES = 100


class Silent(Log):
    """Keeps the coming of every device off the terminal."""

    def log(self, priority: Priority, text: str, **fields: str) -> None:
        """Say nothing."""


def fleet_of(pairs: Mapping[str, KeyPair], devices: Sequence[Device]) -> Fleet:
    """List the devices and one client; ``pairs`` also has keys of ``node`` and ``client``."""
    return Fleet(
        schema=FLEET_SCHEMA,
        node=FleetNode("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", pairs["node"].public.decode()),
        device=tuple(FleetDevice(each.name, each.submodel, each.keys.public.decode()) for each in devices),
        # No frame may miss a device: the head of so many without one is not prepared.
        serving=Serving(deadline_ms=60_000),
        client=(ClientEntry("client", pairs["client"].public.decode()),),
    )


def serve_node(parent: Connection, bundle: Path, fleet: Fleet, keys: KeyPair, core: int, dim: int) -> None:
    """Serve features of ``dim`` numbers on one core, and tell both endpoints and the process id."""
    os.sched_setaffinity(0, {core})
    should_stop = StopSignal()
    # A covariance of 64 x 192 features would take 1.2 GB, and is not needed as long as no device is missing.
    head = light_head([dim] * len(fleet.device), CLASSES)
    with FusionNode(Bundle(bundle), fleet, keys, head=head, log=Silent("fusion-node")) as node:
        parent.send((node.endpoint, node.client_endpoint, os.getpid()))
        node.serve(should_stop)
