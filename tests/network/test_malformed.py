"""Ten thousand messages of every wrong kind from a device with a right key: counted, never used, and nobody notices."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
import zmq
from tests.network.conftest import TINY, Golden
from tests.network.faults import undisturbed
from tests.network.hostile import MIB, REVISION, Liar, bounded_memory, device_status, status_when
from tests.network.open_loop import OpenLoop

from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Client
from devit_contract.wire.codec import (
    HEADER,
    MAX_DEVICE_MESSAGE_BYTES,
    Dtype,
    Kind,
    Message,
    array_payload,
    pack,
)
from devit_contract.wire.messages import Control, ControlReply, body
from devit_contract.wire.words import Question
from devit_pipeline.local_cell import LocalCell, LocalDevice

pytestmark = [pytest.mark.nightly(part="endurance"), pytest.mark.timeout(300)]

EACH = 10_000
RATE_HZ = 50.0
DEADLINE_S = 0.2
NUMPY = {"float32": np.float32, "float16": np.float16}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory, devices: list[LocalDevice]) -> Iterator[LocalCell]:
    """jetson1 is honest; jetson2's agent does not run, and its key is the liar's."""
    null = [LocalDevice(device.name, device.submodel, engine="null") for device in devices]
    folder = tmp_path_factory.mktemp("cell")
    with LocalCell(TINY, folder, null, deadline_ms=1e3 * DEADLINE_S) as running:
        running.kill("jetson2")
        yield running


@dataclass(frozen=True)
class Frame:
    """What the liar has been asked for, as far as its lies need it."""

    liar: Liar
    frame_id: int
    dispatch_ns: int

    def live(self) -> None:
        """Send something good: the node cuts off a device of which nothing good comes for ten seconds."""
        answer = self.feature(kind=Kind.CONTROL, dtype=Dtype.BODY, dims=(), payload=body(ControlReply()), frame_id=0)
        self.liar.socket.send(pack(answer))

    def feature(self, number: str = "float32", fill: float = 1.0, **changes: object) -> Message:
        """Make the feature that an honest device would send, with some fields changed."""
        dtype, dims, payload = array_payload(np.full(self.liar.dim, fill, NUMPY[number]))
        message = Message(
            Kind.FEATURE,
            dtype,
            dims,
            bytes(payload),
            device=self.liar.index,
            engine_revision=REVISION,
            run_id=self.liar.run_id,
            frame_id=self.frame_id,
            boot_id=self.liar.boot_id,
            dispatch_ns=self.dispatch_ns,
        )
        return msgspec.structs.replace(message, **changes)


def patched(data: bytes, position: int, value: bytes) -> bytes:
    """Change bytes of a message, and make its checksum right again."""
    changed = bytearray(data)
    changed[position : position + len(value)] = value
    crc32 = zlib.crc32(changed[: HEADER.size - 4], zlib.crc32(changed[HEADER.size :]))
    return bytes(changed[: HEADER.size - 4]) + crc32.to_bytes(4, "little") + bytes(changed[HEADER.size :])


LIES: dict[str, tuple[str, Callable[[Frame], bytes]]] = {
    # What it is: the reason it is counted by, and the bytes.
    "empty": ("size", lambda frame: b""),
    "truncated header": ("size", lambda frame: pack(frame.feature())[:50]),
    "truncated payload": ("size", lambda frame: pack(frame.feature())[:-1]),
    "lengthened": ("size", lambda frame: pack(frame.feature()) + b"\0"),
    "wrong magic": ("magic", lambda frame: patched(pack(frame.feature()), 0, b"DVT2")),
    "unknown kind": ("kind", lambda frame: patched(pack(frame.feature()), 5, b"\x63")),
    "a node's kind": ("kind", lambda frame: pack(frame.feature(kind=Kind.WELCOME))),
    "unknown dtype": ("dtype", lambda frame: patched(pack(frame.feature()), 8, b"\x09")),
    "huge dims": ("dims", lambda frame: patched(pack(frame.feature()), 9, b"\x04" + bytes(2) + b"\xff" * 16)),
    "unknown state": ("state", lambda frame: patched(pack(frame.feature()), 40, b"\xff\xff")),
    "bad crc": ("crc", lambda frame: pack(frame.feature())[:-1] + b"\xff"),
    "a body of rubbish": ("body", lambda frame: pack(frame.feature(
        kind=Kind.CONTROL, dtype=Dtype.BODY, dims=(), payload=b"\xc1rubbish"
    ))),
    "another struct": ("body", lambda frame: pack(frame.feature(
        kind=Kind.CONTROL, dtype=Dtype.BODY, dims=(), payload=body(Control(Question.STATUS))[1:]
    ))),
    "another boot": ("boot", lambda frame: pack(frame.feature(boot_id=frame.liar.boot_id ^ 1))),
    "another run": ("run", lambda frame: pack(frame.feature(run_id=frame.liar.run_id ^ 1))),
    "wrong number type": ("shape", lambda frame: pack(frame.feature("float16"))),
    "wrong shape": ("shape", lambda frame: pack(frame.feature(dims=(1, frame.liar.dim)))),
    "no array": ("shape", lambda frame: pack(frame.feature(dtype=Dtype.ENCODED, dims=()))),
    "another device": ("device", lambda frame: pack(frame.feature(device=frame.liar.index ^ 1))),
    "another engine": ("engine", lambda frame: pack(frame.feature(engine_revision=REVISION + 1))),
    "no number": ("nonfinite", lambda frame: pack(frame.feature(fill=float("nan")))),
    "infinite": ("nonfinite", lambda frame: pack(frame.feature(fill=float("-inf")))),
    "enormous": ("implausible", lambda frame: pack(frame.feature(fill=1e15))),
}  # fmt: skip


def answer_one(liar: Liar, client: Client, golden: Golden) -> Frame:
    """Answer one frame honestly, so that nothing is under way any more; its number is known to the node, and over."""
    client.status()  # connected, so that the next one goes out at once
    number = client.submit(golden.pictures[0])
    asked = liar.receive(Kind.FRAME)
    frame = Frame(liar, asked.frame_id, asked.dispatch_ns)
    liar.socket.send(pack(frame.feature()))
    ((answered, _),) = client.collect(30.0)
    assert answered == number
    return frame


def test_every_malformed_message_is_counted_by_its_reason_and_none_is_used(
    cell: LocalCell, bundle: Bundle, golden: Golden
) -> None:
    with Liar(cell, "jetson2", bundle.manifest) as liar, cell.client() as client:
        liar.greet()
        frame = answer_one(liar, client, golden)
        before = device_status(client.status(), "jetson2")
        assert before.rejected == {}
        expected: Counter[str] = Counter()
        with (
            bounded_memory(cell.pid("node"), 32 * MIB, f"{len(LIES) + 2} kinds of {EACH:,} lies"),
            OpenLoop(cell, golden.pictures, rate_hz=RATE_HZ, frames=1000) as traffic,
        ):
            assert traffic.wait_for(50)
            for reason, lie in LIES.values():
                data = lie(frame)
                for _ in range(EACH // 1000):
                    frame.live()
                    for _ in range(1000):
                        liar.socket.send(data)
                expected[reason] += EACH
            for _ in range(EACH):
                liar.socket.send(pack(frame.feature()))  # word for word what was accepted before
                liar.socket.send_multipart([pack(frame.feature()), b"and more"])
            expected += Counter(late=EACH, frames=EACH)
            status = status_when(client, lambda status: device_status(status, "jetson2").rejected == expected)
            record = traffic.finish()
    found = device_status(status, "jetson2")
    print(f"{expected.total():,} lies while {record.summary()}")
    assert found.rejected == expected
    assert (found.answered, found.links) == (before.answered, before.links)
    honest = device_status(record.status, "jetson1")
    assert (honest.rejected, honest.links) == ({}, 1)
    assert {outcome.mask for outcome in undisturbed(record.outcomes)} <= {0b01}
    assert Counter(outcome.mask for outcome in record.outcomes)[0b01] >= 0.9 * len(record.outcomes)
    assert len(record.later_than(DEADLINE_S + 0.050)) <= 50, record.summary()


def test_a_message_that_is_too_large_cuts_its_own_link_alone(cell: LocalCell, bundle: Bundle, golden: Golden) -> None:
    with Liar(cell, "jetson2", bundle.manifest) as liar, cell.client() as client:
        assert liar.monitor.socket.poll(20_000)
        honest = device_status(client.status(), "jetson1")
        ends = 0
        with (
            bounded_memory(cell.pid("node"), 32 * MIB, "20 messages that are too large"),
            OpenLoop(cell, golden.pictures, rate_hz=RATE_HZ, frames=400) as traffic,
        ):
            for size in itertools.chain([MAX_DEVICE_MESSAGE_BYTES + 100], [64 * MIB] * 19):
                liar.socket.send(bytes(size))
                has_ended = False
                while not has_ended:
                    assert liar.monitor.socket.poll(20_000), "still linked"
                    has_ended = zmq.EVENT_DISCONNECTED in [event.kind for event in liar.monitor.read()]
                ends += has_ended
            record = traffic.finish()
    print(f"{ends} links cut while {record.summary()}")
    assert ends == 20
    after = device_status(record.status, "jetson1")
    assert (after.links, after.rejected) == (honest.links, honest.rejected)
    assert {outcome.mask for outcome in undisturbed(record.outcomes)} <= {0b01}
    assert Counter(outcome.mask for outcome in record.outcomes)[0b01] >= 0.9 * len(record.outcomes)
