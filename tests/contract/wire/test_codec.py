"""The bytes on the wire: golden messages, and refusal of everything else."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from tests.support.properties import examples

from devit_contract.errors import WireError
from devit_contract.wire.codec import (
    HEADER,
    NO_DEVICE,
    Copies,
    Dtype,
    Kind,
    Message,
    Reason,
    RequestPolicy,
    State,
    array_payload,
    pack,
    unpack,
)
from devit_contract.wire.messages import AnswerBody, DeviceTiming, Welcome, body, read_body
from devit_contract.wire.words import MissingReason

RUN, BOOT = 0x0123456789ABCDEF, 0x1122334455667788

# Rows: magic, minor, kind, header bytes, dtype, ndim, device; dims; revision, mask, state, reason;
# run, frame, boot; dispatch, deadline; queue, decode, inference, capture age; payload bytes, checksum;
# policy where there is one; payload.
GOLDEN_BYTES = {
    "REQUEST": """
        44565431 03 0a 6c00 04 00 ffff
        00000000 00000000 00000000 00000000
        00000000 0300000000000000 0000 0000
        efcdab8967452301 0400000000000000 0000000000000000
        0000000000000000 00000000
        00000000 00000000 00000000 00000000
        03000000 a375f9a7
        02000000
        ff d8 ff""",
    "WITHDRAW": """
        44565431 03 0d 6800 00 00 0100
        00000000 00000000 00000000 00000000
        00000000 0000000000000000 0000 0000
        efcdab8967452301 0201000000000000 0000000000000000
        0000000000000000 00000000
        00000000 00000000 00000000 00000000
        00000000 cd3e025f""",
    "WELCOME": """
        44565431 03 02 6800 05 00 ffff
        00000000 00000000 00000000 00000000
        00000000 0000000000000000 0000 0000
        efcdab8967452301 0000000000000000 0000000000000000
        0000000000000000 00000000
        00000000 00000000 00000000 00000000
        1f000000 e68c4052
        82 a6637265646974 02 ad666561747572655f6474797065 a7666c6f61743332""",
    "FRAME": """
        44565431 03 04 6800 01 03 0100
        02000000 03000000 01000000 00000000
        00000000 0000000000000000 0000 0000
        efcdab8967452301 0201000000000000 0000000000000000
        07ca9a3b00000000 50c30000
        00000000 00000000 00000000 00000000
        06000000 5a2ce5a5
        01 02 03 04 05 ff""",
    "CODED FRAME": """
        44565431 03 04 6800 04 03 0100
        02000000 03000000 03000000 00000000
        00000000 0000000000000000 0000 0000
        efcdab8967452301 0201000000000000 0000000000000000
        07ca9a3b00000000 50c30000
        00000000 00000000 00000000 00000000
        03000000 19a523b6
        ff d8 ff""",
    "FEATURE": """
        44565431 03 06 6800 03 01 0100
        02000000 00000000 00000000 00000000
        0100feca 0000000000000000 0000 0000
        efcdab8967452301 0201000000000000 8877665544332211
        07ca9a3b00000000 00000000
        0a000000 14000000 b80b0000 fa000000
        08000000 5a2063df
        0000c03f 000000c0""",
    "SKIP": """
        44565431 03 07 6800 00 00 0100
        00000000 00000000 00000000 00000000
        00000000 0000000000000000 0000 0100
        efcdab8967452301 0201000000000000 8877665544332211
        07ca9a3b00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 2b55622f""",
    "ANSWER": """
        44565431 03 0b 6800 05 00 ffff
        00000000 00000000 00000000 00000000
        00000000 0200000000000000 0300 0000
        0900000000000000 0300000000000000 0000000000000000
        0000000000000000 00000000
        00000000 00000000 00000000 00000000
        92000000 9f9cb980
        8a a66c6f67697473 c408 0000c03f 000000c0
        a764657669636573 91 97 01 64 0a 14 cd0bb8 cd0c3a 00
        a76d697373696e67 81 00 a8646561646c696e65
        a7776169745f7573 05 aa636f6c6c6563745f7573 cd0c80 a7667573655f7573 07
        a6706f6c696379 a76365727461696e a561736b6564 03
        a573636f7265 cb3ff8000000000000 a97468726573686f6c64 cb4000000000000000""",
}
ANSWER_BODY = AnswerBody(
    logits=bytes.fromhex("0000c03f000000c0"),
    devices=(DeviceTiming(1, 100, 10, 20, 3000, 3130),),
    missing={0: MissingReason.DEADLINE},
    wait_us=5,
    collect_us=3200,
    fuse_us=7,
    policy="certain",
    asked=3,
    score=1.5,
    threshold=2.0,
)
GOLDEN_MESSAGES = {
    "REQUEST": Message(
        Kind.REQUEST,
        Dtype.ENCODED,
        payload=b"\xff\xd8\xff",
        mask=3,
        run_id=RUN,
        frame_id=4,
        policy=RequestPolicy.CERTAIN,
    ),
    "WITHDRAW": Message(Kind.WITHDRAW, device=1, run_id=RUN, frame_id=258),
    "WELCOME": Message(Kind.WELCOME, Dtype.BODY, payload=body(Welcome(2, "float32")), run_id=RUN),
    "FRAME": Message(
        Kind.FRAME,
        Dtype.UINT8,
        (2, 3, 1),
        bytes([1, 2, 3, 4, 5, 255]),
        device=1,
        run_id=RUN,
        frame_id=258,
        dispatch_ns=1_000_000_007,
        deadline_us=50_000,
    ),
    "CODED FRAME": Message(
        Kind.FRAME,
        Dtype.ENCODED,
        (2, 3, 3),
        b"\xff\xd8\xff",
        device=1,
        run_id=RUN,
        frame_id=258,
        dispatch_ns=1_000_000_007,
        deadline_us=50_000,
    ),
    "FEATURE": Message(
        Kind.FEATURE,
        *array_payload(np.array([1.5, -2.0], np.float32)),
        device=1,
        engine_revision=0xCAFE0001,
        run_id=RUN,
        frame_id=258,
        boot_id=BOOT,
        dispatch_ns=1_000_000_007,
        queue_us=10,
        decode_us=20,
        inference_us=3000,
        capture_age_us=250,
    ),
    "SKIP": Message(
        Kind.SKIP,
        device=1,
        reason=Reason.EXPIRED,
        run_id=RUN,
        frame_id=258,
        boot_id=BOOT,
        dispatch_ns=1_000_000_007,
    ),
    "ANSWER": Message(
        Kind.ANSWER, Dtype.BODY, payload=body(ANSWER_BODY), mask=2, state=State.PARTIAL, run_id=9, frame_id=3
    ),
}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message that may travel."""
    dtype = draw(st.sampled_from(Dtype))
    dims: tuple[int, ...] = ()
    payload: bytes | memoryview = b""
    if dtype in (Dtype.ENCODED, Dtype.BODY):
        payload = draw(st.binary(max_size=200))
        if dtype is Dtype.ENCODED:
            dims = draw(st.just(()) | st.tuples(*[st.integers(1, 2**32 - 1)] * 3))
    elif dtype is not Dtype.NONE:
        number = {Dtype.UINT8: np.uint8, Dtype.FLOAT16: np.float16, Dtype.FLOAT32: np.float32}[dtype]
        shape = st_np.array_shapes(min_dims=1, max_dims=4, max_side=5)
        array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = draw(st_np.arrays(number, shape))
        dtype, dims, payload = array_payload(array)
    u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
    return Message(
        kind=draw(st.sampled_from(Kind)),
        dtype=dtype,
        dims=dims,
        payload=payload,
        device=draw(st.integers(0, NO_DEVICE)),
        engine_revision=draw(u32),
        mask=draw(u64),
        state=draw(st.sampled_from(State)),
        reason=draw(st.sampled_from(Reason)),
        run_id=draw(u64),
        frame_id=draw(u64),
        boot_id=draw(u64),
        dispatch_ns=draw(u64),
        deadline_us=draw(u32),
        queue_us=draw(u32),
        decode_us=draw(u32),
        inference_us=draw(u32),
        capture_age_us=draw(u32),
    )


REQUESTS = st.builds(
    lambda message, policy: msgspec.structs.replace(message, kind=Kind.REQUEST, policy=policy),
    messages(),
    st.sampled_from([*RequestPolicy, 2**32 - 1]),
)


def plain(message: Message) -> Message:
    return msgspec.structs.replace(message, payload=bytes(message.payload))


def with_checksum(data: bytes | bytearray, header_bytes: int = HEADER.size) -> bytes:
    """Write the right checksum into a message that was changed."""
    crc32 = zlib.crc32(data[HEADER.size : header_bytes], zlib.crc32(data[:100], zlib.crc32(data[header_bytes:])))
    return bytes(data[:100]) + crc32.to_bytes(4, "little") + bytes(data[104:])


@pytest.mark.parametrize("name", GOLDEN_BYTES)
def test_a_message_is_exactly_these_bytes_and_comes_back_from_them(name: str) -> None:
    golden = bytes.fromhex(GOLDEN_BYTES[name])
    assert pack(GOLDEN_MESSAGES[name]).hex() == golden.hex()
    assert plain(unpack(golden)) == plain(GOLDEN_MESSAGES[name])
    assert with_checksum(golden, int.from_bytes(golden[6:8], "little")) == golden


def test_the_bodies_of_golden_messages_are_read_back() -> None:
    assert read_body(unpack(bytes.fromhex(GOLDEN_BYTES["ANSWER"])), AnswerBody) == ANSWER_BODY
    assert read_body(unpack(bytes.fromhex(GOLDEN_BYTES["WELCOME"])), Welcome) == Welcome(2, "float32")


def test_an_answer_names_a_coding_only_where_one_is_wanted() -> None:
    """Small images' answers are the bytes that they were."""
    coded = msgspec.structs.replace(ANSWER_BODY, images="jpeg")
    assert body(coded)[1:] == body(ANSWER_BODY)[1:] + bytes.fromhex("a6 696d61676573 a4 6a706567")
    assert msgspec.msgpack.decode(body(ANSWER_BODY), type=AnswerBody).images == "raw"


@pytest.mark.parametrize("dims", [(2, 3, 0), (2, 3, 3, 1), (2, 3)])
def test_a_coded_image_has_three_sides(dims: tuple[int, ...]) -> None:
    message = msgspec.structs.replace(GOLDEN_MESSAGES["CODED FRAME"], dims=dims)
    with pytest.raises(WireError) as error:
        unpack(pack(message))
    assert error.value.reason == "dims"


def test_a_picture_file_is_no_image_of_the_models_shape() -> None:
    files = {name: message.is_file for name, message in GOLDEN_MESSAGES.items()}
    assert files == dict.fromkeys(files, False) | {"REQUEST": True}


def test_an_array_is_viewed_in_the_received_bytes_without_a_copy_and_is_read_only() -> None:
    data = bytes.fromhex(GOLDEN_BYTES["FEATURE"])
    array = unpack(data).array()
    np.testing.assert_array_equal(array, np.array([1.5, -2.0], np.float32))
    assert not array.flags.writeable
    assert not array.flags.owndata


@given(message=messages() | REQUESTS)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    data = pack(message)
    assert len(data) == (108 if message.policy else 104) + len(message.payload)
    assert plain(unpack(data)) == plain(message)
    if message.dims and message.dtype is not Dtype.ENCODED:
        assert unpack(data).array().tobytes() == bytes(message.payload)


@pytest.mark.parametrize("name", ["FRAME", "SKIP", "FEATURE"])
def test_a_message_of_the_first_minor_version_is_read(name: str) -> None:
    older = bytearray(bytes.fromhex(GOLDEN_BYTES[name]))
    older[4] = 1
    assert plain(unpack(with_checksum(older))) == plain(msgspec.structs.replace(GOLDEN_MESSAGES[name], minor=1))


def test_a_policy_stands_where_older_nodes_skip_it_and_without_one_a_request_is_as_it_was() -> None:
    request = GOLDEN_MESSAGES["REQUEST"]
    plainly = pack(msgspec.structs.replace(request, policy=RequestPolicy.DEFAULT))
    assert len(plainly) == HEADER.size + len(request.payload)
    longer = bytearray(pack(request))
    assert struct.unpack_from("<H", longer, 6) == (108,)  # all that an older node looks at
    longer[4] = 1  # bytes that an older sender added there mean something else
    assert unpack(with_checksum(longer, 108)).policy == RequestPolicy.DEFAULT


@given(message=messages())
def test_copies_for_several_devices_are_the_bytes_of_each(message: Message) -> None:
    copies = Copies(message)
    for device in (0, 7, NO_DEVICE, message.device):
        assert copies.to(device) == pack(msgspec.structs.replace(message, device=device))


@pytest.mark.parametrize("name", GOLDEN_BYTES)
def test_any_changed_byte_is_refused(name: str) -> None:
    golden = bytes.fromhex(GOLDEN_BYTES[name])
    for position in range(len(golden)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(golden)
            damaged[position] ^= change
            with pytest.raises(WireError):
                unpack(bytes(damaged))


@pytest.mark.parametrize("name", GOLDEN_BYTES)
def test_a_message_cut_off_or_lengthened_anywhere_is_refused(name: str) -> None:
    golden = bytes.fromhex(GOLDEN_BYTES[name])
    for length in range(len(golden)):
        with pytest.raises(WireError) as error:
            unpack(golden[:length])
        assert error.value.reason == "size"
    with pytest.raises(WireError):
        unpack(golden + b"\0")


@examples(3)
@given(tail=st.binary(max_size=300), header=st.binary(min_size=100, max_size=100), is_plausible=st.booleans())
def test_random_bytes_raise_nothing_but_a_refusal(tail: bytes, header: bytes, is_plausible: bool) -> None:
    """With ``is_plausible`` magic, lengths and checksum hold, so that the inner checks are reached."""
    data = header + bytes(4) + tail
    if is_plausible:
        fixed = bytearray(data)
        fixed[0:5] = b"DVT1\0"
        fixed[6:8] = (104).to_bytes(2, "little")
        fixed[5], fixed[8], fixed[9] = 1 + data[5] % 14, data[8] % 7, data[9] % 6
        fixed[40:44] = bytes([data[40] % 6, 0, data[42] % 13, 0])
        fixed[96:100] = len(tail).to_bytes(4, "little")
        data = with_checksum(fixed)
    for candidate in (data, tail):
        with suppress(WireError):
            message = unpack(candidate)
            if message.dims:
                message.array()


@examples(3)
@given(
    dims=st.lists(st.sampled_from([0, 1, 2, 3, 6, 255, 65536, 2**31, 2**32 - 1]), min_size=4, max_size=4),
    ndim=st.integers(0, 5),
    dtype=st.sampled_from([Dtype.UINT8, Dtype.FLOAT16, Dtype.FLOAT32]),
    size=st.sampled_from([0, 1, 2, 4, 6, 12, 24]),
)
def test_dims_that_lie_about_the_payload_are_refused(dims: list[int], ndim: int, dtype: Dtype, size: int) -> None:
    """An empty shape with huge other dimensions fits no payload bytes, yet numpy cannot view it."""
    data = bytearray(pack(Message(Kind.FRAME, Dtype.ENCODED, payload=bytes(size))))
    data[8], data[9] = dtype, ndim
    data[12:28] = b"".join(dim.to_bytes(4, "little") for dim in dims)
    count = 1
    for dim in dims[:ndim]:
        count *= dim
    itemsize = {Dtype.UINT8: 1, Dtype.FLOAT16: 2, Dtype.FLOAT32: 4}[dtype]
    if 1 <= ndim <= 4 and not any(dims[ndim:]) and count > 0 and count * itemsize == size:
        assert unpack(with_checksum(data)).array().shape == tuple(dims[:ndim])
        return
    with pytest.raises(WireError) as error:
        unpack(with_checksum(data))
    assert error.value.reason == "dims"


def test_a_message_that_claims_gigabytes_allocates_nothing() -> None:
    data = bytearray(pack(Message(Kind.FRAME, Dtype.UINT8, (6,), bytes(6))))
    data[96:100] = (2**32 - 1).to_bytes(4, "little")
    lying_dims = bytearray(pack(Message(Kind.FRAME, Dtype.UINT8, (6,), bytes(6))))
    lying_dims[9] = 4
    lying_dims[12:28] = b"\xff" * 16
    tracemalloc.start()
    try:
        for candidate in (with_checksum(data), with_checksum(lying_dims)):
            with pytest.raises(WireError):
                unpack(candidate)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_a_longer_header_of_a_newer_minor_version_is_skipped_but_checked() -> None:
    payload = b"\x01\x02\x03\x04\x05\xff"
    header = bytearray(bytes.fromhex(GOLDEN_BYTES["FRAME"])[:104])
    header[4] = 4
    header[6:8] = (112).to_bytes(2, "little")
    newer = with_checksum(bytes(header) + b"newfield" + payload, header_bytes=112)
    assert plain(unpack(newer)) == plain(msgspec.structs.replace(GOLDEN_MESSAGES["FRAME"], minor=4))
    with pytest.raises(WireError) as error:
        unpack(newer.replace(b"newfield", b"newfielD"))
    assert error.value.reason == "crc"


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, b"DVT2", "magic"),
        (5, b"\x00", "kind"),
        (5, b"\x0e", "kind"),
        (6, b"\x67\x00", "size"),
        (6, b"\xff\xff", "size"),
        (8, b"\x06", "dtype"),
        (9, b"\x05", "dims"),
        (40, b"\x05\x00", "state"),
        (42, b"\x0d\x00", "state"),
        (96, b"\x07\x00\x00\x00", "size"),
    ],
)
def test_a_field_outside_its_range_is_refused_under_its_name(position: int, value: bytes, reason: str) -> None:
    data = bytearray(bytes.fromhex(GOLDEN_BYTES["FRAME"]))
    data[position : position + len(value)] = value
    with pytest.raises(WireError) as error:
        unpack(with_checksum(data))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros(3, np.int8), np.zeros((), np.float32), np.zeros((1, 1, 1, 1, 1), np.uint8)]
)
def test_arrays_that_do_not_travel_are_refused(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    with pytest.raises(WireError, match="expected uint8, float16 or float32 with 1 to 4 dimensions"):
        array_payload(array)


def test_a_strided_array_travels_in_c_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    dtype, dims, payload = array_payload(array)
    np.testing.assert_array_equal(unpack(pack(Message(Kind.FEATURE, dtype, dims, payload))).array(), array)


def test_a_body_is_no_array() -> None:
    with pytest.raises(WireError, match="WELCOME: expected an array, found BODY"):
        GOLDEN_MESSAGES["WELCOME"].array()
