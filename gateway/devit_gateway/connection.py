"""One HTTP connection: how long its peer may be silent, slow or without end, and how it is closed."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_MAX_HEAD_BYTES = 16 * 1024
"""Of a request's first line and headers."""
_MAX_DISCARDED_BYTES = 4 * 1024 * 1024
"""Of a peer that goes on sending after its answer: it has time to read it, and costs the others little."""
_MAX_HEADERS = 100
_MAX_PIECES = 100
_LEAST_PIECE_BYTES = 64
"""A body in more pieces has to have so many bytes in each: a chunk of one byte costs as much as one of 64 KiB."""


@dataclass(frozen=True)
class Patience:
    """How long peers may take, and how many there may be."""

    first_s: float = 10.0
    """From the connection to the end of its first request's head."""
    idle_s: float = 30.0
    """From an answer to the end of the next request's head."""
    unread_s: float = 10.0
    """For an answer that the peer does not take."""
    unasked_s: float = 2.0
    """For what a peer sends after an answer that ended the connection."""
    handshake_s: float = 5.0
    handshakes: int = 128
    connections: int = 288
    """One more takes the place of one that rests, or whose request has not come whole."""


class _Phase(enum.IntEnum):
    """What a connection does; where there are too many, the lowest gives way first, and the highest never."""

    FIRST = 1
    """No request has come."""
    RESTING = 2
    """Its request was answered; the next may come."""
    UNASKED = 3
    """The peer goes on sending after an answer that ended the connection."""
    SENDING = 4
    """The peer does not take what was sent."""
    BODY = 5
    """The body of a request is coming; the application bounds how long."""
    WAITING = 6
    """A whole request waits for its answer."""


class Connection(H11Protocol):
    """A connection of the server whose peer has deadlines."""

    def __init__(self, config: Config, server_state: ServerState, patience: Patience) -> None:
        """Keep the deadlines; the rest is the server's."""
        super().__init__(config, server_state, {})
        self.conn = _Parser(h11.SERVER, _MAX_HEAD_BYTES)
        self._patience = patience
        self._limits_s = {
            _Phase.FIRST: patience.first_s,
            _Phase.RESTING: patience.idle_s,
            _Phase.SENDING: patience.unread_s,
            _Phase.UNASKED: patience.unasked_s,
        }
        self._seen: tuple[_Phase, object] = (_Phase.FIRST, None)
        self._since_s = time.monotonic()
        self._discarded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, that of another one if there are too many."""
        super().connection_made(_ClosingTransport(transport, self._is_peer_sending))
        if len(self.connections) > self._patience.connections:
            others = (each for each in self.connections if isinstance(each, Connection) and each is not self)
            first = min(others, key=lambda each: (each._phase(), each._since_s), default=self)
            if first.is_body_coming:
                first.refuse("there are too many connections: try again later")
            elif not first.is_under_way:
                first.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes, or discard them after the answer that ended the connection."""
        if not self.transport.is_closing():
            super().data_received(data)
            return
        self._discarded_bytes += len(data)
        if self._discarded_bytes > _MAX_DISCARDED_BYTES:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that its client has left."""
        super().connection_lost(exc)
        self.transport.abort()  # Python 3.10 does not end the side of TLS that it has been handed out

    def look(self, now_s: float) -> None:
        """End the connection if its peer has taken too long; call it again and again."""
        seen = phase, _ = self._phase(), self.cycle
        if seen != self._seen:
            self._seen, self._since_s = seen, now_s
        if now_s - self._since_s <= self._limits_s.get(phase, float("inf")):
            return
        if phase in (_Phase.FIRST, _Phase.RESTING):
            self.transport.close()
        else:
            self.transport.abort()

    @property
    def is_under_way(self) -> bool:
        """Whether a request has not been answered."""
        return self._phase() in (_Phase.BODY, _Phase.WAITING)

    @property
    def is_idle(self) -> bool:
        """Whether its peer has all answers; with TLS it may still owe its farewell."""
        return not self.is_under_way and not self.flow.write_paused

    @property
    def is_body_coming(self) -> bool:
        """Whether a request waits for the rest of its body."""
        return self._phase() is _Phase.BODY

    def refuse(self, text: str) -> None:
        """Answer the request under way with 503 in the application's place."""
        self._forget_request()
        if self.cycle.response_started:
            self.transport.abort()
            return
        body = msgspec.json.encode({"error": text})
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=503, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the middle of a body too."""
        if self.cycle is not None:
            self._forget_request()
        super().send_400_response(msg)

    def shutdown(self) -> None:
        """Close it once it has no request under way."""
        if not self.transport.is_closing():
            super().shutdown()

    def _phase(self) -> _Phase:
        if isinstance(self.transport, _ClosingTransport) and self.transport.is_lingering:
            return _Phase.UNASKED
        if self.transport.is_closing() or self.flow.write_paused:
            return _Phase.SENDING
        if self.cycle is None:
            return _Phase.FIRST  # type: ignore[unreachable] # the base sets it at the first request
        if self.cycle.response_complete:
            return _Phase.RESTING
        return _Phase.BODY if self.cycle.more_body else _Phase.WAITING

    def _forget_request(self) -> None:
        """Let the application's answer go nowhere, and tell it that its client has left."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def _is_peer_sending(self) -> bool:
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)


class _Parser(h11.Connection):
    """A parser that refuses what costs much time for few bytes: a body in tiny pieces, many headers."""

    _pieces = 0
    _body_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE and self.trailing_data[0].partition(b"\r\n\r\n")[0].count(b"\n") > _MAX_HEADERS:
            raise h11.RemoteProtocolError("too many headers")
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._body_bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._body_bytes += len(event.data)
            if self._pieces > _MAX_PIECES + self._body_bytes // _LEAST_PIECE_BYTES:
                raise h11.RemoteProtocolError("a body in tiny pieces")
        return event


class _ClosingTransport(asyncio.Transport):
    """A transport that stays open for a peer in the middle of its request: a reset would destroy the answer."""

    def __init__(self, inner: asyncio.Transport, is_peer_sending: Callable[[], bool]) -> None:
        super().__init__()
        self._inner = inner
        self._is_peer_sending = is_peer_sending
        self.is_lingering = False

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._is_peer_sending():
            self._inner.close()
            return
        self.is_lingering = True
        self._inner.resume_reading()
        if self._inner.can_write_eof():  # TLS cannot, there the peer has read Connection: close
            try:
                self._inner.write_eof()
            except OSError:  # the peer has reset it meanwhile
                self._inner.abort()

    def is_closing(self) -> bool:
        return self.is_lingering or self._inner.is_closing()

    def abort(self) -> None:
        self._inner.abort()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._inner.write(data)

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as in the base
        return self._inner.get_extra_info(name, default)


class CloseUnread:
    """Ends the connection of a request that is answered before its body was read: the rest would come all the same."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap ``app``."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; add ``Connection: close`` to its answer if it comes too early."""
        headers = dict(scope["headers"])
        is_unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

        async def noted_receive() -> Message:
            nonlocal is_unread
            message = await receive()
            is_unread &= bool(message.get("more_body", False))
            return message

        async def closing_send(message: Message) -> None:
            if is_unread and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, noted_receive, closing_send)
