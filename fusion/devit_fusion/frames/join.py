"""Which features belong to which frame, and how and when a frame ends. No sockets, no clock of its own.

A frame is opened with the devices it is sent to, collects their features, and ends exactly once: when no device is
pending any more and none may still be asked, or at its deadline. A feature of a frame that has ended, or a second one,
is counted and never used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.head import mask_of
from devit_contract.wire.codec import State
from devit_contract.wire.messages import DeviceTiming
from devit_contract.wire.words import MissingReason
from devit_fusion.frames.stages import Course

_NEVER_NS = 1 << 63


@dataclass(eq=False)
class Frame:
    """One open frame."""

    frame_id: int
    requested: int
    """Mask of the devices that the client wants."""
    dispatch_ns: int
    deadline_ns: int
    pending: set[int]
    """Devices whose feature may still come."""
    missing: dict[int, MissingReason]
    """Devices whose feature will not come, and why."""
    probed: set[int]
    """Those among the missing that were sent the frame as a probe: their feature counts if it comes in time."""
    features: dict[int, Float32Array] = field(default_factory=dict)
    timings: list[DeviceTiming] = field(default_factory=list)
    aside: dict[int, Float32Array] = field(default_factory=dict)
    """Features that are compared with the others, and not used."""
    course: Course | None = None
    """``None``: it was sent to all that it asks, and waits for them."""
    asked: int = 0
    """Mask of the devices that it was sent to."""
    due_ns: int = 0
    """When something has to be done though no message comes: at its deadline, or earlier."""
    is_certain: bool = False
    """Whether its features are as good as all, within the promise."""
    mask: int = 0
    """The devices whose features are here."""

    def state(self, all_devices: int, min_devices: int) -> State:
        """Judge the frame by its features, for a cell whose devices have the mask ``all_devices``."""
        if self.mask == all_devices:
            return State.FULL
        if self.is_certain:
            return State.CERTAIN
        is_alone = self.course is not None and self.course.is_alone
        needed = 1 if is_alone else min(min_devices, self.requested.bit_count())
        return State.PARTIAL if len(self.features) >= needed else State.FAILED


class Join:
    """All open frames. Their number is bounded by the credit of the devices, and the frames that wait for it."""

    def __init__(self) -> None:
        """Start with no frame."""
        self._open: dict[int, Frame] = {}
        self._due_ns = _NEVER_NS
        """No frame is due before; the one that was may have ended meanwhile."""
        self.next_id = 1
        """Of the next frame."""
        self.unused: Counter[tuple[int, str]] = Counter()
        """(device, ``late`` or ``duplicate``) to number of messages."""

    def __len__(self) -> int:
        """Count the open frames."""
        return len(self._open)

    def open(
        self,
        requested: int,
        now_ns: int,
        deadline_ns: int,
        pending: set[int],
        missing: dict[int, MissingReason],
        probed: Iterable[int] = (),
        course: Course | None = None,
    ) -> Frame:
        """Open a frame; the caller sends it to ``pending`` and ``probed``. If none is pending, it has ended already."""
        frame = Frame(
            self.next_id,
            requested,
            now_ns,
            deadline_ns,
            set(pending),
            dict(missing),
            set(probed),
            course=course,
            asked=mask_of(pending) | mask_of(probed),
        )
        self.next_id += 1
        if pending:
            self._open[frame.frame_id] = frame
            self.set_due(frame, deadline_ns)
        return frame

    def set_due(self, frame: Frame, due_ns: int) -> None:
        """Say when something has to be done for a frame."""
        frame.due_ns = due_ns
        if due_ns < self._due_ns:
            self._due_ns = due_ns

    def add(
        self, frame_id: int, device: int, feature: Float32Array, timing: DeviceTiming, *, is_probe: bool = False
    ) -> Frame | None:
        """Take a feature in; return the frame if it is to be looked at. A probe's feature is never late.

        A frame without a course has ended then. One with a course has, if no device may still be asked.
        """
        frame = self._waiting_for(frame_id, device, is_probe)
        if frame is None:
            return None
        frame.features[device] = feature
        frame.mask |= 1 << device
        frame.timings.append(timing)
        return self._end_if_done(frame)

    def set_aside(self, frame_id: int, device: int, feature: Float32Array, *, is_probe: bool = False) -> Frame | None:
        """Take a suspect's feature in, to be compared only; return the frame as :meth:`add` does."""
        frame = self._open.get(frame_id)
        if frame is not None:
            frame.aside[device] = feature
        return self.skip(frame_id, device, MissingReason.SUSPECT, is_probe=is_probe)

    def holds(self, frame: Frame) -> bool:
        """Tell whether a frame is open."""
        return frame.frame_id in self._open

    def close(self, frame: Frame) -> None:
        """End a frame, whatever is still to come."""
        self._open.pop(frame.frame_id, None)

    def skip(self, frame_id: int, device: int, why: MissingReason, *, is_probe: bool = False) -> Frame | None:
        """Note that a device's feature will not come; return the frame as :meth:`add` does."""
        frame = self._waiting_for(frame_id, device, is_probe)
        if frame is None:
            return None
        frame.missing[device] = why
        return self._end_if_done(frame)

    def waiting_for(self, device: int) -> list[Frame]:
        """List the frames that a feature of this device may still come for."""
        return [frame for frame in self._open.values() if device in frame.pending]

    def lose(self, device: int, why: MissingReason, kept: Collection[int] = ()) -> list[Frame]:
        """Wait no longer for a device, but in the frames ``kept``; return those that :meth:`add` would return."""
        ended = []
        for frame in self.waiting_for(device):
            if frame.frame_id not in kept:
                frame.pending.discard(device)
                frame.missing[device] = why
                if self._end_if_done(frame) is not None:
                    ended.append(frame)
        return ended

    def expire(self, now_ns: int) -> list[Frame]:
        """Return the frames for which it is time, oldest first; those whose deadline has come have ended."""
        if now_ns < self._due_ns:
            return []
        # Not the order of their ids: requests are sent in turns of their clients.
        due = [frame for frame in self._open.values() if frame.due_ns <= now_ns]
        due.sort(key=lambda frame: frame.deadline_ns)
        for frame in due:
            if frame.deadline_ns <= now_ns:
                del self._open[frame.frame_id]
                frame.missing |= dict.fromkeys(frame.pending, MissingReason.DEADLINE)
        self._due_ns = min((frame.due_ns for frame in self._open.values()), default=_NEVER_NS)
        return due

    def next_deadline_ns(self) -> int | None:
        """Tell before when :meth:`expire` has nothing to do."""
        return self._due_ns if self._open else None

    def _waiting_for(self, frame_id: int, device: int, is_probe: bool) -> Frame | None:
        frame = self._open.get(frame_id)
        if frame is not None and device in frame.pending:
            frame.pending.discard(device)
            return frame
        if frame is not None and device in frame.probed:
            frame.probed.discard(device)
            del frame.missing[device]
            return frame
        if not is_probe:
            is_double = frame is not None and device in frame.features
            self.unused[device, "duplicate" if is_double else "late"] += 1
        return None

    def _end_if_done(self, frame: Frame) -> Frame | None:
        course = frame.course
        if course is None:
            if frame.pending:
                return None
            del self._open[frame.frame_id]
        elif frame.pending:
            return frame if course.is_tested_each else None
        elif not course.unasked:
            del self._open[frame.frame_id]
        return frame
