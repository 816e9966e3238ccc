"""The device's side of pairing against a node that says what it likes: nothing but a named failure may come of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.errors import LinkError, LostLinkError, PeerProtocolError, RefusedError
from devit_contract.wire.pairing import (
    HEADER,
    Added,
    Ask,
    Channel,
    Content,
    Declined,
    Handshake,
    Introduction,
    Kind,
    NodeAddress,
    Welcome,
    encode,
    frame,
)
from devit_edge_agent.join import guest as guests
from devit_edge_agent.join.guest import joined

CODE = "K7Q-4MX"
WELCOME = encode(Welcome(0, (NodeAddress("tcp://*:1", "k"),)))
Answers = Callable[[Channel], list[bytes]]
"""Of a node that has the code: the frames that it sends, whatever it is asked."""


@contextmanager
def node(answers: Answers, *, ends: bool = True) -> Iterator[int]:
    """Answer one joiner on a port of this machine; with ``ends`` the connection ends after the last frame."""
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            link, _ = listening.accept()
            with link, suppress(OSError):
                ours = Handshake(CODE, "node")
                hello = link.recv(HEADER.size + 38, socket.MSG_WAITALL)
                channel = ours.finish(hello[HEADER.size :])
                link.sendall(ours.hello + b"".join(answers(channel)))
                if not ends:
                    is_over.wait(20)
                link.shutdown(socket.SHUT_WR)
                while link.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            is_over.set()
            thread.join(20)
            assert not thread.is_alive()


def ask(port: int, most_bytes: int = 100) -> bytes | None:
    """Join, ask for one file, and finish."""
    with joined("127.0.0.1", port, CODE, Introduction("jetson1", "k" * 40)) as guest:
        chunks = guest.fetch(Ask("bundle", "manifest.json"), most_bytes)
        content = None if chunks is None else b"".join(chunks)
        guest.finish()
        return content


def sealed(*contents: bytes) -> Answers:
    return lambda channel: [channel.seal(content) for content in contents]


def test_a_file_comes_whole_or_is_not_offered() -> None:
    parts = encode(Content(5)), b"abc", b"de"
    with node(sealed(WELCOME, *parts, encode(Added()))) as port:
        assert ask(port) == b"abcde"
    with node(sealed(WELCOME, encode(Content(None)), encode(Added()))) as port:
        assert ask(port) is None


@pytest.mark.parametrize(
    ("contents", "error", "told"),
    [
        ((WELCOME, encode(Content(101))), PeerProtocolError, "manifest.json: expected 100 bytes at most, found 101"),
        ((WELCOME, encode(Content(5)), b"abcdef"), PeerProtocolError, "expected 5 bytes of a file at most, found 6"),
        ((WELCOME, encode(Content(5)), b""), PeerProtocolError, "expected 5 bytes of a file at most, found 0"),
        ((WELCOME, encode(Content(5)), b"abc"), LostLinkError, "no link (the other side has ended it)"),
        ((WELCOME, WELCOME), PeerProtocolError, "expected Content, found Welcome"),
        ((WELCOME, b"\xc1"), PeerProtocolError, "expected a message of pairing, found another one"),
        ((encode(Welcome(0, ())),), PeerProtocolError, "expected a message of pairing, found another one"),
        ((encode(Declined("no \x1b[2J\nroom")),), RefusedError, r"declined: no \x1b[2J room"),
        ((), LostLinkError, "no link (the other side has ended it)"),
    ],
)
def test_what_a_node_should_not_say_ends_in_one_line(
    contents: tuple[bytes, ...], error: type[Exception], told: str
) -> None:
    with node(sealed(*contents)) as port, pytest.raises(error) as caught:
        ask(port)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_node_that_falls_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "SILENCE_S", 0.2)
    with node(sealed(WELCOME), ends=False) as port, pytest.raises(LostLinkError, match="silent for too long"):
        ask(port)


@examples(1)
@given(
    st.lists(
        st.binary(max_size=60).map(lambda data: (True, data))
        | st.sampled_from([WELCOME, encode(Content(5)), encode(Added())]).map(lambda data: (True, data))
        | st.tuples(st.sampled_from(Kind), st.binary(max_size=60)).map(lambda each: (False, frame(*each)))
        | st.binary(max_size=60).map(lambda data: (False, data)),
        max_size=5,
    ),
    st.booleans(),
)
def test_no_bytes_of_a_node_do_more_than_end_in_a_named_failure(parts: list[tuple[bool, bytes]], begins: bool) -> None:
    def answers(channel: Channel) -> list[bytes]:
        start = [channel.seal(WELCOME)] if begins else []
        return start + [channel.seal(data) if is_sealed else data for is_sealed, data in parts]

    with node(answers) as port, suppress(LinkError):
        ask(port)
