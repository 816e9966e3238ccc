"""How long processes waited for a core: what other programs on the machine cost their answers.

The kernel counts it for each thread (``/proc/PID/task/TID/schedstat``, second number, nanoseconds, Linux 2.6.23 and
later). On a machine of one's own it is next to nothing, so that what a test allows for it is nothing either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Starvation:
    """Adds up the waiting of all threads of some processes, from the first look at each."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        """Begin to watch the processes whose numbers ``pids`` returns each time."""
        self._pids = pids
        self._seen_ns: dict[Path, int] = {}
        self._total_ns = 0
        self.total_s()

    def total_s(self) -> float:
        """Tell how long threads have waited since the beginning, in sum."""
        for pid in list(self._pids()):
            with suppress(OSError):  # killed meanwhile
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waited_ns = int((task / "schedstat").read_text().split()[1])
                    self._total_ns += waited_ns - self._seen_ns.get(task, waited_ns)
                    self._seen_ns[task] = waited_ns
        return self._total_ns / 1e9


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """Assert that a block ends in time, not counting how long threads of this process waited for a core."""
    starvation, start_s = Starvation(lambda: [os.getpid()]), time.monotonic()
    yield
    took_s, starved_s = time.monotonic() - start_s, starvation.total_s()
    assert took_s - starved_s < limit_s, f"took {took_s:.3f} s, waited {starved_s:.3f} s for a core"
