"""What both sides of a pairing say: codes, the handshake, sealed messages, and refusal of everything else."""

from __future__ import annotations

import hmac
import struct
import subprocess
import sys
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.errors import InputError, WireError
from devit_contract.wire.pairing import (
    CODE_ALPHABET,
    HEADER,
    MAX_ASK_BYTES,
    MAX_REPLY_BYTES,
    Added,
    Ask,
    Channel,
    Content,
    Declined,
    Finish,
    Handshake,
    Introduction,
    Kind,
    Message,
    NodeAddress,
    Refusal,
    Side,
    Welcome,
    decode,
    encode,
    frame,
    new_code,
    read_code,
    read_header,
    read_refusal,
    refusal,
)

SECRET = bytes(range(32))
MESSAGES: list[Message] = [
    Introduction("jetson1", "k" * 40, "0.1.0"),
    Welcome(3, (NodeAddress("tcp://10.0.0.2:7711", "n" * 40),), "desk ..."),
    Declined("why"),
    Ask("bundle", "manifest.json"),
    Content(7),
    Content(None),
    Finish(),
    Added(),
]
SMALL_ORDER = (
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "00" * 32,
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
)
"""One, minus one, and points of order four and eight on the curve of Ed25519."""
GOLDEN = {
    "Ask": "83a474797065a341736ba477686174a662756e646c65a46e616d65ad6d616e69666573742e6a736f6e",
    "Added": "81a474797065a54164646564",
}


def channels(code: str = "K7Q-4MX", other: str = "K7Q-4MX") -> tuple[Channel, Channel]:
    """Shake hands in memory: the joiner's channel, the node's."""
    joiner, node = Handshake(code, "joiner"), Handshake(other, "node")
    return joiner.finish(node.hello[HEADER.size :]), node.finish(joiner.hello[HEADER.size :])


def body(data: bytes) -> bytes:
    return data[HEADER.size :]


def test_a_new_code_has_thirty_bits_and_is_read_as_it_is_shown() -> None:
    assert len(set(CODE_ALPHABET)) ** 6 == 2**30
    codes = {new_code() for _ in range(50)}
    assert len(codes) == 50
    assert {read_code(code) for code in codes} == codes


@given(st.text(CODE_ALPHABET, min_size=6, max_size=6), st.randoms())
def test_a_code_is_read_however_it_is_typed(plain: str, random: object) -> None:
    typed = " ".join(plain.lower().replace("0", "o").replace("1", "l"))
    assert read_code(typed).replace("-", "") == plain


@given(st.text(max_size=8))
def test_what_is_no_code_is_refused_without_being_shown(text: str) -> None:
    told = ""
    try:
        assert set(read_code(text)) <= set(CODE_ALPHABET + "-")
    except InputError as err:
        told = str(err)
    assert len(text) < 4 or text not in told


def test_sides_with_one_code_understand_each_other_and_no_two_handshakes_are_alike() -> None:
    joiner, node = channels()
    for message in MESSAGES:
        assert decode(node.open(body(joiner.seal(encode(message))))) == message
        assert decode(joiner.open(body(node.seal(encode(message))))) == message
    assert Handshake("K7Q-4MX", "node").hello != Handshake("K7Q-4MX", "node").hello
    assert channels()[0].seal(b"") != channels()[0].seal(b"")


def test_sides_with_different_codes_open_nothing_of_each_other() -> None:
    joiner, node = channels("K7Q-4MX", "K7Q-4MY")
    for sealing, opening in ((joiner, node), (node, joiner)):
        with pytest.raises(WireError) as caught:
            opening.open(body(sealing.seal(b"hello")))
        assert caught.value.reason == "code"


def test_a_channel_is_chacha20_poly1305_under_keys_of_hkdf() -> None:
    """Keys by RFC 5869 from the standard library, opened by libsodium."""
    nacl = pytest.importorskip("nacl.bindings", reason="pynacl comes with the extra test alone")
    extracted = hmac.digest(bytes(32), SECRET, "sha256")
    label = b"devit pairing, version 1, keys"
    of_joiner = hmac.digest(extracted, label + b"\x01", "sha256")
    of_node = hmac.digest(extracted, of_joiner + label + b"\x02", "sha256")
    sides: tuple[tuple[Side, bytes], ...] = (("joiner", of_joiner), ("node", of_node))
    for side, key in sides:
        channel = Channel(SECRET, side)
        for number in range(3):
            sealed = channel.seal(b"content %d" % number)
            assert HEADER.unpack(sealed[:5]) == (Kind.SEALED, len(sealed) - 5)
            nonce = number.to_bytes(12, "big")
            opened = nacl.crypto_aead_chacha20poly1305_ietf_decrypt(sealed[5:], None, nonce, key)
            assert opened == b"content %d" % number


def test_messages_are_these_bytes() -> None:
    assert {type(each).__name__: encode(each).hex() for each in MESSAGES if type(each).__name__ in GOLDEN} == GOLDEN
    hello = Handshake("K7Q-4MX", "joiner").hello
    assert (len(hello), hello[:11]) == (43, b"\0\0\0\0\x26DVPR\x01A")
    assert refusal(Refusal.PAUSED, 31.6).hex() == "0100000003020020"


def test_an_older_peer_reads_a_message_with_a_field_it_does_not_know() -> None:
    longer = b"\x82" + encode(Added())[1:] + b"\xa3new\x01"
    assert decode(longer) == Added()


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=5), st.data())
def test_changed_swapped_repeated_reflected_and_missing_messages_do_not_open(
    contents: list[bytes], data: st.DataObject
) -> None:
    sender, receiver = Channel(SECRET, "joiner"), Channel(SECRET, "node")
    sealed = [body(sender.seal(content)) for content in contents]
    first = data.draw(st.integers(0, len(sealed) - 1))
    for content, each in zip(contents[:first], sealed[:first], strict=True):
        assert receiver.open(each) == content
    wrong = [each for number, each in enumerate(sealed) if number != first]
    place = data.draw(st.integers(0, len(sealed[first]) - 1))
    flipped = bytearray(sealed[first])
    flipped[place] ^= data.draw(st.integers(1, 255))
    other_side = Channel(SECRET, "node")
    for _ in range(first):
        other_side.seal(b"")
    wrong += [bytes(flipped), sealed[first][:place], sealed[first] + b"\0", body(other_side.seal(contents[first]))]
    with pytest.raises(WireError):
        receiver.open(data.draw(st.sampled_from(wrong)))


@examples(3)
@given(st.binary(max_size=60) | st.binary(min_size=33, max_size=33).map(lambda m: b"DVPR\x01" + m))
def test_no_hello_does_more_than_be_refused(hello: bytes) -> None:
    for side in ("joiner", "node"):
        handshake = Handshake("K7Q-4MX", "joiner" if side == "joiner" else "node")
        with suppress(WireError):
            handshake.finish(hello)


@pytest.mark.parametrize("message", SMALL_ORDER)
def test_points_of_small_order_which_would_make_any_code_right_are_refused(message: str) -> None:
    with pytest.raises(WireError) as caught:
        Handshake("K7Q-4MX", "node").finish(b"DVPR\x01A" + bytes.fromhex(message))
    assert caught.value.reason == "body"


def test_a_reflected_hello_and_another_version_are_refused() -> None:
    node = Handshake("K7Q-4MX", "node")
    with pytest.raises(WireError, match="message of SPAKE2"):
        node.finish(node.hello[HEADER.size :])
    with pytest.raises(WireError, match="expected version 1 of pairing, found 2"):
        node.finish(b"DVPR\x02" + bytes(33))


@examples(3)
@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for read in (decode, read_refusal, Channel(SECRET, "node").open):
        with suppress(WireError):
            read(data)


@examples(3)
@given(
    st.binary(min_size=5, max_size=5) | st.binary(min_size=2, max_size=2).map(b"\2\0\0".__add__),
    st.sampled_from([MAX_ASK_BYTES, MAX_REPLY_BYTES]),
)
def test_a_header_lets_no_larger_body_through_than_is_expected(header: bytes, most_bytes: int) -> None:
    number, size_bytes = struct.unpack("!BI", header)
    if number == Kind.SEALED and size_bytes <= most_bytes + 16:
        assert read_header(header, Kind.SEALED, most_bytes=most_bytes) == (number, size_bytes)
    else:
        with pytest.raises(WireError):
            read_header(header, Kind.SEALED, most_bytes=most_bytes)


def test_a_message_that_announces_gigabytes_takes_no_memory() -> None:
    tracemalloc.start()
    for lie in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 4000):
        with pytest.raises(WireError):
            decode(lie)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_texts_of_a_peer_are_bounded() -> None:
    with pytest.raises(WireError, match="1024"):
        decode(encode(Introduction("n" * 1025, "")))


def test_nothing_of_cryptography_is_loaded_by_the_module_itself() -> None:
    code = "import sys, devit_contract.wire.pairing; print({'spake2', 'cryptography'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_frames_are_read_as_they_are_made() -> None:
    made = frame(Kind.SEALED, b"abc")
    assert read_header(made[: HEADER.size], Kind.SEALED, most_bytes=3) == (Kind.SEALED, 3)
    assert made.hex() == "0200000003616263"
