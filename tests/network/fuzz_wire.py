"""Fuzzes what reads bytes from the network: nothing but a refusal may come of any bytes whatever.

``python tests/network/fuzz_wire.py FOLDER -max_total_time=60`` (atheris, with libFuzzer's options) keeps in FOLDER the
inputs that reached new code. It ends with another code than 0 where something else was raised, where memory was taken
beyond the limit, or where one input took too long; that input is kept beside FOLDER, under a name that begins with it.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[f"devit_contract.wire.{name}" for name in ("codec", "messages", "pairing", "status")]
):
    from devit_contract.wire import codec as wire
    from devit_contract.wire import messages, pairing
    from devit_contract.wire import status as told

import msgspec
import numpy as np

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import WireError
from devit_contract.wire.words import DeviceState, MissingReason, Question

_CRC_OFFSET = wire.HEADER.size - 4
_PAYLOAD_BYTES_OFFSET = wire.HEADER.size - 8
BODIES = [
    found
    for module in (messages, told)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, msgspec.Struct) and found.__module__ == module.__name__
]
"""Every struct that a message may hold."""


def plausible(data: bytes) -> bytes:
    """Make magic, lengths and checksum right, so that what stands behind those checks is reached."""
    fixed = bytearray(data.ljust(wire.HEADER.size, b"\0"))
    fixed[:4] = wire.MAGIC
    fixed[6:8] = wire.HEADER.size.to_bytes(2, "little")
    payload = bytes(fixed[wire.HEADER.size :])
    fixed[_PAYLOAD_BYTES_OFFSET:_CRC_OFFSET] = len(payload).to_bytes(4, "little")
    fixed[_CRC_OFFSET : wire.HEADER.size] = zlib.crc32(fixed[:_CRC_OFFSET], zlib.crc32(payload)).to_bytes(4, "little")
    return bytes(fixed)


def read_all(data: bytes) -> bool:
    """Read bytes in every way in which a node, an agent or a client does; tell whether they were a message."""
    try:
        message = wire.unpack(data)
    except WireError:
        return False
    try:
        array = message.array()
        assert array.shape == message.dims
        assert array.nbytes == len(message.payload)
        if array.dtype != np.uint8:
            np.isfinite(array).all()
    except WireError:
        assert message.dtype in (wire.Dtype.NONE, wire.Dtype.ENCODED, wire.Dtype.BODY)
    for kind in BODIES:
        try:
            messages.body(messages.read_body(message, kind))
        except WireError:
            continue
    # There is one way to write a message; fields that a newer sender has added are dropped.
    written = wire.pack(message)
    assert written == data if len(written) == len(data) and data[4] == wire.MINOR else wire.unpack(written) == message
    return True


def read_pairing(data: bytes) -> None:
    """Read bytes as the two do that pair, once they are opened or where they are not sealed."""
    for read in (pairing.decode, pairing.read_refusal):
        with suppress(WireError):
            read(data)
    with suppress(WireError):
        size_bytes = pairing.read_header(data[:5].ljust(5, b"\0"), *pairing.Kind, most_bytes=4096)[1]
        assert size_bytes <= 4096 + 16


def test_one_input(data: bytes) -> None:
    """Take one input of the fuzzer: as it is, made plausible, and as the body of a message."""
    read_pairing(data)
    read_all(data)
    read_all(plausible(data))
    assert read_all(wire.pack(wire.Message(wire.Kind.CONTROL, wire.Dtype.BODY, payload=data)))


def seeds() -> Iterator[bytes]:
    """Right messages and bodies to begin with: the fuzzer changes them."""
    yield from (wire.pack(wire.Message(kind)) for kind in wire.Kind)
    for array in (np.zeros(6, np.float32), np.full(6, np.nan, np.float16), np.zeros((6, 8, 1), np.uint8)):
        yield wire.pack(wire.Message(wire.Kind.FEATURE, *wire.array_payload(array)))
    timing = messages.DeviceTiming(0, 1, 2, 3, 4, 5)
    histogram = told.Histogram((0.1, 1.0), [1, 2, 3], 0.5)
    preprocess = Preprocess(6, 8, "gray", resize_to=8)
    absent = MissingReason.ABSENT
    device = told.DeviceStatus(
        "a", 0, DeviceState.READY, missing={absent: 1}, round_trip=histogram, inference=histogram
    )
    status = told.NodeStatus(
        "b", ("x", "y"), (6, 8, 1), preprocess, {"full": 1}, (device,), 1, 50.0, {"devices_in": 1},
        frame_time=histogram, events=(told.Event(0.5, "a", "text"),),
        promise=told.PromiseStatus(0.01, 0.95), asked={1: 2},
    )  # fmt: skip
    for value in (
        messages.Hello("a", 0, 6, "0" * 64, "null", ("float32",), "0"),
        messages.Welcome(2, "float32"),
        messages.Refused("no"),
        messages.Control(Question.SAMPLE_START, "a", 10),
        messages.ControlReply(status=status),
        messages.ControlReply(description=messages.Description("b", "", "null", "", 1)),
        messages.ControlReply(mark=messages.Mark(1, 2, 3)),
        messages.Telemetry("a", (messages.PowerLine(1, "RAM 1/2MB"),)),
        messages.AnswerBody(bytes(8), (timing,), {1: absent}, 1, 2, 3, "certain", 1, 2.5, 1.5),
    ):
        yield messages.body(value)
    address = pairing.NodeAddress("tcp://*:1", "k")
    for said in (pairing.Introduction("a", "k"), pairing.Welcome(0, (address,)), pairing.Ask("record", "a")):
        yield pairing.encode(said)
    yield b"\x81\xa1x" + b"\x91" * 4000  # a field that nobody knows, of lists in lists


def main() -> None:
    """Fuzz until libFuzzer's limits are reached."""
    folder = Path(sys.argv[1])
    for number, data in enumerate(seeds()):
        test_one_input(data)
        (folder / f"seed{number}").write_bytes(data)
    limits = ["-max_len=4096", "-rss_limit_mb=512", "-timeout=5", f"-artifact_prefix={folder}-"]
    atheris.Setup([*sys.argv, *limits], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
