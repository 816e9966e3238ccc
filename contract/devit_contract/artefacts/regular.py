"""Reads regular files alone: a pipe would be waited for, and a device may have no end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, as :meth:`Path.open` does; an ``OSError`` says that it is a pipe, socket or device."""
    regular_size(path)  # before it is opened: that alone starts some devices
    # Between the two somebody may put a pipe there, which O_NONBLOCK opens without waiting for its other end.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path) -> bytes:
    """Read a file whole, as :meth:`Path.read_bytes` does; it raises what :func:`open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def regular_size(path: Path) -> int:
    """Tell a file's size in bytes without opening it; it raises what :func:`open_regular` does."""
    found = path.stat()
    _check(path, found.st_mode)
    return found.st_size


def _check(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a file", str(path))
