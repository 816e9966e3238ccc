"""Peers that mean harm, and what a node's memory does meanwhile."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from devit_contract.artefacts.keys import KeyPair, load_keys
from devit_contract.artefacts.manifest import Manifest
from devit_contract.wire.client import Client
from devit_contract.wire.codec import MAX_IMAGE_MESSAGE_BYTES, Dtype, Kind, Message, pack, unpack
from devit_contract.wire.messages import Hello, body
from devit_contract.wire.sockets import connect_dealer, open_context
from devit_contract.wire.status import DeviceStatus, NodeStatus
from devit_pipeline.local_cell import LocalCell

DEADLINE_S = 60.0
MIB = 1 << 20
REVISION = 7
"""Of the engine that a :class:`Liar` claims to run."""


class Liar:
    """A device with a key of the fleet that says what it likes; a context manager."""

    def __init__(self, cell: LocalCell, name: str, manifest: Manifest) -> None:
        """Connect under the name and key of a device whose agent does not run."""
        node = cell.fleet.node
        self.index = cell.devices[name].submodel
        self.boot_id = secrets.randbits(64)
        self.run_id = 0
        self.dim = manifest.submodels[self.index].output_dim
        self._opened = open_context()
        self.socket, self.monitor = connect_dealer(
            self._opened.__enter__(),
            node.endpoint,
            keys=key_of(cell, name),
            node_key=node.public_key.encode(),
            max_bytes=MAX_IMAGE_MESSAGE_BYTES,
            events=zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED,
        )
        self.socket.setsockopt(zmq.RCVTIMEO, round(DEADLINE_S * 1000))
        self.socket.setsockopt(zmq.SNDTIMEO, round(DEADLINE_S * 1000))
        digest = manifest.file("submodel", device=self.index, variant="fp32").sha256
        self._hello = Hello(name, self.index, self.dim, digest, "lies", ("float32",), "0")

    def __enter__(self) -> Liar:
        """Use the link in a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the link."""
        self._opened.__exit__(None, None, None)

    def greet(self) -> None:
        """Introduce itself truly."""
        hello = Message(
            Kind.HELLO, Dtype.BODY, payload=body(self._hello), engine_revision=REVISION, boot_id=self.boot_id
        )
        self.socket.send(pack(hello))
        self.run_id = self.receive(Kind.WELCOME).run_id

    def receive(self, kind: Kind) -> Message:
        """Wait for a message of a kind; others are dropped."""
        while True:
            message = unpack(self.socket.recv())
            if message.kind is kind:
                return message


def key_of(cell: LocalCell, name: str) -> KeyPair:
    """Read the keys that the cell made for a device, the client, or the node."""
    return load_keys(cell.folder / "keys" / f"{name}.key_secret")


def device_status(status: NodeStatus, name: str) -> DeviceStatus:
    """Find one device."""
    (found,) = (device for device in status.devices if device.name == name)
    return found


def status_when(client: Client, holds: Callable[[NodeStatus], bool], deadline_s: float = DEADLINE_S) -> NodeStatus:
    """Ask the node until something holds; the last state is given back where it does not in time."""
    end_s = time.monotonic() + deadline_s
    while True:
        status = client.status()
        if holds(status) or time.monotonic() >= end_s:
            return status


@contextmanager
def bounded_memory(pid: int, limit_bytes: int, what: str) -> Iterator[None]:
    """Hold the peak of a process's resident memory in the block against what it was before.

    Raises:
        AssertionError: It rose by more than the limit.
    """
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak starts anew
    before = _resident_bytes(pid, "VmRSS")
    yield
    rise = _resident_bytes(pid, "VmHWM") - before
    print(f"{what}: the node's memory rose by {rise / MIB:.1f} MiB at its peak")
    assert rise < limit_bytes, f"{what}: {rise / MIB:.1f} MiB"


def _resident_bytes(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
