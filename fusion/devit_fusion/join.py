"""The join: which features belong to which frame, and how and when a frame ends. No sockets, no clock of its own.

A frame is opened with the devices that were sent it, collects their features, and ends exactly once: when nothing is
awaited any more, or at its deadline. What comes for a frame that has ended, or twice, is counted and never used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.head import mask_of
from devit_contract.wire.codec import State
from devit_contract.wire.messages import DeviceTiming


@dataclass
class Frame:
    """One open frame."""

    frame_id: int
    wished: int
    """Mask of the devices that were asked for."""
    dispatch_ns: int
    deadline_ns: int
    awaited: set[int]
    """Devices whose feature may still come."""
    missing: dict[int, str]
    """Devices whose feature will not come, and why."""
    tried: set[int]
    """Those among the missing that were sent the frame all the same: their feature counts if it comes in time."""
    features: dict[int, Float32Array] = field(default_factory=dict)
    timings: list[DeviceTiming] = field(default_factory=list)

    @property
    def mask(self) -> int:
        """The devices whose features are here."""
        return mask_of(list(self.features))

    def state(self, everyone: int, k_min: int) -> State:
        """Judge the frame as it is, for a cell whose devices have the mask ``everyone``."""
        if self.mask == everyone:
            return State.FULL
        needed = min(k_min, self.wished.bit_count())
        return State.PARTIAL if len(self.features) >= needed else State.FAILED


class Join:
    """All open frames. Their number is bounded by the credit of the devices."""

    def __init__(self) -> None:
        """Start with no frame."""
        self._open: dict[int, Frame] = {}  # by rising frame_id, so also by rising deadline
        self._next_id = 1
        self.unused: Counter[tuple[int, str]] = Counter()
        """(device, ``late`` or ``duplicate``) to number of messages."""

    def __len__(self) -> int:
        """Count the open frames."""
        return len(self._open)

    def open(
        self,
        wished: int,
        now_ns: int,
        deadline_ns: int,
        awaited: set[int],
        missing: dict[int, str],
        tried: Iterable[int] = (),
    ) -> Frame:
        """Open a frame; the caller sends it to ``awaited`` and ``tried``. With nobody awaited it has ended already."""
        frame = Frame(self._next_id, wished, now_ns, deadline_ns, set(awaited), dict(missing), set(tried))
        self._next_id += 1
        if awaited:
            self._open[frame.frame_id] = frame
        return frame

    def add(
        self, frame_id: int, device: int, feature: Float32Array, timing: DeviceTiming, *, is_trial: bool = False
    ) -> Frame | None:
        """Take a feature in; the frame comes back if that ended it. A trial's is never late."""
        frame = self._waiting_for(frame_id, device, is_trial)
        if frame is None:
            return None
        frame.features[device] = feature
        frame.timings.append(timing)
        return self._end_if_done(frame)

    def skip(self, frame_id: int, device: int, why: str, *, is_trial: bool = False) -> Frame | None:
        """Note that a device's feature will not come; the frame comes back if that ended it."""
        frame = self._waiting_for(frame_id, device, is_trial)
        if frame is None:
            return None
        frame.missing[device] = why
        return self._end_if_done(frame)

    def lose(self, device: int, why: str) -> list[Frame]:
        """Wait no longer for a device; the frames that this ended come back."""
        ended = []
        for frame in list(self._open.values()):
            if device in frame.awaited:
                frame.awaited.discard(device)
                frame.missing[device] = why
                if self._end_if_done(frame) is not None:
                    ended.append(frame)
        return ended

    def expire(self, now_ns: int) -> list[Frame]:
        """End the frames whose deadline has come, oldest first."""
        ended = []
        while self._open:
            frame = next(iter(self._open.values()))
            if frame.deadline_ns > now_ns:
                break
            del self._open[frame.frame_id]
            for device in frame.awaited:
                frame.missing[device] = "deadline"
            ended.append(frame)
        return ended

    def next_deadline_ns(self) -> int | None:
        """Tell when :meth:`expire` has something to do."""
        return next(iter(self._open.values())).deadline_ns if self._open else None

    def _waiting_for(self, frame_id: int, device: int, is_trial: bool) -> Frame | None:
        frame = self._open.get(frame_id)
        if frame is not None and device in frame.awaited:
            frame.awaited.discard(device)
            return frame
        if frame is not None and device in frame.tried:
            frame.tried.discard(device)
            del frame.missing[device]
            return frame
        if not is_trial:
            is_double = frame is not None and device in frame.features
            self.unused[device, "duplicate" if is_double else "late"] += 1
        return None

    def _end_if_done(self, frame: Frame) -> Frame | None:
        if frame.awaited:
            return None
        del self._open[frame.frame_id]
        return frame
