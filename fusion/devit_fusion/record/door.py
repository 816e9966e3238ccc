"""Where a recorder comes in: a socket in the file system, for the node's own user alone."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from devit_contract.errors import AddressError, InputError


class Door:
    """The socket of one node."""

    def __init__(self, path: str) -> None:
        """Listen at a path; nowhere if that is empty.

        Raises:
            AddressError: Another node listens there.
            InputError: Nobody can.
        """
        self._path = Path(path)
        self._socket = _listen(self._path) if path else None

    @property
    def descriptor(self) -> int | None:
        """What becomes readable when a recorder comes."""
        return None if self._socket is None else self._socket.fileno()

    def let_in(self) -> socket.socket | None:
        """Take a recorder's connection; ``None`` if it has gone again."""
        if self._socket is None:
            return None
        try:
            came, _ = self._socket.accept()
        except OSError:
            return None
        came.setblocking(False)
        return came

    def close(self) -> None:
        """Listen no longer."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as other:
                if other.connect_ex(os.fspath(path)) == 0:
                    raise AddressError(
                        f"{path}: another node listens there: stop it, or correct [record] in fleet.toml"
                    )
            path.unlink()  # of a node that was killed
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        listener.listen(1)
    except OSError as err:
        listener.close()
        text = f"{path}: cannot listen there ({err.strerror or err}): correct socket of [record] in fleet.toml"
        raise InputError(text) from err
    except AddressError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
