"""The server by itself, with little patience: peers that are silent, slow or without end, and a stop in the middle."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.gateway.running import DEADLINE_S, make_certificate
from tests.support.starvation import within

from devit_gateway.access import Address
from devit_gateway.connection import CloseUnread, Connection, Patience, _ClosingTransport
from devit_gateway.serving import listen, serve

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
LONG_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Served:
    port: int
    trusted: ssl.SSLContext | None
    stop: threading.Event

    def connect(self) -> socket.socket:
        link = socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)
        return link if self.trusted is None else self.trusted.wrap_socket(link, server_hostname="127.0.0.1")


@contextmanager
def served(app: ASGIApp, patience: Patience, cert: tuple[Path, Path] | None = None) -> Iterator[Served]:
    address = Address("127.0.0.1", 0, *(cert or (None, None)))
    opened, url = listen(address)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=serve,
        args=(app, opened, address, stop.wait),
        kwargs={"on_ready": ready.set, "logs_requests": False, "grace_s": 20.0, "patience": patience},
    )
    thread.start()
    try:
        assert ready.wait(DEADLINE_S)
        trusted = None if cert is None else ssl.create_default_context(cafile=str(cert[0]))
        yield Served(int(url.rpartition(":")[2]), trusted, stop)
    finally:
        stop.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="module", params=["http", "https"])
def cert(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path] | None:
    return make_certificate(tmp_path_factory.mktemp("cert")) if request.param == "https" else None


def answering(length: int = 2, status: int = 200) -> ASGIApp:
    """An application that reads nothing, and answers with so many bytes."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(length)})

    return CloseUnread(app)


async def reading(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads all of a body."""
    while (await receive()).get("more_body"):
        pass
    await answering()(scope, receive, send)


def rest(link: socket.socket) -> bytes:
    """All that comes until the connection ends, in any way."""
    content = bytearray()
    with suppress(ConnectionError, ssl.SSLError):
        while part := link.recv(1 << 20):
            content += part
    return bytes(content)


def push(link: socket.socket, content: bytes) -> None:
    """Send without end."""
    while True:
        link.sendall(content)


Cert = tuple[Path, Path] | None


def test_a_silent_peer_is_not_waited_for(cert: Cert) -> None:
    with served(answering(), Patience(first_s=0.2), cert) as server, server.connect() as link, within(DEADLINE_S / 2):
        assert rest(link) == b""


def test_a_peer_without_a_handshake_is_not_waited_for(tmp_path: Path) -> None:
    with (
        served(answering(), Patience(handshake_s=0.2), make_certificate(tmp_path)) as server,
        socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as link,
        within(DEADLINE_S / 2),
    ):
        assert rest(link) == b""


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(cert: Cert) -> None:
    """Every byte would start a time that counts from the last one anew."""
    with served(answering(), Patience(first_s=0.3), cert) as server, server.connect() as link, within(DEADLINE_S / 2):
        link.settimeout(0.02)
        with suppress(ConnectionError, ssl.SSLError):
            for _ in range(round(DEADLINE_S / 0.02)):
                link.sendall(b"G")
                with suppress(TimeoutError):
                    assert link.recv(1) == b""
                    break


@pytest.mark.parametrize("sent", [b"", b"GET / HT", UPLOAD], ids=["silent", "half a head", "half a body"])
def test_peers_that_ask_nothing_whole_give_way(cert: Cert, sent: bytes) -> None:
    """Twenty on a server that has room for eight, and as many that never finish their handshake."""
    patience = Patience(connections=8, handshakes=8)
    with served(reading, patience, cert) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(server.connect()).sendall(sent)
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S))
        with server.connect() as link:
            link.sendall(GET)
            assert link.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "sent",
    [
        UPLOAD.replace(b"Content-Length: 1000000000", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 200,
        GET[:-2] + b"a:b\r\n" * 200 + b"\r\n",
    ],
    ids=["chunks of one byte", "headers"],
)
def test_what_costs_much_time_for_few_bytes_is_refused(sent: bytes) -> None:
    """A megabyte of such chunks held up all others for seconds, and nobody had asked for a token yet."""
    with served(reading, Patience()) as server, server.connect() as link:
        link.sendall(sent)
        assert link.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_refused_upload_is_answered_and_ended(cert: Cert) -> None:
    """The peer goes on sending, as one does that has not read the answer yet."""
    with served(answering(status=413), Patience(unasked_s=0.3), cert) as server, server.connect() as link:
        link.sendall(UPLOAD)
        answer = link.recv(1000)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer
        with within(DEADLINE_S / 2), pytest.raises(OSError, match=r"reset|pipe|closed|EOF"):
            push(link, bytes(65536))


def test_an_answer_that_is_not_taken_is_given_up(cert: Cert, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TLS all of it has left the server's own buffer at once, so its time begins after the next pause."""
    gone, lose = threading.Event(), Connection.connection_lost

    def note(connection: Connection, error: Exception | None) -> None:
        lose(connection, error)
        gone.set()

    monkeypatch.setattr(Connection, "connection_lost", note)
    with (
        served(answering(LONG_ANSWER_BYTES), Patience(idle_s=0.2, unread_s=0.2), cert) as server,
        server.connect() as link,
    ):
        link.sendall(GET)
        assert gone.wait(DEADLINE_S)


def test_a_stop_answers_what_was_accepted_and_refuses_the_rest(cert: Cert, capfd: pytest.CaptureFixture[str]) -> None:
    go_on: Callable[[], object]
    waiting = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal go_on
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
        goes_on, loop = asyncio.Event(), asyncio.get_running_loop()
        go_on = lambda: loop.call_soon_threadsafe(goes_on.set)  # noqa: E731
        waiting.set()
        await goes_on.wait()
        await answering()(scope, receive, send)

    with (
        served(app, Patience(unasked_s=0.2), cert) as server,
        server.connect() as accepted,
        server.connect() as half,
        server.connect(),
    ):
        accepted.sendall(GET)
        half.sendall(UPLOAD)
        assert waiting.wait(DEADLINE_S)
        server.stop.set()
        refused = rest(half)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert "stopping" in json.loads(refused.partition(b"\r\n\r\n")[2])["error"]
        go_on()
        assert rest(accepted).startswith(b"HTTP/1.1 200 ")
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith("not answered in time: 1\n")


def test_a_server_whose_loop_has_ended_does_not_live_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would accept nobody, or wait for everybody, without a word."""

    def look(_connection: Connection, _now_s: float) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Connection, "look", look)
    address, client = Address("127.0.0.1", 0), socket.socket()
    opened, _ = listen(address)
    with client, pytest.raises(RuntimeError, match="a bug"):
        serve(
            answering(),
            opened,
            address,
            threading.Event().wait,
            on_ready=lambda: client.connect(opened.getsockname()),
            logs_requests=False,
            grace_s=1.0,
            patience=Patience(),
        )


def test_an_end_that_the_peer_has_forestalled_by_a_reset_is_no_failure() -> None:
    """The loop has not seen the reset yet, so the system refuses to end what is no longer connected."""

    async def close_after_reset() -> bool:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, accepted)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        _ClosingTransport(transport, lambda: True).close()
        return transport.is_closing()

    assert asyncio.run(close_after_reset())
