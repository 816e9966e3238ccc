"""The state of each device as the node sees it. No sockets, no clock of its own.

=========  =======================================================  ========================================
state      what it means                                            what a new frame does
=========  =======================================================  ========================================
absent     never connected, or the link is gone                     does not wait for it
ready      link up, every frame in flight within its deadline       is sent to it, or waits for its credit
stalled    link up, but at least one frame in flight is overdue     does not wait for it
suspended  three frames in a row came late or not at all            does not wait for it
leaving    it shuts down; what it has is still awaited              does not wait for it
=========  =======================================================  ========================================

``missing`` in an answer names the state. A stalled device is ready again when its overdue answers have come, however
late; a suspended one when an answer came within its deadline. Both are tried once a second with a frame that does not
wait for them, so that a slow device costs no answer its time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from devit_contract.wire.messages import DeviceStatus, DeviceTiming, Hello
from devit_fusion.histogram import Meter

MISSES_TO_SUSPEND = 3
"""Frames in a row."""
TRIAL_NS = 1_000_000_000
"""How often a device that nobody waits for is tried."""


@dataclass
class Link:
    """One device's link."""

    index: int
    """Device index = submodel index."""
    name: str
    credit: int
    hello: Hello | None = None
    """``None`` while absent."""
    boot_id: int = 0
    engine_revision: int = 0
    in_flight: dict[int, int] = field(default_factory=dict)
    """Frame id to deadline in ns, of what it has not answered yet."""
    overdue: int = 0
    misses: int = 0
    """Frames in a row that it answered late or not at all."""
    is_leaving: bool = False
    is_revoked: bool = False
    """Its key is not let in any more."""
    last_seen_ns: int | None = None
    """When its last message came."""
    links: int = 0
    asked: int = 0
    answered: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    round_trip: Meter = field(default_factory=Meter)
    inference: Meter = field(default_factory=Meter)
    queue: Meter = field(default_factory=Meter)
    trial_id: int = -1
    """The frame that it was tried with last, until its answer comes; -1 for none."""
    _tried_ns: int = 0

    def __post_init__(self) -> None:
        """Keep what is needed for every message."""
        self.route = self.name.encode()
        """Its routing id."""

    @property
    def state(self) -> str:
        """``absent``, ``ready``, ``stalled``, ``suspended`` or ``leaving``, as in the table above."""
        if self.hello is None:
            return "absent"
        if self.is_leaving:
            return "leaving"
        if self.misses >= MISSES_TO_SUSPEND:
            return "suspended"
        return "stalled" if self.overdue else "ready"

    @property
    def has_credit(self) -> bool:
        """Whether one more frame may be sent."""
        return len(self.in_flight) < self.credit

    def connect(self, hello: Hello, boot_id: int, engine_revision: int) -> None:
        """Start a new link; frames in flight on an old one are forgotten."""
        self.hello = hello
        self.boot_id = boot_id
        self.engine_revision = engine_revision
        self.links += 1
        self._forget()

    def change_engine(self, hello: Hello, engine_revision: int) -> None:
        """Go on with another engine in the same process, or greet again; frames in flight are still to come."""
        self.hello = hello
        self.engine_revision = engine_revision

    def disconnect(self) -> None:
        """End the link."""
        self.hello = None
        self._forget()

    def sent(self, frame_id: int, deadline_ns: int) -> None:
        """Take one credit; a device that is only tried may exceed it, and its oldest debt is written off."""
        while len(self.in_flight) >= self.credit:
            del self.in_flight[next(iter(self.in_flight))]
        self.in_flight[frame_id] = deadline_ns
        self.asked += 1

    def returned(self, frame_id: int, now_ns: int) -> bool:
        """Give the credit of a frame back, whatever its answer was; tell whether that ended a suspension."""
        deadline_ns = self.in_flight.get(frame_id)
        if deadline_ns is None:
            return False
        # An agent works in order: what was sent before this frame and is not answered never will be.
        for earlier in [number for number in self.in_flight if number <= frame_id]:
            del self.in_flight[earlier]
        if self.overdue:
            self._count_overdue(now_ns)
        if not self.misses or now_ns >= deadline_ns:
            return False
        was_suspended = self.misses >= MISSES_TO_SUSPEND
        self.misses = 0
        return was_suspended

    def measured(self, timing: DeviceTiming) -> None:
        """Count what a feature cost."""
        self.round_trip.add_us(timing.arrival_us)
        if timing.inference_us:  # a feature that was there already cost none
            self.inference.add_us(timing.inference_us)
        self.queue.add_us(timing.queue_us)

    def missed(self, now_ns: int) -> bool:
        """Note that a frame ended without waiting longer; tell whether that suspends the device."""
        self._count_overdue(now_ns)
        self._tried_ns = now_ns
        self.misses += 1
        return self.misses == MISSES_TO_SUSPEND

    def take_trial(self, now_ns: int) -> bool:
        """Tell whether a device that nobody waits for is to be tried with this frame: once a second."""
        if self.state not in ("stalled", "suspended") or now_ns - self._tried_ns < TRIAL_NS:
            return False
        self._tried_ns = now_ns
        return True

    def status(self, now_ns: int, unused: dict[str, int]) -> DeviceStatus:
        """Describe the link for people; ``unused`` are the features that came ``late`` or twice."""
        return DeviceStatus(
            name=self.name,
            submodel=self.index,
            state=self.state,
            engine=self.hello.engine if self.hello is not None else "",
            engine_revision=self.engine_revision,
            credit=self.credit,
            in_flight=len(self.in_flight),
            last_seen_s=None if self.last_seen_ns is None else (now_ns - self.last_seen_ns) / 1e9,
            links=self.links,
            asked=self.asked,
            answered=self.answered,
            late=unused["late"],
            missing=dict(self.missing),
            rejected=dict(self.rejected) | {why: count for why, count in unused.items() if count},
            round_trip=self.round_trip.histogram(),
            inference=self.inference.histogram(),
            queue=self.queue.histogram(),
        )

    def _count_overdue(self, now_ns: int) -> None:
        self.overdue = sum(deadline_ns <= now_ns for deadline_ns in self.in_flight.values())

    def _forget(self) -> None:
        self.in_flight.clear()
        self.overdue = 0
        self.misses = 0
        self.is_leaving = False
