"""The device's side of pairing: proves the code to a node, asks it for files."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from devit_contract.errors import LostLinkError, PeerProtocolError, RefusedError, WireError
from devit_contract.printable import printable_line
from devit_contract.wire.pairing import (
    HANDSHAKE_S,
    HEADER,
    MAX_REPLY_BYTES,
    SILENCE_S,
    Added,
    Ask,
    Channel,
    Content,
    Declined,
    Finish,
    Handshake,
    Introduction,
    Kind,
    M,
    Message,
    Refusal,
    Welcome,
    decode,
    encode,
    read_header,
    read_refusal,
)

_TRY_AGAIN = "run devit join again"


class Guest:
    """A device that the node has taken in."""

    def __init__(self, line: _Line, channel: Channel, introduction: Introduction) -> None:
        """Prove the code by the first sealed message, and see that the node knows it too.

        Raises:
            RefusedError: The code is wrong, the node declines this device, or somebody is between.
            LostLinkError: The node ends the connection, or is silent.
            PeerProtocolError: It says what it should not.
        """
        self._line, self._channel = line, channel
        self._send(introduction)
        self.welcome = self._receive(Welcome)
        """What the node makes of this device."""

    def fetch(
        self, ask: Ask, most_bytes: int, progress: Callable[[int, int], None] = lambda _done, _size: None
    ) -> Iterator[bytes] | None:
        """Ask for a file; ``None`` if the node does not offer it, else its bytes, to be taken before anything else.

        ``progress`` is called with how many bytes have come, of how many. It raises what the constructor does.

        Raises:
            PeerProtocolError: It is larger than ``most_bytes``.
        """
        self._send(ask)
        size_bytes = self._receive(Content).size_bytes
        if size_bytes is None:
            return None
        if size_bytes > most_bytes:
            raise PeerProtocolError(
                f"{self._line.node}: {ask.name}: expected {most_bytes} bytes at most, found {size_bytes}: "
                "run devit pair with another bundle"
            )
        return self._chunks(size_bytes, progress)

    def finish(self) -> None:
        """Have the node add this device to its fleet."""
        self._send(Finish())
        self._receive(Added)

    def _chunks(self, size_bytes: int, progress: Callable[[int, int], None]) -> Iterator[bytes]:
        left = size_bytes
        while left:
            chunk = self._channel.open(self._line.receive(Kind.SEALED))
            if not 0 < len(chunk) <= left:
                raise WireError("size", f"expected {left} bytes of a file at most, found {len(chunk)}")
            left -= len(chunk)
            progress(size_bytes - left, size_bytes)
            yield chunk

    def _send(self, message: Message) -> None:
        self._line.send(self._channel.seal(encode(message)))

    def _receive(self, expected: type[M]) -> M:
        message = decode(self._channel.open(self._line.receive(Kind.SEALED)))
        if isinstance(message, Declined):
            raise RefusedError(f"{self._line.node}: declined: {printable_line(message.reason)}")
        if not isinstance(message, expected):
            raise WireError("order", f"expected {expected.__name__}, found {type(message).__name__}")
        return message


@contextmanager
def joined(host: str, port: int, code: str, introduction: Introduction) -> Iterator[Guest]:
    """Connect to a node that pairs, prove the code, and be its guest while the block runs.

    Raises:
        LostLinkError: Nobody listens there, the connection ends, or the node is silent.
        RefusedError: The node refuses the code or this device, or somebody between changes messages.
        PeerProtocolError: The other side is no node that pairs, or of another version.
    """
    node = f"{host}:{port}"
    with _named_loss(node), socket.create_connection((host, port), HANDSHAKE_S) as link:
        line = _Line(link, node)
        try:
            handshake = Handshake(code, "joiner")
            line.send(handshake.hello)
            channel = handshake.finish(line.receive(Kind.HELLO))
            yield Guest(line, channel, introduction)
        except WireError as err:
            if err.reason == "code":
                raise RefusedError(
                    f"{node}: does not know the code, or somebody between changes what is said: compare the address "
                    f"and the code with those of devit pair, and {_TRY_AGAIN}"
                ) from err
            raise PeerProtocolError(f"{node}: {err}: is devit pair of the same version running there?") from err


class _Line:
    """Frames on a connection; each has to come whole within the time of a silence."""

    def __init__(self, link: socket.socket, node: str) -> None:
        self._link, self.node = link, node

    def send(self, data: bytes) -> None:
        with _named_loss(self.node):
            self._link.settimeout(SILENCE_S)
            self._link.sendall(data)

    def receive(self, kind: Kind) -> bytes:
        end_s = time.monotonic() + SILENCE_S
        header = self._read(HEADER.size, end_s)
        found, size_bytes = read_header(header, kind, Kind.REFUSAL, most_bytes=MAX_REPLY_BYTES)
        body = self._read(size_bytes, end_s)
        if found is Kind.REFUSAL:
            raise RefusedError(f"{self.node}: {_words(*read_refusal(body))}")
        return body

    def _read(self, size_bytes: int, end_s: float) -> bytes:
        body = bytearray()
        with _named_loss(self.node):
            while len(body) < size_bytes:
                self._link.settimeout(max(0.001, end_s - time.monotonic()))
                part = self._link.recv(size_bytes - len(body))
                if not part:
                    raise EOFError("the other side has ended it")
                body += part
        return bytes(body)


@contextmanager
def _named_loss(node: str) -> Iterator[None]:
    """Name what ends a link here, where it cannot be taken for the failure of a file."""
    try:
        yield
    except TimeoutError as err:
        raise LostLinkError(f"{node}: silent for too long: {_TRY_AGAIN} while devit pair runs there") from err
    except (OSError, EOFError) as err:
        reason = getattr(err, "strerror", None) or str(err)
        raise LostLinkError(f"{node}: no link ({reason}): {_TRY_AGAIN} while devit pair runs there") from err


def _words(reason: Refusal, pause_s: int) -> str:
    """Say in one line why a node refuses; the node's own words are not shown, as anybody may have sent them."""
    if reason is Refusal.WRONG_CODE:
        return "the code is wrong: compare it with what devit pair shows there"
    if reason is Refusal.PAUSED:
        return f"too many wrong codes came: try again in {pause_s} s"
    if reason is Refusal.BUSY:
        return "another device is joining: run devit pair there again for this one"
    return "devit pair there is of another version: install the same one on both"
