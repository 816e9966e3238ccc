"""Bodies by themselves: bounded in memory and time, compressed or not."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from devit_contract.errors import InputError
from devit_gateway.bodies import SMALL_BYTES, BodyReader, compress, decompress

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", PACK)
@given(content=st.binary(max_size=2000))
def test_what_was_compressed_comes_back(encoding: str, content: bytes) -> None:
    assert decompress(PACK[encoding](content), encoding, 2000) == content


@pytest.mark.parametrize("encoding", PACK)
def test_a_bomb_is_refused_before_it_grows(encoding: str) -> None:
    bomb = PACK[encoding](bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(HTTPException) as raised:
        decompress(bomb, encoding, 100_000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert raised.value.status_code == 413
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize("encoding", PACK)
@given(content=st.binary(max_size=300))
def test_what_is_not_compressed_is_refused(encoding: str, content: bytes) -> None:
    with pytest.raises(InputError, match="expected"):
        decompress(b"\x00" + content, encoding, 1000)


@pytest.mark.parametrize("encoding", PACK)
def test_a_stream_that_is_cut_off_or_goes_on_is_refused(encoding: str) -> None:
    whole = PACK[encoding](b"pixels" * 50)
    for cut in range(len(whole)):
        with pytest.raises(InputError, match="cut off"):
            decompress(whole[:cut], encoding, 1000)
    with pytest.raises(InputError, match="more after it"):
        decompress(whole + b"x", encoding, 1000)


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(HTTPException) as raised:
        decompress(b"", "br", 1000)
    assert raised.value.status_code == 415


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip", "gzip"),
        ("br, gzip;q=0.8", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q = 0.00", None),
    ],
)
def test_a_client_gets_the_compression_that_it_accepts(accepted: str, encoding: str | None) -> None:
    content, found = compress(b"logits", accepted)
    assert found == encoding
    assert (decompress(content, found, 100) if found else content) == b"logits"


def request(*, messages: tuple[Message, ...] = (), **headers: str) -> Request:
    """A request whose body comes in these messages, and then no more for ever."""
    coming = iter(messages)

    async def receive() -> Message:
        message = next(coming, None)
        if message is None:
            await asyncio.get_running_loop().create_future()
        assert message is not None
        return message

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": named}, receive)


def test_a_body_that_does_not_come_is_given_up() -> None:
    slow = request(messages=({"type": "http.request", "body": b"{", "more_body": True},))
    with pytest.raises(HTTPException) as raised:
        asyncio.run(BodyReader(silence_s=0.05).read(slow, 100))
    assert raised.value.status_code == 408


def test_a_body_that_comes_drop_by_drop_is_given_up() -> None:
    """No pause in it is long."""

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"{", "more_body": True}

    with pytest.raises(HTTPException) as raised:
        asyncio.run(BodyReader(read_timeout_s=0.05).read(Request({"type": "http", "headers": []}, receive), 10**9))
    assert raised.value.status_code == 408


def test_a_client_that_goes_away_is_no_bug() -> None:
    with pytest.raises(InputError, match="closed connection"):
        asyncio.run(BodyReader().read(request(messages=({"type": "http.disconnect"},)), 100))


async def held(bodies: BodyReader, *requests: Request, max_bytes: int = 900_000) -> list[int]:
    """How much is held after each of these has got its room, all at the same time."""
    async with AsyncExitStack() as stack:
        found = []
        for each in requests:
            await stack.enter_async_context(bodies.room(each, max_bytes))
            found.append(bodies.held_bytes)
        return found


def test_large_bodies_have_a_bound_together_and_small_ones_never_wait() -> None:
    """A compressed one counts as what it may grow to, and one without a length as the longest."""
    large, small = request(content_length="400000"), request(content_length=str(SMALL_BYTES))
    packed = request(content_length="10", content_encoding="gzip")

    def bodies() -> BodyReader:
        return BodyReader(max_held_bytes=1_000_000, read_timeout_s=0.05)

    assert asyncio.run(held(bodies(), large, large, *[small] * 100)) == [400_000] + [800_000] * 101
    for more in (large, packed, request()):
        with pytest.raises(HTTPException) as raised:
            asyncio.run(held(bodies(), large, large, more))
        assert raised.value.status_code == 503
    assert asyncio.run(held(bodies(), packed)) == [900_010]


def test_a_large_body_waits_until_others_have_shrunk() -> None:
    async def wait() -> int:
        bodies, large = BodyReader(max_held_bytes=1_000_000), request(content_length="600000")
        async with bodies.room(large, 900_000) as first:
            second = asyncio.ensure_future(held(bodies, large))
            await asyncio.sleep(0)
            assert bodies.held_bytes == 600_000
            first.shrink(100_000)
            return (await asyncio.wait_for(second, 30))[0]

    assert asyncio.run(wait()) == 700_000


def test_a_single_body_is_read_even_where_it_is_more_than_all_may_hold() -> None:
    assert asyncio.run(held(BodyReader(max_held_bytes=10), request(content_length="400000"))) == [400_000]
