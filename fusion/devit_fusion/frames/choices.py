"""Which waiting request is sent to devices next, and how long it may wait for those without room. No sockets."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.head import mask_of
from devit_contract.wire.words import DeviceState
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.frames.courses import Courses
from devit_fusion.frames.stages import Stages
from devit_fusion.frames.turns import Turns
from devit_fusion.ports.clients import Request

_READY = DeviceState.READY
"""As a plain name: the enum class costs a look-up in its metaclass at each use."""
_JUDGED_SHARE = 20
"""How long a request may wait is judged again as often in a deadline: a device's pace changes no faster."""


class Choice(NamedTuple):
    """A request that is to be dispatched now."""

    request: Request
    first: Sequence[Link]
    """Whom it asks first."""
    claimed: int
    """Devices that earlier requests wait for, or that keep a place for others, as a mask."""
    is_late: bool = False
    """Whether it waited too long for room; else all whom it asks first have some."""


class Choices:
    """The choices of one node."""

    def __init__(
        self,
        fleet: Fleet,
        links: Mapping[int, Link],
        all_devices: int,
        turns: Turns,
        stages: Stages,
        courses: Courses,
        clock: Clock,
    ) -> None:
        """Choose among the requests of ``turns``; ``links`` is by device index, ``all_devices`` their mask."""
        self._links = links.values()  # as they are at any time
        self._all_devices = all_devices
        self._turns, self._stages, self._courses = turns, stages, courses
        self._judged_ns = round(fleet.serving.deadline_ms * 1e6) // _JUDGED_SHARE
        self.grace_end_ns = clock.now_ns + round(fleet.serving.startup_grace_ms * 1e6)
        """Until when requests wait for devices that have not connected to this node yet."""
        self._patient_end_ns, self._clock = 0, clock
        self._is_in_grace = False
        """Whether a request waits for a device that has not connected to this node yet."""
        self._grace_over_ns = 0
        """When that last ended: deadlines of requests that waited until then count from there."""
        self._blocked: tuple[Request, Link] | None = None
        """The only request that is next, and a device that has to have room for it."""
        self.wait_end_ns: int | None = None
        """When the first of the requests that wait for room has waited too long."""

    def take_over(self, end_ns: int) -> None:
        """Be patient with the requests that come until then, as another node had them before.

        They wait for devices that do not work for this node yet, as after its start, and for room as long as it takes.
        """
        self.grace_end_ns, self._patient_end_ns = max(self.grace_end_ns, end_ns), end_ns

    def rest(self) -> None:
        """Forget why to wait: nothing waits any more."""
        self.wait_end_ns = self._blocked = None
        self._is_in_grace = False

    def begin(self, now_ns: int) -> None:
        """Begin to choose: see anew whether there is a reason to wait for devices that have not connected yet."""
        if self._is_in_grace:
            self._is_in_grace, self._grace_over_ns = False, now_ns

    def unblock(self) -> None:
        """Choose anew: another device serves now than the one that a request waits for."""
        self._blocked = None

    def next(self, now_ns: int, claimed: int) -> Choice | None:
        """Choose the request to dispatch now, if there is one; never to a device that is claimed.

        A request whose turn is later may go first, but not to a device that an earlier one waits for.
        """
        heads = self._turns.heads()
        if len(heads) == 1 and self._is_still_blocked(heads[0], now_ns):
            return None
        self.wait_end_ns = self._blocked = None
        lowest_ns = self._turns.lowest_ns(now_ns)
        for request in heads:
            wanted = self._links_of(self.requested(request))
            if now_ns < self.grace_end_ns and any(_is_coming(link) for link in wanted):
                self._is_in_grace = True
                continue
            ready = [link for link in wanted if link.state is _READY]
            kept = self._kept_from(request, ready, lowest_ns) if lowest_ns < math.inf else 0
            closed = claimed | kept
            first = self._stages.first(request, ready, closed)
            may_begin = not first or request.policy != "certain" or not self._courses.is_full
            full = next((link for link in first if not link.has_credit or closed >> link.index & 1), None)
            if may_begin and full is None:
                return Choice(request, first, closed)
            if now_ns >= request.judged_ns + self._judged_ns:
                request.judged_ns, request.wait_end_ns = now_ns, self._wait_end_of(request, first)
            if now_ns >= request.wait_end_ns:
                return Choice(request, self._stages.first(request, ready, closed, is_late=True), closed, is_late=True)
            self.wait_end_ns = min(request.wait_end_ns, self.wait_end_ns or request.wait_end_ns)
            if len(heads) == 1 and full is not None and request.policy == "all" and not self._stages.can_release:
                self._blocked = request, full
            for link in first:
                if not kept >> link.index & 1:  # else its place is for others, whose turn is later
                    claimed |= 1 << link.index
        return None

    def due_ns(self) -> int | None:
        """Tell when there is something to choose though no message comes."""
        grace_ns = self.grace_end_ns if self._is_in_grace else None
        if grace_ns is None or self.wait_end_ns is None:
            return self.wait_end_ns if grace_ns is None else grace_ns
        return min(grace_ns, self.wait_end_ns)

    def requested(self, request: Request) -> int:
        """Give the mask of the devices that a request may ask."""
        return request.picture.mask or self._all_devices

    def deadline_ns(self, request: Request) -> int:
        """Tell when a request has to be answered; its time begins after the startup grace."""
        if request.arrival_ns < self._patient_end_ns and not request.picture.deadline_us:
            return self._clock.now_ns + request.deadline_ns - request.arrival_ns
        return request.deadline_ns + max(0, self._grace_over_ns - request.arrival_ns)

    def _kept_from(self, request: Request, ready: Sequence[Link], lowest_ns: float) -> int:
        """Give the devices whose last place is kept for other clients, as a mask."""
        if not self._turns.leaves_room(request, lowest_ns):
            return 0
        return mask_of([link.index for link in ready if 1 < link.pace.room <= len(link.in_flight) + 1])

    def _is_still_blocked(self, request: Request, now_ns: int) -> bool:
        """Tell whether nothing has changed for a request that waits for all ready devices: most often nothing has."""
        if self._blocked is None or self._blocked[0] is not request:
            return False
        link, judged_again_ns = self._blocked[1], request.judged_ns + self._judged_ns
        return link.state is _READY and not link.has_credit and now_ns < min(request.wait_end_ns, judged_again_ns)

    def _links_of(self, requested: int) -> Collection[Link]:
        if requested == self._all_devices:
            return self._links
        return [link for link in self._links if requested >> link.index & 1]

    def _wait_end_of(self, request: Request, ready: Sequence[Link]) -> int:
        """Tell how long a request may wait: half its time, unless the slowest device needs more of it."""
        deadline_ns, is_encoded = self.deadline_ns(request), request.picture.is_file
        time_ns = request.deadline_ns - request.arrival_ns
        needed_ns = max([link.pace.needed_ns(is_encoded=is_encoded) for link in ready], default=0)
        return deadline_ns - min(time_ns, max(round(needed_ns), time_ns // 2))


def _is_coming(link: Link) -> bool:
    """Tell whether a device is about to work for this node, as it may after the start, or when the node takes over."""
    return not (link.links and (link.hello is None or link.is_lent)) and not link.is_revoked
