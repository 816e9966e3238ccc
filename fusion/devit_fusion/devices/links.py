"""The state of each device as the node sees it. No sockets, no clock of its own.

=========  =======================================================  ========================================
state      what it means                                            what a new frame does
=========  =======================================================  ========================================
absent     never connected, the link is gone, or another node's     does not wait for it
ready      link up, every frame in flight within its deadline       is sent to it, or waits for its credit
stalled    link up, but at least one frame in flight is overdue     does not wait for it
suspended  more than one in five of its last frames came late       does not wait for it
leaving    it shuts down; its frames in flight are still pending    does not wait for it
suspect    its features do not fit those of the others              does not wait for it
=========  =======================================================  ========================================

``missing`` in an answer names the state. A stalled device is ready again when its overdue answers have come, however
late; a suspended one, whose circuit breaker is open, when an answer came in time. The node probes both once a second
with a frame that does not wait for them, so a slow device delays no answer. A suspect's probe is waited for: it is as
fast as others, and its feature, which the answer does not use, is to be compared with theirs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from devit_contract.machine import OverCurrentEvents, Throttling
from devit_contract.wire.messages import DeviceTiming, Hello
from devit_contract.wire.status import DeviceStatus, Histogram
from devit_contract.wire.words import DeviceState, MissingReason, Slowdown
from devit_fusion.devices.pace import Flight, Pace

PROBE_NS = 1_000_000_000
"""How often a stalled or suspended device is probed."""
_ABSENT, _READY, _STALLED = DeviceState.ABSENT, DeviceState.READY, DeviceState.STALLED
_SUSPENDED, _LEAVING, _SUSPECT = DeviceState.SUSPENDED, DeviceState.LEAVING, DeviceState.SUSPECT
"""As plain names: the enum class costs a look-up in its metaclass at each use."""


@dataclass
class Link:
    """One device's link."""

    index: int
    """Device index = submodel index."""
    name: str
    credit: int
    deadline_ns: int
    """How long a frame may take."""
    hello: Hello | None = None
    """``None`` while absent."""
    boot_id: int = 0
    engine_revision: int = 0
    in_flight: dict[int, Flight] = field(default_factory=dict)
    """Frames that it has not answered yet, by their id."""
    overdue: int = 0
    is_leaving: bool = False
    is_revoked: bool = False
    """Its key is not accepted any more."""
    is_lent: bool = True
    """Whether its agent works for this node; with several nodes, one at a time."""
    is_excluded: bool = False
    """Its features do not fit those of the others, and are not used."""
    last_seen_ns: int | None = None
    """When its last message came."""
    links: int = 0
    frames: int = 0
    """Sent to it."""
    answered: int = 0
    missing: Counter[MissingReason] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    round_trip: Histogram = field(default_factory=Histogram.empty)
    inference: Histogram = field(default_factory=Histogram.empty)
    queue: Histogram = field(default_factory=Histogram.empty)
    probe_id: int = -1
    """The frame that probes it now; -1 for none."""
    over_current: OverCurrentEvents | None = None
    """Of its board, as its agent said last."""
    throttling: Throttling | None = None
    """The same."""
    slowdowns: tuple[Slowdown, ...] = ()
    """Why it is slower than it could be; others are asked before it."""
    route: bytes = b""
    """Routing id of its connection, once it was accepted."""
    probed_ns: int = 0
    """When it was probed last, or missed a frame."""

    def __post_init__(self) -> None:
        """Start with no answer."""
        self.pace = Pace(self.credit, self.deadline_ns)

    @property
    def state(self) -> DeviceState:
        """The state as in the table above."""
        if self.hello is None or not self.is_lent:
            return _ABSENT
        if self.is_leaving:
            return _LEAVING
        if self.pace.is_too_slow:
            return _SUSPENDED
        if self.overdue:
            return _STALLED
        return _SUSPECT if self.is_excluded else _READY

    @property
    def has_credit(self) -> bool:
        """Whether one more frame may be sent."""
        return len(self.in_flight) < self.pace.room

    @property
    def is_behind(self) -> bool:
        """Whether it has no room, as it has not come to frames that are not needed any more."""
        return not self.has_credit and any(flight.is_withdrawn for flight in self.in_flight.values())

    def connect(self, hello: Hello, boot_id: int, engine_revision: int) -> None:
        """Start a new link; frames in flight on an old one are forgotten."""
        self.hello = hello
        self.boot_id = boot_id
        self.engine_revision = engine_revision
        self.links += 1
        self.over_current = None
        self._forget()

    def change_engine(self, hello: Hello, engine_revision: int) -> None:
        """Take another engine of the same process, or a repeated HELLO; frames in flight are still to come."""
        self.hello = hello
        self.engine_revision = engine_revision

    def disconnect(self) -> None:
        """End the link."""
        self.hello = None
        self._forget()

    def rest(self) -> None:
        """Start anew after a time without frames: nothing could show whether it is still slow."""
        is_leaving = self.is_leaving
        self._forget()
        self.is_leaving = is_leaving

    def sent(self, frame_id: int, flight: Flight) -> None:
        """Take one credit; a probe may exceed it, and the oldest frame in flight is then written off."""
        while len(self.in_flight) >= self.credit:
            del self.in_flight[next(iter(self.in_flight))]
        self.in_flight[frame_id] = flight
        self.frames += 1

    def withdraw(self, frame_id: int) -> bool:
        """Note that a frame is not needed any more, and tell whether the device has it; it has more time to say so."""
        flight = self.in_flight.get(frame_id)
        if flight is None:
            return False
        deadline_ns = flight.deadline_ns + self.deadline_ns
        self.in_flight[frame_id] = flight._replace(deadline_ns=deadline_ns, is_withdrawn=True)
        return True

    def has_withdrawn(self, frame_id: int) -> bool:
        """Tell whether the device still has a frame that is not needed any more."""
        flight = self.in_flight.get(frame_id)
        return flight is not None and flight.is_withdrawn

    def returned(self, frame_id: int, now_ns: int, timing: DeviceTiming | None = None) -> Flight | None:
        """Give the credit of a frame back, whatever its answer was; ``timing`` is that of a feature.

        Returns:
            What was known of the frame; ``None`` if it was not in flight.
        """
        in_flight = self.in_flight
        flight = in_flight.get(frame_id)
        if flight is None:
            return None
        # An agent works in order: one that was sent before and is not answered yet never will be.
        while len(in_flight) > 1 and (earlier := next(iter(in_flight))) != frame_id:
            self.pace.passed_over(in_flight.pop(earlier))
        del in_flight[frame_id]
        if flight.is_withdrawn:
            self.pace.released(flight, now_ns)
        elif timing is not None:
            self.pace.answered(flight, now_ns, timing)
        else:
            self.pace.skipped(flight, now_ns)
        if self.overdue:
            self._count_overdue(now_ns)
        return flight

    def measured(self, timing: DeviceTiming) -> None:
        """Count what a feature cost."""
        self.round_trip.add_us(timing.arrival_us)
        if timing.inference_us:  # a feature that was there already cost none
            self.inference.add_us(timing.inference_us)
        self.queue.add_us(timing.queue_us)

    def missed(self, now_ns: int) -> None:
        """Note a frame that ended at its deadline without the feature."""
        self._count_overdue(now_ns)
        self.probed_ns = now_ns

    def take_probe(self, now_ns: int) -> bool:
        """Tell whether this frame is to probe a stalled, suspended or suspect device: one frame a second is."""
        if self.state not in (_STALLED, _SUSPENDED, _SUSPECT) or now_ns - self.probed_ns < PROBE_NS:
            return False
        self.probed_ns = now_ns
        return True

    def status(self, now_ns: int, unused: dict[str, int], *, is_spare: bool = False) -> DeviceStatus:
        """Describe the link for people; ``unused`` counts the features that came ``late`` or twice."""
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
            sent=self.frames,
            answered=self.answered,
            late=unused["late"],
            missing=dict(self.missing),
            rejected=dict(self.rejected) | {why: count for why, count in unused.items() if count},
            round_trip=self.round_trip,
            inference=self.inference,
            queue=self.queue,
            is_revoked=self.is_revoked,
            image_us=self.pace.trips.status(),
            over_current=self.over_current,
            lacks_source=self.hello is not None and self.hello.lacks_source,
            is_spare=is_spare,
            throttling=self.throttling,
            slowdowns=self.slowdowns,
        )

    def _count_overdue(self, now_ns: int) -> None:
        self.overdue = sum(flight.deadline_ns <= now_ns for flight in self.in_flight.values())

    def _forget(self) -> None:
        self.in_flight.clear()
        self.overdue = 0
        self.pace = Pace(self.credit, self.deadline_ns)
        self.is_leaving = False
