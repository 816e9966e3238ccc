"""A clock to wait for beside sockets."""

from __future__ import annotations

import ctypes
import os


class Alarm:
    """A file that becomes readable at a time to the microsecond, where a poll counts in milliseconds: timerfd(2)."""

    def __init__(self) -> None:
        """Make it."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(1, os.O_NONBLOCK)  # CLOCK_MONOTONIC
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, after_s: float) -> None:
        """Become readable after so long; an earlier setting is forgotten."""
        seconds, fraction = divmod(max(after_s, 1e-9), 1.0)
        setting = (ctypes.c_long * 4)(0, 0, int(seconds), int(fraction * 1e9))
        if self._libc.timerfd_settime(self.fd, 0, setting, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
