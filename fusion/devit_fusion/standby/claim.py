"""When a node asks for leases, and until when it is active. No sockets, no clock of its own.

A node that is not active looks at who holds the leases. Once enough are free that it could be active, it waits its
place in the fleet file times 150 ms, so that the first one comes first; then it claims them: it grants its own lease to
itself and asks all others. One that is active stays so while it holds them. One that did not become active in the time
of a lease, or is not any more, gives all back and looks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from devit_contract.wire.lease import LOOK_NS, Granter

ALWAYS_NS = 1 << 62
"""Until then a node without others is active."""
_ROUND_NS = 100_000_000
"""Between two rounds of questions."""
_TURN_NS = 150_000_000
"""How much later each node claims than the one before it in the file."""
_FRESH_NS = 250_000_000
"""How long it counts what somebody said of a lease."""
_OWN = ""


class Claim:
    """The claim of one node to be the active one."""

    def __init__(
        self, run_id: int, devices: Sequence[str], nodes: Sequence[str], *, place: int, lease_ns: int, started_ns: int
    ) -> None:
        """Start as one that is not active, unless there are no other ``nodes``; ``place`` is its own in the file."""
        self.run_id = run_id
        self.own = Granter(started_ns)
        """Its own lease."""
        self.holds_until_ns = ALWAYS_NS if not nodes else 0
        """Until when it is active, if nothing more comes."""
        self.next_ns: int | None = 0 if nodes else None
        """When the next :meth:`round` is due; ``None``: never."""
        self.number = 0
        """Of the last round; replies carry it."""
        self._lists, self._nodes = [tuple(devices)], tuple(nodes)
        self._lease_ns = lease_ns
        self._held_ns = lease_ns * 7 // 8  # clocks may differ by a tenth
        self._wait_ns = place * _TURN_NS
        self._is_claiming = False
        self._give_up_ns = 0
        self._free_ns: int | None = None
        self._first_number = 0  # of the present claim
        self._asked_ns: dict[int, int] = {}  # by number, of the last rounds
        self._held: dict[str, int] = {}  # by who granted it: until when it counts
        self._seen: dict[str, tuple[int, bool]] = {}  # when somebody's lease was looked at, and whether it was free

    def know(self, devices: Sequence[str]) -> None:
        """Let these devices decide too.

        Another node may have this list already, an earlier one, or both: what it holds is enough in one of them at
        least, and shares a device with what is enough in all of them.
        """
        if tuple(devices) not in self._lists:
            self._lists.append(tuple(devices))

    def round(self, now_ns: int) -> int:
        """Begin a round: tell for how long to ask all others for their leases, or :data:`LOOK_NS`."""
        self.number += 1
        self._asked_ns[self.number] = now_ns
        while (oldest := next(iter(self._asked_ns))) and self._asked_ns[oldest] < now_ns - self._lease_ns:
            del self._asked_ns[oldest]
        if self._is_claiming and now_ns >= self.holds_until_ns and (self.holds_until_ns or now_ns >= self._give_up_ns):
            self.give_back(now_ns)
        elif not self._is_claiming and self._is_its_turn(now_ns):
            self._is_claiming, self._first_number, self._give_up_ns = True, self.number, now_ns + self._lease_ns
        if self._is_claiming:
            if self.own.ask(self.run_id, self.number, self._lease_ns, now_ns) == self.run_id:
                self._held[_OWN] = now_ns + self._held_ns
            else:
                self.give_back(now_ns)
        self.next_ns = now_ns + _ROUND_NS
        return self.asks_ns

    def voted(self, name: str, number: int, holder: int, now_ns: int) -> None:
        """Take a device's or node's reply to the round of that number."""
        asked_ns = self._asked_ns.get(number)
        if asked_ns is None:
            return
        self._seen[name] = now_ns, holder in (0, self.run_id)
        if self._is_claiming and holder == self.run_id and number >= self._first_number:
            self._held[name] = max(self._held.get(name, 0), asked_ns + self._held_ns)
            self.holds_until_ns = self._ends_ns(now_ns) or self.holds_until_ns

    def give_back(self, now_ns: int) -> None:
        """Hold no lease any more: the next round gives all back."""
        self._is_claiming, self._free_ns, self.holds_until_ns = False, None, 0
        self._held.clear()
        self.own.ask(self.run_id, self.number, LOOK_NS, now_ns)

    @property
    def asks_ns(self) -> int:
        """For how long it asks for leases now, or :data:`LOOK_NS`."""
        return self._lease_ns if self._is_claiming else LOOK_NS

    def granted(self, now_ns: int) -> tuple[str, ...]:
        """Name the others whose leases it holds."""
        return tuple(name for name, end_ns in self._held.items() if end_ns > now_ns and name != _OWN)

    def _is_its_turn(self, now_ns: int) -> bool:
        free = [name for name, (at_ns, is_free) in self._seen.items() if is_free and now_ns - at_ns < _FRESH_NS]
        if not self.own.is_free(self._lease_ns, now_ns) or not self._are_enough(free):
            self._free_ns = None
            return False
        if self._free_ns is None:
            self._free_ns = now_ns
        return now_ns - self._free_ns >= self._wait_ns

    def _ends_ns(self, now_ns: int) -> int:
        """Tell until when it holds enough leases; 0 if it does not now."""
        own_ns = self._held.get(_OWN, 0)
        for end_ns in sorted(set(self._held.values()), reverse=True):
            if end_ns <= now_ns:
                break
            if self._are_enough([name for name, each_ns in self._held.items() if each_ns >= end_ns]):
                return min(end_ns, own_ns) if own_ns > now_ns else 0
        return 0

    def _are_enough(self, names: Iterable[str]) -> bool:
        found = set(names)
        return all(_are_most(found, devices) for devices in self._lists) or found.issuperset(self._nodes)


def _are_most(found: set[str], devices: Sequence[str]) -> bool:
    count, half = sum(name in found for name in devices), len(devices) / 2
    return count > half or (count == half and devices[0] in found)
