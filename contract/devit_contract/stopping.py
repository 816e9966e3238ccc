"""When a service shall stop: on SIGTERM, on Ctrl-C, and, if wanted, when whoever started it has gone."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType


class StopSignal:
    """Catches what asks this process to stop; call it to learn whether anything has."""

    def __init__(self, *, with_stdin: bool = False) -> None:
        """Take over SIGTERM and SIGINT.

        Args:
            with_stdin: Stop too when standard input is closed, as it is when the process at its other end dies in
                whatever way.
        """
        self._is_asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._catch)
        if with_stdin:
            threading.Thread(target=self._watch_stdin, daemon=True).start()

    def __call__(self) -> bool:
        """Tell whether this process shall stop."""
        return self._is_asked

    def _catch(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_asked = True

    def _watch_stdin(self) -> None:
        while sys.stdin.buffer.read(4096):
            pass
        self._is_asked = True
