"""What the own source showed when the last frames began: all devices of a frame see the same moment of the scene.

A device with an own view looks at its camera when a trigger comes, and not only when its engine has time for it, or
when it is asked after all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from devit_contract.wire.codec import Message

T = TypeVar("T")

_MOST = 32
"""Of the last frames; most of those that are never asked for are certain without this device."""


class Moments(Generic[T]):
    """The images or features of one device by frame."""

    def __init__(self, device: int, capture: Callable[[int], T | None]) -> None:
        """Keep what ``capture`` gives for a frame's number."""
        self._bit = 1 << device
        self._capture = capture
        self._kept: dict[tuple[int, int], T | None] = {}  # by run of a node, and frame

    def hears(self, trigger: Message) -> bool:
        """Keep the moment of a new frame; tell whether this device is to work on it now."""
        if not trigger.capture_age_us:
            self._kept[trigger.run_id, trigger.frame_id] = self._capture(trigger.frame_id)
            if len(self._kept) > _MOST:
                del self._kept[next(iter(self._kept))]
        return not trigger.mask or bool(trigger.mask & self._bit)

    def take(self, trigger: Message) -> T | None:
        """Hand out a frame's moment; ``None`` if there was no image then, or it is too long ago."""
        return self._kept.pop((trigger.run_id, trigger.frame_id), None)

    def forget(self, run_id: int | None) -> None:
        """Drop those of a run that has ended."""
        self._kept = {frame: kept for frame, kept in self._kept.items() if frame[0] != run_id}
