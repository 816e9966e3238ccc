"""What ``devit pair`` and ``devit join`` say to each other, over one TCP connection of their own.

::

    joiner to node   hello      version, its message of SPAKE2
    node to joiner   hello      the same of the other side, or a refusal
    joiner to node   sealed     Introduction: opens only where both have the same code
    node to joiner   sealed     Welcome, or Declined
    joiner to node   sealed     Ask, as often as it likes: Content and that many bytes come
    joiner to node   sealed     Finish: the node adds the device to its fleet, and says Added

Who does not know the code learns nothing of it by listening: a message of SPAKE2 is a random point for every code
(Abdalla and Pointcheval 2005, RFC 9382), so there is nothing against which to try codes. Who takes part may try one
code for each connection, and the node counts those. ChaCha20-Poly1305 seals all that follows, under a key for each
direction and a number for each message: changed, repeated, swapped and missing messages do not open. Names and CURVE
keys travel sealed, so they are as authentic as the code is secret; version and sides are part of what SPAKE2 hashes.
"""

from __future__ import annotations

import enum
import re
import secrets
import struct
from typing import Annotated, Literal, TypeVar

import msgspec

from devit_contract.errors import InputError, WireError

VERSION = 1
DEFAULT_PORT = 7713
CODE_LENGTH = 6
CODE_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: five bits a character, and none that is taken for another one. Six of them are 30 bits: who
tries as often as ``devit pair`` lets it, 15 times in ten minutes, finds the code in one of 70 million pairings."""
MAX_ASK_BYTES = 4096
"""Largest message that the node accepts."""
CHUNK_BYTES = 1 << 18
"""Most of a file in one message."""
MAX_REPLY_BYTES = CHUNK_BYTES + 64
"""Largest message that the joiner accepts."""
HANDSHAKE_S = 10.0
"""For both hellos and the first sealed message."""
SILENCE_S = 30.0
"""Longest wait for the next message, or for the other side to take one."""

HEADER = struct.Struct("!BI")
"""Kind and size of what follows."""
_HELLO = struct.Struct("!4sB33s")
_REFUSAL = struct.Struct("!BH")
_MAGIC = b"DVPR"
_NONCE_BYTES, _KEY_BYTES, _TAG_BYTES = 12, 32, 16
_LABEL = b"devit pairing, version %d, %s"

Side = Literal["joiner", "node"]
Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Kind(enum.IntEnum):
    """What a frame holds."""

    HELLO = 0
    REFUSAL = 1
    SEALED = 2


class Refusal(enum.IntEnum):
    """Why a node hears a joiner no further; sent in the open, since there is no common key yet."""

    WRONG_CODE = 1
    PAUSED = 2
    BUSY = 3
    VERSION = 4


class Introduction(msgspec.Struct, frozen=True, tag=True):
    """Who wants to join."""

    name: Text
    public_key: Text
    software: Text = ""


class NodeAddress(msgspec.Struct, frozen=True):
    """Where devices find a node."""

    endpoint: Text
    """As in ``fleet.toml``; its host may be a wildcard."""
    public_key: Text


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """What a device will be."""

    submodel: Annotated[int, msgspec.Meta(ge=0)]
    nodes: Annotated[tuple[NodeAddress, ...], msgspec.Meta(min_length=1, max_length=16)]
    """In the order in which the device should try them; one at least."""
    allowed_signers: Annotated[str, msgspec.Meta(max_length=1 << 16)] = ""
    """Content of a file of OpenSSH's allowed signers; empty where the node has none to give."""


class Declined(msgspec.Struct, frozen=True, tag=True):
    """The code was right, but this device cannot be taken."""

    reason: Text


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A request for a file."""

    what: Literal["bundle", "record", "engine"]
    """A file of the bundle by its name; the record, or the engine itself, of a key of the engine store."""
    name: Text


class Content(msgspec.Struct, frozen=True, tag=True):
    """The file follows, in messages of :data:`CHUNK_BYTES` at most."""

    size_bytes: Annotated[int, msgspec.Meta(ge=0)] | None
    """``None`` where the node does not offer it."""


class Finish(msgspec.Struct, frozen=True, tag=True):
    """The device has what it needs."""


class Added(msgspec.Struct, frozen=True, tag=True):
    """The device is in the node's fleet."""


Message = Introduction | Welcome | Declined | Ask | Content | Finish | Added
M = TypeVar("M", bound=Message)
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def new_code() -> str:
    """Draw a code, as people read it: ``K7Q-4MX``."""
    drawn = "".join(secrets.choice(CODE_ALPHABET) for _ in range(CODE_LENGTH))
    return f"{drawn[:3]}-{drawn[3:]}"


def read_code(typed: str) -> str:
    """Read a code as it was typed: case and hyphens do not count, and O is 0, I and L are 1.

    >>> read_code("k7q-4mx"), read_code("o1L 4mx")
    ('K7Q-4MX', '011-4MX')

    Raises:
        InputError: It cannot be a code; the message does not hold it.
    """
    plain = re.sub(r"[\s-]", "", typed).upper().translate(str.maketrans("OIL", "011"))
    if len(plain) != CODE_LENGTH or not set(plain) <= set(CODE_ALPHABET):
        raise InputError(
            f"code: expected {CODE_LENGTH} letters and digits, as devit pair shows them on the node: type it again"
        )
    return f"{plain[:3]}-{plain[3:]}"


class Channel:
    """What both sides have once they have the same code: seals what goes out and opens what comes in, in order."""

    def __init__(self, secret: bytes, side: Side) -> None:
        """Derive a key for each direction from the secret of SPAKE2."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        derived = HKDF(SHA256(), 2 * _KEY_BYTES, salt=None, info=_LABEL % (VERSION, b"keys")).derive(secret)
        of_joiner, of_node = ChaCha20Poly1305(derived[:_KEY_BYTES]), ChaCha20Poly1305(derived[_KEY_BYTES:])
        self._out, self._in = (of_joiner, of_node) if side == "joiner" else (of_node, of_joiner)
        self._sent = self._received = 0

    def seal(self, content: bytes) -> bytes:
        """Make the frame of a message."""
        nonce = self._sent.to_bytes(_NONCE_BYTES, "big")
        self._sent += 1
        return frame(Kind.SEALED, self._out.encrypt(nonce, content, None))

    def open(self, sealed: bytes) -> bytes:
        """Read the body of a frame; a :class:`WireError` says that it is not the other side's next message."""
        from cryptography.exceptions import InvalidTag

        nonce = self._received.to_bytes(_NONCE_BYTES, "big")
        self._received += 1
        try:
            return self._in.decrypt(nonce, sealed, None)
        except InvalidTag as err:
            raise WireError("code", "a message does not open: another code, or somebody has changed it") from err


class Handshake:
    """One side of SPAKE2; a new one for each connection."""

    def __init__(self, code: str, side: Side) -> None:
        """Draw this side's secret number; ``code`` is as :func:`read_code` gives it."""
        from spake2 import SPAKE2_A, SPAKE2_B

        kind = SPAKE2_A if side == "joiner" else SPAKE2_B
        ids = (_LABEL % (VERSION, each) for each in (b"joiner", b"node"))
        self._side: Side = side
        self._exchange = kind(code.encode("ascii"), *ids)
        self.hello = frame(Kind.HELLO, _HELLO.pack(_MAGIC, VERSION, self._exchange.start()))

    def finish(self, hello: bytes) -> Channel:
        """Take the body of the other side's hello.

        Raises:
            WireError: It is none, of another version, or no point of the curve's group.
        """
        from spake2 import SPAKEError
        from spake2.ed25519_basic import NotOnCurve

        if len(hello) != _HELLO.size:
            raise WireError("size", f"expected a hello of {_HELLO.size} bytes, found {len(hello)}")
        magic, version, message = _HELLO.unpack(hello)
        if magic != _MAGIC:
            raise WireError("magic", "expected a hello of devit join or devit pair, found something else")
        if version != VERSION:
            raise WireError("version", f"expected version {VERSION} of pairing, found {version}")
        try:
            return Channel(self._exchange.finish(message), self._side)
        except (SPAKEError, NotOnCurve, ValueError) as err:
            raise WireError("body", f"expected a message of SPAKE2, found another one ({err})") from err


def frame(kind: Kind, body: bytes) -> bytes:
    """Put a header before the body of a frame."""
    return HEADER.pack(kind, len(body)) + body


def refusal(reason: Refusal, pause_s: float = 0.0) -> bytes:
    """Make the frame of a refusal; ``pause_s`` says when to come again."""
    return frame(Kind.REFUSAL, _REFUSAL.pack(reason, min(0xFFFF, max(0, round(pause_s)))))


def read_refusal(body: bytes) -> tuple[Refusal, int]:
    """Read the body of a refusal: why, and after how many seconds to come again; a :class:`WireError` if it is none."""
    try:
        reason, pause_s = _REFUSAL.unpack(body)
        return Refusal(reason), int(pause_s)
    except (struct.error, ValueError) as err:
        raise WireError("body", f"expected a refusal, found something else ({err})") from err


def read_header(header: bytes, *expected: Kind, most_bytes: int) -> tuple[Kind, int]:
    """Read a frame's kind and the size of its body, before there is memory for it.

    Raises:
        WireError: It is another kind, or the body is too large.
    """
    number, size_bytes = HEADER.unpack(header)
    if number not in expected:
        raise WireError("kind", f"expected a frame of kind {expected[0].name.lower()}, found number {number}")
    if size_bytes > most_bytes + _TAG_BYTES:
        raise WireError("size", f"expected {most_bytes} bytes at most, found {size_bytes}")
    return Kind(number), size_bytes


def encode(message: Message) -> bytes:
    """Encode a message, to be sealed."""
    return msgspec.msgpack.encode(message)


def decode(content: bytes) -> Message:
    """Decode what was opened; a :class:`WireError` says that it is no message."""
    try:
        return _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise WireError("body", f"expected a message of pairing, found another one ({err})") from err
