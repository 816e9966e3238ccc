"""Many simulated devices in one process and one thread: prepared features, whose header is patched for each frame.

They cost as little as a device can, so that the node is what is measured.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import zmq

from devit_contract.artefacts.keys import KeyPair
from devit_contract.wire.codec import (
    HEADER,
    MAX_IMAGE_MESSAGE_BYTES,
    Dtype,
    Kind,
    Message,
    array_payload,
    pack,
    unpack,
)
from devit_contract.wire.messages import Hello, body
from devit_contract.wire.sockets import Socket, connect_dealer

KIND_AT = 5
FRAME_ID, DISPATCH_NS = slice(52, 60), slice(68, 76)
"""Where they stand in the header, see :mod:`devit_contract.wire.codec`."""
CRC = slice(HEADER.size - 4, HEADER.size)


@dataclass(frozen=True)
class Device:
    """One simulated device."""

    name: str
    submodel: int
    keys: KeyPair


@dataclass(frozen=True)
class Node:
    """Where devices connect, and what they have to say there."""

    endpoint: str
    key: bytes
    model_sha256: Sequence[str]
    """Digest of each submodel's graph."""
    dim: int


def serve(parent: Connection, node: Node, devices: Sequence[Device], core: int) -> None:
    """Answer every frame at once, for ever."""
    os.sched_setaffinity(0, {core})
    context: zmq.Context[Socket] = zmq.Context()
    poller = zmq.Poller()
    features: dict[Socket, Feature] = {}
    for device in devices:
        socket, _ = connect_dealer(
            context,
            node.endpoint,
            keys=device.keys,
            node_key=node.key,
            max_bytes=MAX_IMAGE_MESSAGE_BYTES,
            events=0,
        )
        hello = Hello(
            name=device.name,
            submodel=device.submodel,
            feature_dim=node.dim,
            model_sha256=node.model_sha256[device.submodel],
            engine="simulated",
            feature_dtypes=("float32",),
            software="",
        )
        socket.send(pack(Message(Kind.HELLO, Dtype.BODY, payload=body(hello), boot_id=1)))
        run_id = unpack(socket.recv()).run_id  # WELCOME
        features[socket] = Feature(device.submodel, node.dim, run_id)
        poller.register(socket, zmq.POLLIN)
    parent.send(os.getpid())
    while True:
        for socket, _ in poller.poll():
            frame = socket.recv()
            if frame[KIND_AT] == Kind.FRAME:
                socket.send(features[socket].answer(frame))


class Feature:
    """One device's message, made once."""

    def __init__(self, submodel: int, dim: int, run_id: int) -> None:
        """Draw the feature and pack it."""
        feature = np.random.default_rng(submodel).normal(size=dim).astype(np.float32)
        dtype, dims, payload = array_payload(feature)
        message = Message(Kind.FEATURE, dtype, dims, payload, device=submodel, run_id=run_id, boot_id=1)
        self._message = bytearray(pack(message))
        self._payload_crc32 = zlib.crc32(payload)

    def answer(self, frame: bytes) -> bytes:
        """Make it the answer to a frame."""
        message = self._message
        message[FRAME_ID], message[DISPATCH_NS] = frame[FRAME_ID], frame[DISPATCH_NS]
        crc32 = zlib.crc32(memoryview(message)[: CRC.start], self._payload_crc32)
        message[CRC] = crc32.to_bytes(4, "little")
        return bytes(message)
