"""A peer that speaks ZMTP 3.1 by hand, NULL or CURVE: libzmq's own would never send what a hostile one does.

https://rfc.zeromq.org/spec/37 (ZMTP), https://rfc.zeromq.org/spec/26 (CurveZMQ).
"""

from __future__ import annotations

import secrets
import select
import socket as tcp
import struct
from types import TracebackType

from zmq.utils import z85

_MORE, _LONG, _COMMAND = 1, 2, 4
_PADDING = bytes(31)
DEADLINE_S = 20.0


class ZmtpPeer:
    """A DEALER's side of one TCP connection; a context manager, for one thread."""

    def __init__(
        self, endpoint: str, name: bytes, *, keys: tuple[bytes, bytes] | None = None, node_key: bytes = b""
    ) -> None:
        """Connect and shake hands.

        Args:
            endpoint: ``tcp://HOST:PORT``.
            name: Routing id.
            keys: Own public and secret key (Z85) for CURVE; ``None`` for NULL.
            node_key: The node's public key (Z85), with ``keys``.
        """
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
        self.socket = tcp.create_connection((host, int(port)), DEADLINE_S)
        self.socket.setsockopt(tcp.IPPROTO_TCP, tcp.TCP_NODELAY, 1)
        self._unread = b""
        self._curve: _Curve | None = None
        metadata = _property("Socket-Type", b"DEALER") + _property("Identity", name)
        try:
            self.socket.sendall(greeting(b"CURVE" if keys is not None else b"NULL"))
            self._take(64)
            if keys is None:
                self.socket.sendall(frame(b"\x05READY" + metadata, _COMMAND))
                self._read_frame()
                return
            curve = _Curve(keys, node_key)
            self.socket.sendall(frame(curve.hello(), _COMMAND))
            self.socket.sendall(frame(curve.initiate(self._read_frame()[1], metadata), _COMMAND))
            curve.check_ready(self._read_frame()[1])
            self._curve = curve
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ZmtpPeer:
        """Use the connection in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def encode(self, body: bytes, *, more: bool = False) -> bytes:
        """Make the bytes of one frame of a message; with CURVE, to be sent in this order."""
        if self._curve is None:
            return frame(body, _MORE if more else 0)
        return frame(self._curve.seal(bytes([_MORE if more else 0]) + body), 0)

    def send(self, body: bytes, *, more: bool = False) -> None:
        """Send one frame of a message.

        Raises:
            OSError: The node has shut the connection.
        """
        self.socket.sendall(self.encode(body, more=more))

    def receive(self) -> bytes:
        """Wait for one frame of a message; heartbeats are answered meanwhile.

        Raises:
            OSError: The node has shut the connection, or nothing came in time.
        """
        while True:
            flags, body = self._read_frame()
            if self._curve is not None and not flags & _COMMAND:
                inner = self._curve.open(body)
                flags, body = (_COMMAND if inner[0] & 2 else 0), inner[1:]
            if not flags & _COMMAND:
                return body
            if body.startswith(b"\x04PING"):
                self._send_command(b"\x04PONG" + body[7:])

    def is_shut(self, timeout_s: float) -> bool:
        """Tell whether the node shuts the connection within a time."""
        self.socket.settimeout(timeout_s)
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def flood(self, part_bytes: int, limit_bytes: int) -> int:
        """Send parts of one message that never ends, until the node shuts the connection or the limit is reached.

        Heartbeats of the node are left unread; whatever comes from here keeps the connection alive.

        Returns:
            Bytes of the parts that went into the connection.
        """
        part, sent_bytes = bytes(part_bytes), 0
        while sent_bytes < limit_bytes:
            try:
                self.send(part, more=True)
            except OSError:
                break
            sent_bytes += part_bytes
        return sent_bytes

    def _send_command(self, body: bytes) -> None:
        sealed = frame(body, _COMMAND) if self._curve is None else frame(self._curve.seal(b"\x02" + body), 0)
        self.socket.sendall(sealed)

    def _read_frame(self) -> tuple[int, bytes]:
        flags = self._take(1)[0]
        size = struct.unpack(">Q", self._take(8))[0] if flags & _LONG else self._take(1)[0]
        return flags, self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._unread) < size:
            if not select.select([self.socket], [], [], DEADLINE_S)[0]:
                raise TimeoutError(f"expected {size} bytes within {DEADLINE_S} s, found {len(self._unread)}")
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionResetError("the node has shut the connection")
            self._unread += data
        taken, self._unread = self._unread[:size], self._unread[size:]
        return taken


class _Curve:
    """The client's half of CurveZMQ."""

    def __init__(self, keys: tuple[bytes, bytes], node_key: bytes) -> None:
        from nacl import bindings  # only needed with keys

        self._nacl = bindings
        self._public, self._secret = z85.decode(keys[0]), z85.decode(keys[1])
        self._node_key = z85.decode(node_key)
        self._short_public, self._short_secret = bindings.crypto_box_keypair()
        self._number = 0
        self._shared = b""

    def hello(self) -> bytes:
        nonce = self._nonce()
        box = self._nacl.crypto_box(bytes(64), b"CurveZMQHELLO---" + nonce, self._node_key, self._short_secret)
        return b"\x05HELLO\x01\x00" + bytes(72) + self._short_public + nonce + box

    def initiate(self, welcome: bytes, metadata: bytes) -> bytes:
        assert welcome.startswith(b"\x07WELCOME"), welcome
        opened = self._nacl.crypto_box_open(
            welcome[24:], b"WELCOME-" + welcome[8:24], self._node_key, self._short_secret
        )
        node_short_key, cookie = opened[:32], opened[32:]
        self._shared = self._nacl.crypto_box_beforenm(node_short_key, self._short_secret)
        vouch_nonce = secrets.token_bytes(16)
        vouch = self._nacl.crypto_box(
            self._short_public + self._node_key, b"VOUCH---" + vouch_nonce, node_short_key, self._secret
        )
        nonce = self._nonce()
        box = self._nacl.crypto_box_afternm(
            self._public + vouch_nonce + vouch + metadata, b"CurveZMQINITIATE" + nonce, self._shared
        )
        return b"\x08INITIATE" + cookie + nonce + box

    def check_ready(self, ready: bytes) -> None:
        assert ready.startswith(b"\x05READY"), ready
        self._nacl.crypto_box_open_afternm(ready[14:], b"CurveZMQREADY---" + ready[6:14], self._shared)

    def seal(self, content: bytes) -> bytes:
        nonce = self._nonce()
        return (
            b"\x07MESSAGE" + nonce + self._nacl.crypto_box_afternm(content, b"CurveZMQMESSAGEC" + nonce, self._shared)
        )

    def open(self, body: bytes) -> bytes:
        assert body.startswith(b"\x07MESSAGE"), body
        nonce = b"CurveZMQMESSAGES" + body[8:16]
        opened: bytes = self._nacl.crypto_box_open_afternm(body[16:], nonce, self._shared)
        return opened

    def _nonce(self) -> bytes:
        self._number += 1
        return struct.pack(">Q", self._number)


def greeting(mechanism: bytes) -> bytes:
    """Make the 64 bytes that open a connection."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + b"\0" + _PADDING


def frame(body: bytes, flags: int) -> bytes:
    """Make one ZMTP frame."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | _LONG]) + struct.pack(">Q", len(body)) + body


def _property(name: str, value: bytes) -> bytes:
    return bytes([len(name)]) + name.encode() + struct.pack(">I", len(value)) + value
