"""Text that others chose, made fit to show and to store: file names, and what a peer or a library says.

Linux lets a file name hold any bytes; Python decodes what is not UTF-8 to lone surrogates, which no UTF-8 file,
terminal or message takes. A peer's text may hold a terminal's control codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF
"""What undecodable bytes of a file name become, https://peps.python.org/pep-0383."""


def printable(text: str) -> str:
    r"""Escape each character that cannot be shown, line feeds too.

    >>> print(printable("M\udcfcller.png"), printable("a\x1b[2Jb"), printable("Müller"))
    M\xfcller.png a\x1b[2Jb Müller
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_line(text: str) -> str:
    """Put a text on one line, and escape each character that cannot be shown."""
    return printable(" ".join(text.split()))


def storable(text: str) -> str:
    """Escape what UTF-8 cannot hold, and nothing else."""
    return text if text.isascii() else "".join(_escaped(each) if _is_lone(each) else each for each in text)


def fit_to_store(value: Any, **options: Any) -> Any:  # noqa: ANN401 - what msgspec encodes, and its options
    """Turn a struct into plain lists and tables whose texts UTF-8 can hold."""
    return in_all_texts(storable, msgspec.to_builtins(value, **options))


def in_all_texts(change: Callable[[str], str], value: Any) -> Any:  # noqa: ANN401 - what msgspec.to_builtins gives
    """Change all texts of plain lists and tables, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {in_all_texts(change, key): in_all_texts(change, each) for key, each in value.items()}
    return [in_all_texts(change, each) for each in value] if isinstance(value, (list, tuple)) else value


def _is_lone(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if _FIRST_BYTE <= code <= _LAST_BYTE else ascii(character)[1:-1]
