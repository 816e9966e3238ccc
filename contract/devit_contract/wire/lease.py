"""Leases: which of several nodes is active. The side that grants them, on every device and on every node.

The rule. Every device and every node grants its lease to at most one node at a time, for a short time. A node is active
while it holds its own lease and those of more than half of the devices in ``fleet.toml`` (of exactly half, if the first
device of the file is among them), or its own and those of all other nodes. A node without others is always active.

Why two nodes are never active at once. Two such sets of devices share one, and a node that holds the leases of all
other nodes holds that of any other one which would be active. So somebody would have granted to both at once, which
nobody does. As to time: the holder counts a lease from when it asked, and a part of it; who granted it counts all of it
from when it did. So it ends at the holder first, whatever a message took, if no clock is a tenth faster than another.
Who has just started may have forgotten a lease, and grants none for that long.
"""

from __future__ import annotations

LOOK_NS = 0
"""Asked for: no lease, and an end to the one that is held."""

LONGEST_MS = 300_000
"""No lease is granted for longer, whatever is asked for."""


class Granter:
    """The lease of one device or node; no socket, no clock of its own."""

    def __init__(self, started_ns: int) -> None:
        """Start with none granted; the process started at ``started_ns`` or before."""
        self._started_ns = started_ns
        self._holder = 0
        self._end_ns = started_ns
        self._number = 0

    def ask(self, run_id: int, number: int, lease_ns: int, now_ns: int) -> int:
        """Grant the lease to the node of that run, if no other one holds it; tell the holder, 0 for none.

        With :data:`LOOK_NS` it is not granted, and if that node holds it, given back. A node's questions have rising
        numbers: one that comes after a later one, from a connection that has ended, gives nothing back.
        """
        holder = self.holder(now_ns)
        if holder not in (0, run_id) or (holder and number < self._number):
            return holder
        if lease_ns == LOOK_NS:
            self._holder = 0
        elif holder or self.is_free(lease_ns, now_ns):
            self._holder, self._number = run_id, number
            self._end_ns = max(self._end_ns, now_ns + lease_ns)
        return self._holder

    def is_free(self, lease_ns: int, now_ns: int) -> bool:
        """Tell whether it would be granted for so long."""
        return now_ns >= self._started_ns + lease_ns and not self.holder(now_ns)

    def holder(self, now_ns: int) -> int:
        """Tell which run of a node holds the lease; 0 for none."""
        if now_ns >= self._end_ns:
            self._holder = 0
        return self._holder
