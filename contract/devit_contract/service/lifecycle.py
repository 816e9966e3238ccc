"""When a service shall stop: on SIGTERM, on Ctrl-C, and, if wanted, when whoever started it has gone."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_STDIN = 0


class StopSignal:
    """Catches what asks this process to stop; call it to learn whether anything has."""

    def __init__(self, *, with_stdin: bool = False) -> None:
        """Take over SIGTERM and SIGINT.

        Args:
            with_stdin: Stop too when standard input is closed, as it is when the process at its other end dies in
                whatever way.
        """
        self._is_asked = False
        self._reader, self._writer = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._catch)
        if with_stdin:
            threading.Thread(target=self._watch_stdin, daemon=True).start()

    def __call__(self) -> bool:
        """Tell whether this process shall stop."""
        return self._is_asked

    def wait(self) -> None:
        """Wait until this process shall stop."""
        os.read(self._reader, 1)

    def _catch(self, _signal: int, _frame: FrameType | None) -> None:
        self._ask()

    def _watch_stdin(self) -> None:
        # Not sys.stdin: a thread that waits inside it makes the interpreter abort when the process ends.
        while os.read(_STDIN, 4096):
            pass
        self._ask()

    def _ask(self) -> None:
        # A pipe, as a lock taken in a signal handler may be one that the interrupted code holds.
        self._is_asked = True
        os.write(self._writer, b".")


class ReloadSignal:
    """Catches SIGHUP; call it to learn, once each time, whether it has come."""

    def __init__(self) -> None:
        """Take over SIGHUP."""
        self._is_asked = False
        signal.signal(signal.SIGHUP, self._catch)

    def __call__(self) -> bool:
        """Tell whether it has come since the last call."""
        if not self._is_asked:
            return False
        self._is_asked = False
        return True

    def _catch(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_asked = True
