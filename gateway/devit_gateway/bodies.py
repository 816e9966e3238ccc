"""Bodies of HTTP requests and responses: read within bounds, compressed and decompressed."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from devit_contract.errors import InputError

READ_TIMEOUT_S = 30.0
"""How long a client may take to send one body."""
SILENCE_S = 5.0
"""How long it may send nothing of it."""
MAX_HELD_BYTES = 24 * 1024 * 1024
"""Of all large bodies in memory at the same time."""
SMALL_BYTES = 160 * 1024
"""A body that is no larger, one image of 224 x 224 as bytes, never waits for the large ones."""
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""For zlib: the format of gzip, and the zlib format that HTTP calls deflate."""
_PIECE_BYTES = 256 * 1024


class Room:
    """What one body holds of the memory for all."""

    def __init__(self, reader: BodyReader, held_bytes: int) -> None:
        """Take it."""
        self._reader = reader
        self._held_bytes = held_bytes
        reader.held_bytes += held_bytes

    def shrink(self, held_bytes: int) -> None:
        """Hold no more than that from now on."""
        freed_bytes = max(0, self._held_bytes - held_bytes)
        self._held_bytes -= freed_bytes
        self._reader.held_bytes -= freed_bytes
        self._reader.freed.set()


class BodyReader:
    """Reads bodies within a common bound of memory. For one event loop."""

    def __init__(
        self,
        max_held_bytes: int = MAX_HELD_BYTES,
        read_timeout_s: float = READ_TIMEOUT_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        """Keep the bounds; a single body is read even if it exceeds ``max_held_bytes``."""
        self._max_held_bytes = max_held_bytes
        self._read_timeout_s = read_timeout_s
        self._silence_s = silence_s
        self._line = asyncio.Lock()
        self.held_bytes = 0
        self.freed = asyncio.Event()

    @asynccontextmanager
    async def room(self, request: Request, max_bytes: int) -> AsyncIterator[Room]:
        """Keep room for a body, and wait for it in line if the body is large; a small one never waits.

        Raises:
            HTTPException: 413, the request says that its body is longer than ``max_bytes``; 503, there is no room.
        """
        announced = request.headers.get("content-length", "")
        size = int(announced) if announced.isascii() and announced.isdigit() else max_bytes
        if size > max_bytes:
            raise _too_large(max_bytes, f"{size}")
        # A compressed body is there twice, and may grow to the bound.
        wanted_bytes = size if encoding_of(request) == "identity" else size + max_bytes
        room = Room(self, 0 if wanted_bytes <= SMALL_BYTES else await self._find(wanted_bytes))
        try:
            yield room
        finally:
            room.shrink(0)

    async def read(self, request: Request, max_bytes: int) -> bytearray:
        """Read a body as it comes, compressed or not.

        Raises:
            InputError: It does not come.
            HTTPException: 413, it is longer than ``max_bytes``; 408, it comes too slowly.
        """
        content = bytearray()
        end_s = anyio.current_time() + self._read_timeout_s
        try:
            with anyio.fail_after(self._silence_s) as waiting:
                async for chunk in request.stream():
                    waiting.deadline = min(end_s, anyio.current_time() + self._silence_s)
                    content += chunk
                    if len(content) > max_bytes:
                        raise _too_large(max_bytes, "more")
        except TimeoutError as err:
            limits = f"within {self._read_timeout_s:g} s and without a pause of {self._silence_s:g} s"
            raise HTTPException(408, f"body: expected it {limits}, found {len(content)} bytes") from err
        except ClientDisconnect as err:
            raise InputError(f"body: expected all of it, found {len(content)} bytes and a closed connection") from err
        return content

    async def _find(self, wanted_bytes: int) -> int:
        try:
            with anyio.fail_after(self._read_timeout_s):
                async with self._line:
                    while self.held_bytes and self.held_bytes + wanted_bytes > self._max_held_bytes:
                        self.freed.clear()
                        await self.freed.wait()
        except TimeoutError as err:
            text = f"the bodies of pending requests hold {self.held_bytes} bytes already: try again"
            raise HTTPException(503, text, headers={"Retry-After": "1"}) from err
        return wanted_bytes


def encoding_of(request: Request) -> str:
    """Tell how a request's body is compressed; ``identity`` if it is not."""
    return request.headers.get("content-encoding", "identity").strip().lower() or "identity"


def decompress(content: bytes | bytearray, encoding: str, max_bytes: int) -> bytes | bytearray:
    """Decompress ``gzip`` or ``deflate``, or leave ``identity``; hardly more than ``max_bytes`` are ever made.

    Raises:
        InputError: The content is something else, is cut off, or has something after it.
        HTTPException: 413, it is longer than ``max_bytes``; 415, the encoding is another.
    """
    if encoding == "identity":
        return content
    if encoding not in _WINDOW_BITS:
        raise HTTPException(415, "Content-Encoding: expected gzip, deflate or none, found another")
    decoder = zlib.decompressobj(_WINDOW_BITS[encoding])
    pieces = (bytes(content[start : start + _PIECE_BYTES]) for start in range(0, len(content), _PIECE_BYTES))
    plain = bytearray()
    while not decoder.eof:
        piece = decoder.unconsumed_tail or next(pieces, b"")
        try:
            part = decoder.decompress(piece, _PIECE_BYTES)
        except zlib.error as err:
            raise InputError(f"body: expected {encoding}, found: {err}") from err
        plain += part
        if len(plain) > max_bytes:
            raise _too_large(max_bytes, f"{encoding} of more")
        if not piece and not part:
            raise InputError(f"body: expected one whole stream of {encoding}, found it is cut off")
    if decoder.unused_data or next(pieces, b""):
        raise InputError(f"body: expected one whole stream of {encoding}, found more after it")
    return plain


def compress(content: bytes, accept_encoding: str) -> tuple[bytes, str | None]:
    """Compress for a client by its ``Accept-Encoding``; without a ``Content-Encoding``, the content is as it was."""
    for part in accept_encoding.lower().split(","):
        name, _, quality = part.partition(";")
        if quality.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            continue
        if name.strip() == "gzip":
            return gzip.compress(content, compresslevel=1, mtime=0), "gzip"
        if name.strip() == "deflate":
            return zlib.compress(content, 1), "deflate"
    return content, None


def _too_large(max_bytes: int, found: str) -> HTTPException:
    return HTTPException(413, f"body: expected at most {max_bytes} bytes, found {found}: send fewer images at once")
