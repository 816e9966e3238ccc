"""Which files of a folder this process opens, as the interpreter itself reports it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_watched: dict[Path, list[str]] = {}


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _watched or not isinstance(arguments[0], str | os.PathLike):
        return
    path = Path(os.fsdecode(arguments[0]))
    for folder, names in _watched.items():
        if path.is_relative_to(folder):
            names.append(str(path.relative_to(folder)))


sys.addaudithook(_hook)  # for good: the interpreter lets no hook go


@contextmanager
def opened_files(folder: Path) -> Iterator[list[str]]:
    """List the names of files below a folder in the order in which the block opens them."""
    names = _watched[folder] = []
    try:
        yield names
    finally:
        del _watched[folder]
