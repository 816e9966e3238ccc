"""Which other libraries a shared library needs, read from its file: the dynamic section of ELF (elf(5))."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from devit_contract.artefacts.regular import open_regular

_HEADER = struct.Struct("<16x2HI3QI6H")  # of a file of 64 bits, little endian, as Jetsons and PCs have them
_SEGMENT = struct.Struct("<2I6Q")
_ENTRY = struct.Struct("<qQ")
_MAGIC = b"\x7fELF\x02\x01"
_LOAD, _DYNAMIC = 1, 2
_END, _NEEDED, _STRINGS = 0, 1, 5


def needed_libraries(path: Path) -> tuple[str, ...] | None:
    """List the names that the loader will look for; None where this is no such file, or a damaged one."""
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _needed(content)
    except (OSError, ValueError, OverflowError, struct.error, StopIteration):
        return None


def _needed(content: mmap.mmap) -> tuple[str, ...]:
    if content[: len(_MAGIC)] != _MAGIC:
        raise ValueError("no ELF file of 64 bits")
    _, _, _, _, table, _, _, _, size, count, *_ = _HEADER.unpack_from(content)
    segments = [_SEGMENT.unpack_from(content, table + index * size) for index in range(count)]
    start, length = next((offset, length) for kind, _, offset, _, _, length, *_ in segments if kind == _DYNAMIC)
    entries: list[tuple[int, int]] = []
    for place in range(start, start + length, _ENTRY.size):
        tag, value = _ENTRY.unpack_from(content, place)
        if tag == _END:
            break
        entries.append((tag, value))
    address = next(value for tag, value in entries if tag == _STRINGS)
    strings = next(
        address - begin + offset
        for kind, _, offset, begin, _, length, *_ in segments
        if kind == _LOAD and begin <= address < begin + length
    )
    return tuple(_text(content, strings + value) for tag, value in entries if tag == _NEEDED)


def _text(content: mmap.mmap, start: int) -> str:
    end = content.find(b"\0", start)
    if end < 0:
        raise ValueError("a name without an end")
    return content[start:end].decode("ascii", "replace")
