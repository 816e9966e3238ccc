"""Which device serves a submodel where several have it; the others are its spares. No sockets, no clock of its own.

The first in the fleet file that is ready serves. When it ends, hangs or becomes too slow, the next ready one takes its
seat. Once it has been ready again for :data:`STEADY_NS` it has the seat back. That costs no frame, as the spare still
answers those that it holds; but a device that comes and goes would cost some each time it goes. One that lost its seat
as it was suspended or a suspect gets it back only when its agent has connected anew, or no other one is ready.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from devit_contract.service.journal import Priority
from devit_contract.wire.status import DeviceStatus
from devit_contract.wire.words import DeviceState
from devit_fusion.devices.links import Link
from devit_fusion.events import Events

STEADY_NS = 10_000_000_000
"""How long a device must have been ready before it has its seat back, and how long a slow spare rests."""
_HEARD_NS = 3_000_000_000
"""An agent whose last message is no older is alive: it answers a ping each second."""
HANG_NS, _MUCH_LESS = 300_000_000, 8
"""For how long a device that hangs has had a frame, and of how many of its frames that is the time at least."""
_READY, _LEAVING, _ABSENT = DeviceState.READY, DeviceState.LEAVING, DeviceState.ABSENT
_SLOW = DeviceState.STALLED, DeviceState.SUSPENDED
_AT_FAULT = DeviceState.SUSPENDED, DeviceState.SUSPECT


class Change(NamedTuple):
    """A seat that has been given to another device."""

    before: Link
    now: Link
    is_lost: bool
    """Whether the one before will not answer in time what it holds."""
    held: Collection[int]
    """Frames that other devices of the submodel are still to answer."""

    def takes(self, frame_id: int, deadline_ns: int, now_ns: int, *, is_file: bool) -> bool:
        """Tell whether to send the new device a frame: the one before won't answer it, and there is room and time."""
        heir = self.now
        if not self.is_lost or heir.state is not _READY or not heir.has_credit or frame_id in self.held:
            return False
        return now_ns + heir.pace.needed_ns(is_encoded=is_file) < deadline_ns


class Seats:
    """The seats of one node: one for each submodel that a device of the fleet has."""

    def __init__(self, links: Mapping[str, Link], events: Events) -> None:
        """Seat the first of each submodel; ``links`` is by name, in the order of the fleet file, and may change."""
        self._everyone = links
        self._events = events
        self.serving: dict[int, Link] = {}
        """Who serves, by submodel in rising order. One whose device was removed is absent from then on."""
        self.has_spares = False
        """Whether several devices have one submodel."""
        self._contested: dict[int, list[Link]] = {}  # by submodel: several devices, or another one than serves
        self._ready_since_ns: dict[str, tuple[int, int]] = {}  # by name: number of its link, and the time
        self._at_fault: dict[str, int] = {}  # by name: number of the link for whose faults it lost its seat
        self.refill()

    def refill(self) -> None:
        """Take in that other devices belong to the fleet now; who serves changes at the next :meth:`settle`."""
        candidates: dict[int, list[Link]] = {}
        for link in self._everyone.values():
            candidates.setdefault(link.index, []).append(link)
            if not link.links:  # another one may have had its name
                self._ready_since_ns.pop(link.name, None)
                self._at_fault.pop(link.name, None)
        serving = {index: links[0] for index, links in candidates.items()} | self.serving
        self.serving.clear()
        self.serving.update(sorted(serving.items()))
        self.has_spares = any(len(links) > 1 for links in candidates.values())
        self._contested = {
            index: links for index, links in candidates.items() if len(links) > 1 or serving[index] is not links[0]
        }

    def settle(self, now_ns: int) -> list[Change]:
        """Give each seat to whom it belongs now; to be called when a link's state has changed, and now and then."""
        changes = []
        for index, links in self._contested.items():
            before = self.serving[index]
            self._watch(links, before, now_ns)
            best = self._best(links, before, now_ns)
            if best is before:
                continue
            if before.state in _AT_FAULT:
                self._at_fault[before.name] = before.links
            self.serving[index] = best
            state, hangs = before.state, _hangs(before, now_ns)
            is_lost = hangs or state is _ABSENT or state in _SLOW
            changes.append(Change(before, best, is_lost, self.held_by_others(before)))
            if best.state is _READY:
                is_well = state is _READY and not hangs
                what = "hangs" if state is _READY else f"is {state}"
                why = f"it stands above {before.name}" if is_well else f"{before.name} {what}"
                priority = Priority.INFO if is_well else Priority.WARNING
                self._events.note(best.name, f"serves submodel {index} now: {why}", priority)
        return changes

    def status(self, now_ns: int, unused: Counter[tuple[int, str]]) -> list[DeviceStatus]:
        """Describe all devices by submodel, the one that serves first; ``unused`` counts features by device index."""

        def describe(link: Link) -> DeviceStatus:
            if self.is_spare(link):
                return link.status(now_ns, {"late": 0}, is_spare=True)
            return link.status(now_ns, {why: unused[link.index, why] for why in ("late", "duplicate")})

        return [
            describe(link)
            for link in sorted(self._everyone.values(), key=lambda link: (link.index, self.is_spare(link)))
        ]

    def held_by_others(self, link: Link) -> Collection[int]:
        """Give the frames that other devices of the same submodel are still to answer."""
        others = [other for other in self._contested.get(link.index, ()) if other is not link]
        return {frame_id for other in others if other.state in (_READY, _LEAVING) for frame_id in other.in_flight}

    def is_spare(self, link: Link) -> bool:
        """Tell whether another device serves in the place of this one."""
        return self.serving[link.index] is not link

    def _watch(self, links: list[Link], serving: Link, now_ns: int) -> None:
        """Note since when each is ready; let slow spares rest, as no frame goes to them that could show more."""
        for link in links:
            number, since_ns = self._ready_since_ns.get(link.name, (-1, now_ns))
            if number != link.links:
                number, since_ns = link.links, now_ns
                link.is_excluded &= link is serving  # the features of a new link are judged anew
            elif link.state is not _READY or _hangs(link, now_ns):
                is_heard = link.last_seen_ns is not None and now_ns - link.last_seen_ns < _HEARD_NS
                if link is serving or link.state not in (*_SLOW, _READY) or not is_heard:
                    since_ns = now_ns
                elif now_ns - since_ns >= STEADY_NS:
                    link.rest()
                    since_ns = now_ns
            self._ready_since_ns[link.name] = number, since_ns

    def _best(self, links: list[Link], serving: Link, now_ns: int) -> Link:
        ranks = {link.name: self._rank(link, now_ns) for link in links}
        best = min(links, key=lambda link: ranks[link.name])  # of equals the first
        if serving not in links:
            return best
        if ranks[serving.name][0]:
            return best if ranks[best.name] < ranks[serving.name] else serving
        is_steady = now_ns - self._ready_since_ns[best.name][1] >= STEADY_NS or not serving.frames
        return best if is_steady else serving

    def _rank(self, link: Link, now_ns: int) -> tuple[int, bool]:
        state = link.state
        usable = 2 if state is _ABSENT else 1 if state is not _READY or _hangs(link, now_ns) else 0
        return usable, self._at_fault.get(link.name) == link.links


def _hangs(link: Link, now_ns: int) -> bool:
    """Tell whether a device has had a frame for long, though its frames take much less: a deadline may be far."""
    oldest = next(iter(link.in_flight.values()), None)
    return oldest is not None and now_ns - oldest.sent_ns > HANG_NS > _MUCH_LESS * link.pace.own_ns > 0
