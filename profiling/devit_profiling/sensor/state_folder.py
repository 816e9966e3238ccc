"""A folder that keeps what a program must restore on the machine, for one program at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devit_contract.errors import EnergyError, InputError


@contextmanager
def exclusive_lock(folder: Path, busy: str) -> Iterator[None]:
    """Lock the folder; the kernel frees the lock however its holder ends.

    Args:
        folder: An existing folder.
        busy: Error message where another program holds it.

    Raises:
        InputError: The folder cannot be opened.
        EnergyError: Another program holds it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise InputError(f"{folder}: cannot be opened ({err.strerror}): run as root, or choose --state DIR") from err
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise EnergyError(f"{folder}: {busy}") from err
        yield
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a state file once its state is restored.

    Raises:
        InputError: It cannot be removed.
    """
    try:
        path.unlink()
    except OSError as err:
        raise InputError(f"{path}: cannot be removed ({err.strerror}): remove it by hand") from err
