"""How long a cell's processes waited for a core: what other programs on the machine cost its answers.

The kernel counts it for each thread (``/proc/PID/task/TID/schedstat``, second number, nanoseconds, Linux 2.6.23 and
later). On a machine of one's own it is next to nothing, so that what a test allows for it is nothing either.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from devit_pipeline.local_cell import LocalCell


class Starvation:
    """Adds up the waiting of all threads of a cell, from the first look at each."""

    def __init__(self, cell: LocalCell) -> None:
        """Begin to watch."""
        self._cell = cell
        self._seen_ns: dict[Path, int] = {}
        self._total_ns = 0
        self.total_s()

    def total_s(self) -> float:
        """Tell how long threads have waited since the beginning, in sum."""
        for pid in list(self._cell.pids.values()):
            with suppress(OSError):  # killed meanwhile
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waited_ns = int((task / "schedstat").read_text().split()[1])
                    self._total_ns += waited_ns - self._seen_ns.get(task, waited_ns)
                    self._seen_ns[task] = waited_ns
        return self._total_ns / 1e9
