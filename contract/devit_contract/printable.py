"""Text that others chose, made fit to show and to store: file names, and what a peer or a library says.

Linux lets a file name hold any bytes; Python decodes what is not UTF-8 to lone surrogates, which no UTF-8 file,
terminal or message takes. A peer's text may hold a terminal's control codes.
"""

from __future__ import annotations

from typing import Any

_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF
"""What undecodable bytes of a file name become, https://peps.python.org/pep-0383."""


def printable(text: str) -> str:
    r"""Escape each character that cannot be shown, line feeds excepted.

    >>> print(printable("M\udcfcller.png"), printable("a\x1b[2Jb"), printable("Müller"))
    M\xfcller.png a\x1b[2Jb Müller
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_line(text: str) -> str:
    """Put a text on one line, and escape each character that cannot be shown."""
    return printable(" ".join(text.split()))


def storable(value: Any) -> Any:  # noqa: ANN401 - what msgspec.to_builtins gives
    """Escape lone surrogates in all texts of plain lists and tables, which UTF-8 cannot hold."""
    if isinstance(value, str):
        return value if value.isascii() else "".join(_escaped(each) if _is_lone(each) else each for each in value)
    if isinstance(value, dict):
        return {storable(key): storable(each) for key, each in value.items()}
    return [storable(each) for each in value] if isinstance(value, (list, tuple)) else value


def _is_lone(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _escaped(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if _FIRST_BYTE <= code <= _LAST_BYTE else ascii(character)[1:-1]
