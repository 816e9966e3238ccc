"""The newest whole frame of a pipe, however slow its reader is."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress


class Frames:
    """The newest whole frame of a pipe, in three buffers at any rate.

    A thread reads, so that the pipe is empty while the engine runs: else the next frame would be one that waited in it
    all that time, of unknown age.
    """

    def __init__(self, size_bytes: int) -> None:
        """Make the buffers."""
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Descriptor that is readable when a frame has come, or the pipe has ended."""
        self.last_ns = 0
        """When the last whole frame had been read."""
        self._lock = threading.Lock()
        self._filling, self._newest, self._taken = (bytearray(size_bytes) for _ in range(3))
        self._is_fresh = False

    def read(self, pipe: int, is_over: threading.Event) -> None:
        """Read until the pipe ends, and close it; a frame that is not whole by then is dropped."""
        filled = 0
        with open(pipe, "rb", buffering=0) as file:
            while count := file.readinto(memoryview(self._filling)[filled:]):
                if is_over.is_set():  # another thread may read for the next child
                    return
                filled += count
                if filled == len(self._filling):
                    self._turn()
                    filled = 0
        if not is_over.is_set():
            os.eventfd_write(self.wake, 1)

    def take(self) -> tuple[bytearray, int] | None:
        """Lend the newest frame, until the next call, and when it had been read; ``None`` if it was lent before."""
        with self._lock:
            if not self._is_fresh:
                return None
            self._is_fresh = False
            self._newest, self._taken = self._taken, self._newest
            return self._taken, self.last_ns

    def quiet(self) -> None:
        """Make the descriptor unreadable until the next frame."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.wake)

    def close(self) -> None:
        """Close the descriptor; no thread may be reading."""
        os.close(self.wake)

    def _turn(self) -> None:
        with self._lock:
            self._filling, self._newest = self._newest, self._filling
            self._is_fresh, self.last_ns = True, time.monotonic_ns()
        os.eventfd_write(self.wake, 1)
