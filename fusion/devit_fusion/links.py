"""What the node knows of each device's link: is it there, has it credit, does it keep its deadlines.

========  =====================================================  ==========================================
state     meaning                                                a new frame
========  =====================================================  ==========================================
absent    never connected, or the link is gone                   does not wait for it: ``missing: absent``
ready     link up, every frame in flight within its deadline     is sent to it, or waits for its credit
stalled   link up, but at least one frame in flight is overdue   does not wait for it: ``missing: stalled``
========  =====================================================  ==========================================

A stalled device is ready again when its overdue answers have come, however late. It is also tried once a second, as an
answer may have been lost for good.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from devit_contract.messages import DeviceStatus, Hello

_TRIAL_NS = 1_000_000_000


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
    answered: int = 0
    missing: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def state(self) -> str:
        """``absent``, ``ready`` or ``stalled``, as in the table above."""
        if self.hello is None:
            return "absent"
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
        self._forget()

    def disconnect(self) -> None:
        """End the link."""
        self.hello = None
        self._forget()

    def sent(self, frame_id: int, deadline_ns: int) -> None:
        """Take one credit."""
        self.in_flight[frame_id] = deadline_ns

    def returned(self, frame_id: int, now_ns: int) -> None:
        """Give the credit of a frame back, whatever its answer was."""
        if frame_id not in self.in_flight:
            return
        # An agent works in order: what was sent before this frame and is not answered never will be.
        for earlier in [number for number in self.in_flight if number <= frame_id]:
            del self.in_flight[earlier]
        if self.overdue:
            self.note_overdue(now_ns)

    def forgive(self, now_ns: int) -> None:
        """Write off what is overdue by a second, so that a stalled device is tried once a second."""
        if self.overdue:
            self.in_flight = {
                number: deadline_ns
                for number, deadline_ns in self.in_flight.items()
                if deadline_ns > now_ns - _TRIAL_NS
            }
            self.note_overdue(now_ns)

    def note_overdue(self, now_ns: int) -> None:
        """Count what is in flight past its deadline."""
        self.overdue = sum(deadline_ns <= now_ns for deadline_ns in self.in_flight.values())

    def status(self, late: int) -> DeviceStatus:
        """Describe the link for people."""
        return DeviceStatus(
            name=self.name,
            submodel=self.index,
            state=self.state,
            engine=self.hello.engine if self.hello is not None else "",
            in_flight=len(self.in_flight),
            answered=self.answered,
            late=late,
            missing=self.missing,
            rejected=dict(self.rejected),
        )

    def _forget(self) -> None:
        self.in_flight.clear()
        self.overdue = 0
