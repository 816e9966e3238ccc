"""A folder that remembers what a program has changed on the machine, for one program at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devit_contract.errors import EnergyError, InputError


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """Hold the folder's lock, which the kernel frees however its holder ends.

    Args:
        folder: It exists.
        busy: What to say where another program holds it.

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
