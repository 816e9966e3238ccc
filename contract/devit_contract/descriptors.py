"""File descriptors in reserve: a service opens its own files, however many connections there are.

libzmq's own thread takes each connection that comes, as long as the process may open one more descriptor. So the limit
that holds for it stays below the system's.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

_WANTED = 8192
_RESERVE = 64


def keep_reserve() -> None:
    """Let this process open some thousand descriptors if the system allows it, and keep the last ones in reserve."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, _WANTED), hard - _RESERVE), hard))


@contextmanager
def in_reserve() -> Iterator[None]:
    """Let a block open what it needs from the reserve; two threads at once may leave the limit raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
