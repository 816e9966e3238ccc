"""Bodies of HTTP requests and responses: read within bounds, compressed and decompressed."""

from __future__ import annotations

import gzip
import zlib

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from devit_contract.errors import InputError

READ_TIMEOUT_S = 30.0
"""How long a client may take to send one body."""
MAX_HELD_BYTES = 256 * 1024 * 1024
"""Of all bodies in memory at the same time."""
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""For zlib: the format of gzip, and the zlib format that HTTP calls deflate."""


class BodyReader:
    """Reads bodies within a common bound of memory. For one event loop."""

    def __init__(self, max_held_bytes: int = MAX_HELD_BYTES, read_timeout_s: float = READ_TIMEOUT_S) -> None:
        """Keep the bounds; a single body is read even if it exceeds ``max_held_bytes``."""
        self._max_held_bytes = max_held_bytes
        self._read_timeout_s = read_timeout_s
        self._held_bytes = 0

    def reserve(self, request: Request, max_bytes: int) -> int:
        """Reserve room for a body before reading it; tell how many bytes, to :meth:`release` them.

        Raises:
            HTTPException: 413, the request says that its body is longer than ``max_bytes``; 503, there is no room now.
        """
        announced = request.headers.get("content-length", "")
        size = int(announced) if announced.isascii() and announced.isdigit() else max_bytes
        if size > max_bytes:
            raise _too_large(max_bytes, f"{size}")
        # A compressed body is there twice, and may grow to the bound.
        room = size if _encoding(request) == "identity" else size + max_bytes
        if self._held_bytes and self._held_bytes + room > self._max_held_bytes:
            text = f"the bodies of pending requests hold {self._held_bytes} bytes already: try again"
            raise HTTPException(503, text, headers={"Retry-After": "1"})
        self._held_bytes += room
        return room

    def release(self, room: int) -> None:
        """Release room."""
        self._held_bytes -= room

    async def read(self, request: Request, max_bytes: int) -> bytes:
        """Read a body and decompress it.

        Raises:
            InputError: It is not compressed as it says, or does not come.
            HTTPException: 413, it is longer than ``max_bytes``, in either form; 408, it comes too slowly; 415, its
                compression is not known.
        """
        chunks: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(self._read_timeout_s):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > max_bytes:
                        raise _too_large(max_bytes, "more")
                    chunks.append(chunk)
        except TimeoutError as err:
            text = f"body: expected it within {self._read_timeout_s:g} s, found {size} bytes"
            raise HTTPException(408, text) from err
        except ClientDisconnect as err:
            raise InputError(f"body: expected all of it, found {size} bytes and a closed connection") from err
        content = b"".join(chunks)
        encoding = _encoding(request)
        return content if encoding == "identity" else decompress(content, encoding, max_bytes)


def decompress(content: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress ``gzip`` or ``deflate``; never more than ``max_bytes`` and one byte are made.

    Raises:
        InputError: The content is something else, is cut off, or has something after it.
        HTTPException: 413, it is longer than ``max_bytes``; 415, the encoding is another.
    """
    if encoding not in _WINDOW_BITS:
        raise HTTPException(415, "Content-Encoding: expected gzip, deflate or none, found another")
    decoder = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = decoder.decompress(content, max_bytes + 1)
    except zlib.error as err:
        raise InputError(f"body: expected {encoding}, found: {err}") from err
    if len(plain) > max_bytes:
        raise _too_large(max_bytes, f"{encoding} of more")
    if not decoder.eof or decoder.unused_data:
        found = "more after it" if decoder.eof else "it is cut off"
        raise InputError(f"body: expected one whole stream of {encoding}, found {found}")
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


def _encoding(request: Request) -> str:
    return request.headers.get("content-encoding", "identity").strip().lower() or "identity"


def _too_large(max_bytes: int, found: str) -> HTTPException:
    return HTTPException(413, f"body: expected at most {max_bytes} bytes, found {found}: send fewer images at once")
