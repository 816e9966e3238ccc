"""Waits for the end of a process that may be no child of the test's own."""

from __future__ import annotations

import os
import select

_DEADLINE_S = 30.0


def assert_gone(pid: int) -> None:
    """Wait for a process's end, under the deadline."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([descriptor], [], [], _DEADLINE_S)
    finally:
        os.close(descriptor)
    assert ended, f"process {pid} lives"
