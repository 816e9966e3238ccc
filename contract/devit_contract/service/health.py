"""Health of a service as a file, for containers: their engine can only run a command beside the service.

Where ``DEVIT_HEALTH_FILE`` names a file, the loop that does the work says in it what it is at, and keeps it young; a
loop that hangs does not. ``python -m devit_contract.service.health`` looks at it: exit code 0, or 1 and what is wrong.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from devit_contract.artefacts.files import write_bytes
from devit_contract.errors import InputError

VARIABLE = "DEVIT_HEALTH_FILE"
MAX_AGE_S = 10.0
_READY = "ready: "
_ALIVE_S = 1.0


class HealthFile:
    """The service's side; does nothing where no file is named. What cannot be written shows as a file that ages."""

    def __init__(self) -> None:
        """Find the file's name in the environment."""
        name = os.environ.get(VARIABLE, "")
        self._path = Path(name) if name else None
        self._next_alive_s = 0.0

    def ready(self, status: str) -> None:
        """Say that the service serves now."""
        self._say(f"{_READY}{status}")

    def waiting(self, status: str) -> None:
        """Say what keeps the service from serving."""
        self._say(status)

    def alive(self) -> None:
        """Make the file young again, at most once a second; to be called from the loop that does the work."""
        if self._path is not None and (now_s := time.monotonic()) >= self._next_alive_s:
            self._next_alive_s = now_s + _ALIVE_S
            with suppress(OSError):
                os.utime(self._path)

    def _say(self, text: str) -> None:
        if self._path is not None:
            with suppress(InputError):
                write_bytes(self._path, f"{text}\n".encode())


def check_health(path: Path, *, max_age_s: float = MAX_AGE_S) -> str:
    """Read what the service said last.

    Raises:
        InputError: It does not serve, its loop has not turned for ``max_age_s``, or it has said nothing yet.
    """
    try:
        text = path.read_text("utf-8", "replace").strip()
        # Whichever way somebody sets the clock: the next turn of the loop puts it right.
        age_s = abs(time.time() - path.stat().st_mtime)
    except OSError as err:
        raise InputError(
            f"{path}: expected what the service says, found nothing ({err.strerror}): see its log"
        ) from err
    if age_s > max_age_s:
        raise InputError(
            f"expected a turn of the service's loop in the last {max_age_s:g} s, found the last one {age_s:.0f} s ago "
            f"({text}): start it anew"
        )
    if not text.startswith(_READY):
        raise InputError(f"expected a service that is ready, found one that says: {text}: see its log")
    return text


def main() -> NoReturn:
    """Look at the file that the environment names."""
    try:
        name = os.environ.get(VARIABLE, "")
        if not name:
            raise InputError(f"expected a file name in {VARIABLE}, found none: set it as for the service")
        sys.stdout.write(f"{check_health(Path(name))}\n")
    except InputError as err:
        sys.stderr.write(f"error: {err}\n")
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
