"""The text of a log file or pipe, line by line as it comes: gzip is unpacked, UTF-8 and UTF-16 are told apart."""

from __future__ import annotations

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from devit_contract.errors import InputError

STANDARD_INPUT = "-"
MAX_LINE_CHARS = 1 << 16
"""Longer than any line of tegrastats; a file without line ends is read in pieces."""
_GZIP = b"\x1f\x8b"


class LogText:
    """The lines of a log, with their line ends, in one pass."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        """Keep the file, which the caller closes; nothing is read yet."""
        self.damage = ""
        """Why there are no more lines, where a packed file is damaged or cut off."""
        self._name = name
        self._file = file

    def __iter__(self) -> Iterator[str]:
        """Read to the end, or to where a packed file is damaged.

        Raises:
            InputError: It cannot be read, or is damaged at its very beginning.
        """
        line = ""
        try:
            for line in _lines(self._file):
                yield line
        except (EOFError, gzip.BadGzipFile, zlib.error) as err:
            self.damage = f"{self._name}: the gzip file is damaged or cut off ({err}), copy it again"
            if not line:
                raise InputError(self.damage) from err
        except OSError as err:
            raise _unreadable(self._name, err) from err


@contextmanager
def open_lines(path: str) -> Iterator[LogText]:
    """Open a log, ``-`` for standard input.

    Raises:
        InputError: It cannot be opened.
    """
    if path == STANDARD_INPUT:
        yield LogText("standard input", sys.stdin.buffer)
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; what the block itself raises is not ours to name
    except OSError as err:
        raise _unreadable(path, err) from err
    with file:
        yield LogText(path, file)


def _lines(file: BinaryIO) -> Iterator[str]:
    """Decode what has come without waiting for more: a running tegrastats may stand before a pipe."""
    source: io.BufferedReader | gzip.GzipFile
    source = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file))
    if source.peek(len(_GZIP)).startswith(_GZIP):
        source = gzip.GzipFile(fileobj=source)
    decoder = codecs.getincrementaldecoder(_encoding(source.peek(2)))("replace")
    rest, is_more = "", True
    while is_more:
        chunk = source.read1(MAX_LINE_CHARS)
        is_more = bool(chunk)
        *whole, rest = (rest + decoder.decode(chunk, final=not is_more)).split("\n")
        yield from (f"{line}\n" for line in whole)
        while len(rest) >= MAX_LINE_CHARS:
            yield rest[:MAX_LINE_CHARS]
            rest = rest[MAX_LINE_CHARS:]
    if rest:
        yield rest


def _encoding(head: bytes) -> str:
    """Tell by the first two bytes: Windows writes UTF-16, with a byte order mark and, by some tools, without."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = [byte == 0 for byte in head[:2]]
    if zeros == [False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False] else "utf-8-sig"


def _unreadable(name: str, err: OSError) -> InputError:
    return InputError(f"{name}: expected a log, cannot be read ({err.strerror}): correct the path")
