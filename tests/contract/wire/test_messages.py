"""Bodies are decoded strictly, whoever sent them."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import WireError
from devit_contract.machine import OverCurrentEvents, Throttling
from devit_contract.wire.codec import Dtype, Kind, Message, array_payload, pack, unpack
from devit_contract.wire.messages import (
    AnswerBody,
    Control,
    ControlReply,
    Description,
    DeviceTiming,
    Hello,
    Mark,
    PowerLine,
    Refused,
    SamplingCost,
    Telemetry,
    Welcome,
    body,
    read_body,
)
from devit_contract.wire.status import DeviceStatus, NodeStatus
from devit_contract.wire.words import DeviceState, MissingReason, Question

STATUS = NodeStatus(
    bundle="tiny 1",
    labels=("up", "down"),
    image_shape=(6, 8, 1),
    preprocess=Preprocess(height=6, width=8, colour="gray"),
    frames={"full": 3},
    devices=(DeviceStatus("jetson1", 0, DeviceState.READY, rejected={"crc": 1}),),
    min_devices=1,
    deadline_ms=50.0,
    wire_bytes={"devices_in": 1},
)
VALUES: tuple[msgspec.Struct, ...] = (
    Hello("jetson1", 0, 6, "ab" * 32, "ort 1.2", ("float32",), "0.1.0"),
    Welcome(2, "float32"),
    Refused("no"),
    Control(Question.SAMPLE_START, "jetson1", 100),
    ControlReply(status=STATUS),
    ControlReply(description=Description("board", "36.4.0", "ort", "tegrastats", 1)),
    ControlReply(mark=Mark(1, 2, 3)),
    ControlReply(mark=Mark(1, 2, 3, over_current=OverCurrentEvents(0, 15, 37))),
    ControlReply(over_current=OverCurrentEvents(1, 2, 3)),
    ControlReply(throttling=Throttling(2, 0.5, is_simulated=True)),
    ControlReply(error="why"),
    ControlReply(sampling=SamplingCost(10.5, 0.25, 0.125)),
    ControlReply(sampling=SamplingCost(10.5, None, 0.125)),
    Telemetry("jetson1", (PowerLine(5, "RAM 1/2MB"),), "ended"),
    AnswerBody(b"\0\0\0\0", (DeviceTiming(0, 1, 2, 3, 4, 5),), {1: MissingReason.ABSENT}, 1, 2, 3),
    AnswerBody(b"", (), {0: MissingReason.OVERLOAD}, 1, 0, 0, shed="queue"),
)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_body_comes_back_from_the_wire_as_it_was(value: msgspec.Struct) -> None:
    message = unpack(pack(Message(Kind.CONTROL, Dtype.BODY, payload=body(value))))
    assert read_body(message, type(value)) == value


def test_a_text_that_utf_8_cannot_hold_is_escaped_in_a_body() -> None:
    """An error's text may hold the name of a file from an old archive."""
    reply = ControlReply(error="M\udcfcller.png, M\u00fcller.png", mark=Mark(1, 2, 3))
    message = Message(Kind.CONTROL, Dtype.BODY, payload=body(reply))
    assert read_body(message, ControlReply) == ControlReply(error="M\\xfcller.png, M\u00fcller.png", mark=Mark(1, 2, 3))
    answer = AnswerBody(b"\xff\x00", (), {1: MissingReason.ABSENT}, 1, 2, 3)
    assert read_body(Message(Kind.ANSWER, Dtype.BODY, payload=body(answer)), AnswerBody) == answer


def test_what_a_ping_brings_is_skipped_by_older_peers_and_absent_from_them() -> None:
    """Either side of a link may be the older one."""

    class OlderReply(msgspec.Struct, frozen=True):
        error: str = ""

    sent = Message(Kind.CONTROL, Dtype.BODY, payload=body(ControlReply(over_current=OverCurrentEvents(1, 2, 3))))
    assert read_body(sent, OlderReply) == OlderReply()
    older = Message(Kind.CONTROL, Dtype.BODY, payload=body(OlderReply()))
    assert read_body(older, ControlReply).over_current is None


def test_counts_below_zero_are_no_body() -> None:
    counts = {"over_current": {"under_voltage": 0, "average": 0, "instantaneous": -1}}
    message = Message(Kind.CONTROL, Dtype.BODY, payload=msgspec.msgpack.encode(counts))
    with pytest.raises(WireError, match="expected a ControlReply"):
        read_body(message, ControlReply)


def test_a_body_of_a_newer_version_with_one_more_field_is_read() -> None:
    newer = msgspec.msgpack.encode({"question": "status", "since": 2})
    assert read_body(Message(Kind.CONTROL, Dtype.BODY, payload=newer), Control) == Control(Question.STATUS)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode({"question": 1}),
        msgspec.msgpack.encode({"question": "sing"}),
        msgspec.msgpack.encode({"question": "mark", "interval_ms": 1.5}),
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode({"question": "status"}) + b"\0",
        b"\x81\xa8question\xa2\xff\xff",
        b"\x82\xa8question\xa6status\xa1x" + b"\x91" * 60_000 + b"\xc0",
        b"\xdf\xff\xff\xff\xff",
    ],
    ids=["empty", "no-msgpack", "missing", "type", "word", "float", "array", "longer", "no-text", "deep", "huge-map"],
)
def test_a_body_that_is_something_else_is_refused(payload: bytes) -> None:
    """``deep`` nests further than Python's recursion limit, in a field that nobody knows."""
    with pytest.raises(WireError) as error:
        read_body(Message(Kind.CONTROL, Dtype.BODY, payload=payload), Control)
    assert error.value.reason == "body"


@given(payload=st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_but_never_break_the_reader(payload: bytes) -> None:
    for value in VALUES:
        with suppress(WireError):
            read_body(Message(Kind.CONTROL, Dtype.BODY, payload=payload), type(value))


def test_an_array_is_no_body() -> None:
    message = Message(Kind.HELLO, *array_payload(np.zeros(3, np.float32)))
    with pytest.raises(WireError, match="HELLO: expected a body, found FLOAT32"):
        read_body(message, Hello)
