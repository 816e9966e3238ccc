"""Health of a service as a file, for containers: their engine can only run a command beside the service.

If ``DEVIT_HEALTH_FILE`` names a file, the loop that does the work writes its state there and keeps touching it; a loop
that hangs does not. ``python -m devit_contract.service.health`` checks it: exit code 0, or 1 and what is wrong.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from devit_contract.artefacts.files import named_failure, write_bytes
from devit_contract.errors import InputError
from devit_contract.printable import printable_line

VARIABLE = "DEVIT_HEALTH_FILE"
MAX_AGE_S = 10.0
_READY = "ready: "
_ALIVE_S = 1.0


class HealthFile:
    """The service's side; does nothing if no file is named. A file that cannot be written shows by its age."""

    def __init__(self) -> None:
        """Find the file's name in the environment."""
        name = os.environ.get(VARIABLE, "")
        self._path = Path(name) if name else None
        self._next_alive_s = 0.0

    def ready(self, status: str) -> None:
        """Write that the service is ready."""
        self.waiting(f"{_READY}{status}")

    def waiting(self, status: str) -> None:
        """Write what the service waits for."""
        if self._path is not None:
            with suppress(InputError):
                write_bytes(self._path, f"{printable_line(status)}\n".encode())

    def alive(self) -> None:
        """Touch the file, at most once a second; call it from the loop that does the work."""
        if self._path is not None and (now_s := time.monotonic()) >= self._next_alive_s:
            self._next_alive_s = now_s + _ALIVE_S
            with suppress(OSError):
                os.utime(self._path)


def check_health(path: Path, *, max_age_s: float = MAX_AGE_S) -> str:
    """Read the last state of the service.

    Raises:
        InputError: It is not ready, its loop has not turned for ``max_age_s``, or it has written nothing yet.
    """
    with named_failure(f"{path}: the service has written no state", "see its log"):
        text = path.read_text("utf-8", "replace").strip()
        # The clock may be set either way: the next turn of the loop puts it right.
        age_s = abs(time.time() - path.stat().st_mtime)
    if age_s > max_age_s:
        raise InputError(
            f"the service's loop last turned {age_s:.0f} s ago, more than {max_age_s:g} s ({text}): restart the service"
        )
    if not text.startswith(_READY):
        raise InputError(f"the service is not ready: {text}: see its log")
    return text


def main() -> NoReturn:
    """Check the file that the environment names."""
    try:
        name = os.environ.get(VARIABLE, "")
        if not name:
            raise InputError(f"{VARIABLE} is not set: set it as for the service")
        sys.stdout.write(f"{check_health(Path(name))}\n")
    except InputError as err:
        sys.stderr.write(f"error: {err}\n")
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
