"""Which devices a frame asks, in which order, and how many at a time. No sockets, no clock of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from devit_contract.artefacts.calibration import MAX_ENUMERATED
from devit_contract.artefacts.fleet import Fleet
from devit_contract.choices import Order, Policy
from devit_contract.wire.codec import Dtype
from devit_fusion.devices.links import Link
from devit_fusion.frames.certainty import Verdict
from devit_fusion.ports.clients import Request

NOT_CALIBRATED = "the bundle does not say when an answer is certain: make it again with devit export"
_ORDERS: dict[Policy, Order] = {"single": "best", "replica": "rotating"}


@dataclass
class Course:
    """How one frame goes from stage to stage, if it does not simply wait for all devices."""

    request: Request
    policy: Policy
    sizes: tuple[int, ...]
    """How many devices the stages after the present one ask; what is left then is the last one."""
    tests: int
    """How often it may be tested in all, which the thresholds depend on."""
    is_tested_each: bool = False
    """Whether each feature is a reason to look at it, not only the last one of a stage."""
    start: int = 0
    """The device that it asked first."""
    unasked: set[int] = field(default_factory=set)
    """Devices that may still be asked."""
    tests_done: int = 0
    tested: int = 0
    """The mask that was tested last."""
    verdict: Verdict | None = None
    given: int | None = None
    """Of an audit, the class that the client was given already."""

    @property
    def is_alone(self) -> bool:
        """Whether one device's answer is what was asked for."""
        return self.policy in ("single", "replica")


class Stages:
    """The plan of one node."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        devices: int,
        accuracies: Mapping[int, float],
        is_calibrated: bool,
        has_own_views: bool = False,
    ) -> None:
        """Plan for so many devices; ``accuracies`` are by mask of devices."""
        certain = fleet.certain
        self.sizes = stage_sizes(certain.stages, devices=devices, min_devices=fleet.serving.min_devices)
        self.tests, self.tests_each = len(self.sizes), devices - 1
        """How often a frame may be tested: after each stage but the last, or with early release after each feature."""
        self._devices = devices
        self._has_runs = devices > MAX_ENUMERATED
        """Whether only neighbours are calibrated together, so that a frame goes on from its first device in order."""
        self._order = certain.order
        self._accuracies = accuracies
        self.turns: dict[int, int] = {}  # by device: when it was asked last, as a rising number
        self._is_calibrated = is_calibrated
        self._is_broken = False
        self.keeps_moments = has_own_views
        """Whether devices that are asked later still have the image of the moment at which a frame began."""
        self.can_release = is_calibrated and certain.early_release
        """Whether frames of policy ``all`` may be answered early."""

    def promise_broken(self) -> None:
        """Ask all devices from now on."""
        self._is_broken, self.can_release = True, False

    def settle(self, request: Request) -> str:
        """Have a request ask all devices if it cannot be certain; say what is wrong with its policy, if something is.

        Of own cameras, those asked later would see another image, unless they keep that of the frame's moment.
        """
        if request.policy == "certain" and not self._is_calibrated:
            return f"policy certain: {NOT_CALIBRATED}, or ask with another policy"
        is_later = request.picture.dtype is Dtype.NONE and not self.keeps_moments
        if request.policy == "certain" and (self._is_broken or is_later):
            request.policy = "all"
        return ""

    def course(self, request: Request, first: Sequence[Link]) -> Course | None:
        """Plan a frame that asks these devices first; ``None``: it waits for all, and asks no others."""
        if request.policy == "certain":
            start = first[0].index if first else 0
            return Course(request, "certain", self.sizes[1:], self.tests, start=start)
        if request.policy != "all":
            return Course(request, request.policy, (1,) * self._devices, 0)
        return Course(request, "all", (), self.tests_each, is_tested_each=True) if self.can_release else None

    def first(self, request: Request, ready: Sequence[Link], claimed: int, *, is_late: bool = False) -> Sequence[Link]:
        """Choose whom a new frame asks first; who asks late takes any with room."""
        if request.policy == "all":
            if not self.can_release or request.picture.dtype is Dtype.NONE:
                return ready
            return [link for link in ready if not link.is_behind] or ready  # asked later, if it is needed
        sizes = self.sizes if request.policy == "certain" else (1,)
        order = "rotating" if is_late else _ORDERS.get(request.policy, self._order)
        count = sizes[0] if sizes else len(ready)
        picked = self._pick(order, ready, count, claimed)
        if request.policy == "certain" and self._has_runs and picked:
            return self._run(ready, picked[0].index)[:count]
        return picked

    def next(self, course: Course, ready: Sequence[Link], claimed: int) -> Sequence[Link]:
        """Choose whom a frame asks next."""
        count = course.sizes[0] if course.sizes else len(ready)
        if course.policy == "certain" and self._has_runs:
            return self._run(ready, course.start)[:count]
        return self._pick(_ORDERS.get(course.policy, self._order), ready, count, claimed)

    def asked(self, index: int) -> None:
        """Note that a device was asked: it is others' turn."""
        self.turns[index] = max(self.turns.values(), default=0) + 1

    def _run(self, links: Sequence[Link], start: int) -> Sequence[Link]:
        return sorted(links, key=lambda link: (link.index - start) % self._devices)

    def _pick(self, order: Order, links: Sequence[Link], count: int, claimed: int) -> Sequence[Link]:
        if count >= len(links):
            return links

        def rank(link: Link) -> tuple[float, ...]:
            is_slowed = bool(link.slowdowns)
            if order == "best":
                return is_slowed, -self._accuracies.get(1 << link.index, 0.0), link.index
            if order == "cost":
                return is_slowed, link.pace.own_ns, link.index
            return not has_room(link, claimed), is_slowed, len(link.in_flight), self.turns.get(link.index, 0)

        return sorted(links, key=rank)[:count]


def stage_sizes(stages: Sequence[int], *, devices: int, min_devices: int) -> tuple[int, ...]:
    """Count the devices of each stage but the last, which asks the rest.

    No answer is given on fewer than ``min_devices``, so the first stage asks as many.

    >>> stage_sizes([1, 1], devices=4, min_devices=1), stage_sizes([1, 1], devices=2, min_devices=1)
    ((1, 1), (1,))
    """
    sizes: list[int] = []
    for count in (max(stages[0], min_devices), *stages[1:]):
        if sum(sizes) + count >= devices:
            break
        sizes.append(count)
    return tuple(sizes)


def has_room(link: Link, claimed: int) -> bool:
    """Tell whether a device may be sent one more frame, and nobody before it waits for that."""
    return link.has_credit and not claimed >> link.index & 1
