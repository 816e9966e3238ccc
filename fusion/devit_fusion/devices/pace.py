"""How fast a device is, as the node saw it: how many frames it may hold, and whether it is too slow for the deadline.

Judged is a frame's own time: from its dispatch to its end, less the time that it waited for the frames before it. Of a
client's picture file the engine's time alone is judged, as its way and its decoding take what the client made them
take. So load that clients cause never counts against a device. What a device says of itself is believed as far as the
node's own clock allows it.

A frame is late if its own time takes up nearly the whole deadline: one that comes just before it holds the cell up as
much as one that comes just after. Each late frame adds four to a score, each other one takes one off; twelve suspend.
So three late ones in a row do, and so does any pattern of more than one in five that lasts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median_low
from typing import NamedTuple

from devit_contract.choices import ImageCoding
from devit_contract.wire.messages import DeviceTiming

_LATE_SHARE = 0.9
"""Of the deadline; a frame whose own time is longer is late."""
_LATE, _IN_TIME, _LIMIT = 4, -1, 12
_KEPT_SHARE, _MARGIN_SHARE = 0.8, 0.05
"""Of the deadline: what a device's frames may take together, and what is left for the way of a single one."""
_SMOOTHING = 8
"""Averages are over about as many frames."""
LEAST_BYTES = 16_384
"""Smaller images are never coded, as that takes longer than to send them; so they are not measured either."""
IMAGES_KEPT = 9
"""Of the last so many images the middle one counts, so that four hiccups say nothing."""


class File(NamedTuple):
    """A client's picture file, for devices to decode."""

    client: str
    """Name of its key."""
    pixels: int


class Flight(NamedTuple):
    """A frame that a device has not answered yet."""

    sent_ns: int
    deadline_ns: int
    file: File | None = None
    """If it is one."""
    is_withdrawn: bool = False
    """Whether the node does not need it any more, so that it says nothing about the device."""
    coding: ImageCoding | None = None
    """What its image travels as, if that is to be measured."""


@dataclass
class _Average:
    """What frames of one kind take."""

    own_ns: float = 0.0
    work_ns: float = 0.0
    """Of it, in decoder and engine."""

    def add(self, own_ns: int, work_ns: int) -> None:
        self.own_ns += (own_ns - self.own_ns) / (_SMOOTHING if self.own_ns else 1)
        self.work_ns += (work_ns - self.work_ns) / (_SMOOTHING if self.work_ns else 1)


class Trips:
    """How long the last images of a device took from the node into its engine, by what they travelled as."""

    def __init__(self) -> None:
        """Start with none."""
        self._last_us: dict[ImageCoding, deque[int]] = {}

    def add(self, coding: ImageCoding, trip_us: int) -> None:
        """Take in one image's."""
        self._last_us.setdefault(coding, deque(maxlen=IMAGES_KEPT)).append(trip_us)

    def middle_us(self, coding: ImageCoding) -> int | None:
        """Give the middle one of the last; ``None`` before there are enough."""
        last_us = self._last_us.get(coding, ())
        return median_low(last_us) if len(last_us) == IMAGES_KEPT else None

    def forget(self, coding: ImageCoding) -> None:
        """Have what comes from now on count alone."""
        self._last_us.pop(coding, None)

    def status(self) -> dict[str, int]:
        """Give the middle ones for people."""
        return {coding: median_low(last_us) for coding, last_us in self._last_us.items()}


class Pace:
    """The pace of one device."""

    def __init__(self, credit: int, deadline_ns: int) -> None:
        """Start with one that is fast enough for its credit; frames end after ``deadline_ns``."""
        self.room = credit
        """Frames that it may hold, so that one of another client behind them would still be in time."""
        self.late_ns = round(_LATE_SHARE * deadline_ns)
        """A frame whose own time is longer is late."""
        self.trips = Trips()
        self._credit = credit
        self._deadline_ns = deadline_ns
        self._images, self._files = _Average(), _Average()
        self._longest_ns = 0.0
        self._ended_ns, self._was_encoded = 0, False
        self._score = 0
        self.is_too_slow = False
        """Whether too many of the last frames were late; one in time ends that, and leaves the device on probation."""

    def needed_ns(self, *, is_encoded: bool) -> float:
        """Tell what a frame needs if it is the last of as many as there is room for, with a margin."""
        average = self._files if is_encoded else self._images
        return average.own_ns + (self.room - 1) * self._longest_ns + _MARGIN_SHARE * self._deadline_ns

    def least_ns(self, *, is_encoded: bool) -> float:
        """Tell what a frame takes if no other one is before it; 0 before the first."""
        return self._files.own_ns if is_encoded else self._images.own_ns

    @property
    def own_ns(self) -> float:
        """What a frame takes; 0 before the first."""
        return self._images.own_ns or self._files.own_ns

    def answered(self, flight: Flight, now_ns: int, timing: DeviceTiming) -> None:
        """Take in that a feature has come, however late."""
        sent_ns, file = flight.sent_ns, flight.file
        if flight.coding is not None:
            self._measure(flight.coding, now_ns - max(sent_ns, self._ended_ns), timing)
        own_ns, inference_ns = now_ns - sent_ns, timing.inference_us * 1000
        if self._ended_ns > sent_ns:  # it was queued, at most as long as the frame before it was under way
            queued_ns = self._ended_ns - sent_ns
            if not self._was_encoded:  # else it may have waited behind a file on the network, unknown to the device
                queued_ns = min(queued_ns, timing.queue_us * 1000)
            own_ns -= queued_ns
        self._learn(self._images if file is None else self._files, own_ns, timing.decode_us * 1000 + inference_ns)
        judged_ns = own_ns if file is None else min(own_ns, inference_ns)
        if judged_ns >= self.late_ns or self._score:  # else nothing changes
            self._judge(judged_ns)
        self._ended_ns, self._was_encoded = now_ns, file is not None

    def skipped(self, flight: Flight, now_ns: int) -> None:
        """Take in that the device does without a frame."""
        if flight.file is None:
            self._judge(now_ns - flight.sent_ns - self._most_queued_ns(flight))
        self._ended_ns, self._was_encoded = now_ns, flight.file is not None

    def released(self, flight: Flight, now_ns: int) -> None:
        """Take in that a device is done with a frame that it was told to leave, whatever it did with it."""
        self._ended_ns, self._was_encoded = now_ns, flight.file is not None

    def passed_over(self, flight: Flight) -> None:
        """Take in that a frame will never be answered, as a later one was."""
        if flight.file is None and not flight.is_withdrawn:
            self._judge(self._deadline_ns)

    def state(self) -> tuple[int | float, ...]:
        """Give what it has learned, for :meth:`resume`; not what images take by their coding."""
        images, files = self._images, self._files
        learned = images.own_ns, images.work_ns, files.own_ns, files.work_ns, self._longest_ns
        flags = int(self.is_too_slow), int(self._was_encoded)
        return self.room, self._score, *flags, self._ended_ns, *learned

    def resume(self, state: tuple[int | float, ...]) -> None:
        """Go on from what another has learned."""
        room, score, is_too_slow, was_encoded, ended_ns, *averages, self._longest_ns = state
        self.room, self._score, self.is_too_slow = int(room), int(score), bool(is_too_slow)
        self._ended_ns, self._was_encoded = int(ended_ns), bool(was_encoded)
        self._images, self._files = _Average(*averages[:2]), _Average(*averages[2:])

    def _measure(self, coding: ImageCoding, own_ns: int, timing: DeviceTiming) -> None:
        encoding_us = 0 if coding == "raw" else timing.decode_us  # the client's, which takes about as long
        self.trips.add(coding, max(0, own_ns // 1000 - timing.inference_us) + encoding_us)

    def _most_queued_ns(self, flight: Flight) -> int:
        """As long as the frame before it was under way."""
        return self._ended_ns - flight.sent_ns if self._ended_ns > flight.sent_ns else 0

    def _judge(self, own_ns: int) -> None:
        if own_ns >= self.late_ns:
            self._score = min(_LIMIT, self._score + _LATE)
        elif self._score:
            self._score = _LIMIT - _LATE if self.is_too_slow else max(0, self._score + _IN_TIME)
        self.is_too_slow = self._score >= _LIMIT

    def _learn(self, average: _Average, own_ns: int, work_ns: int) -> None:
        """Average what frames take; a hiccup counts as a deadline at most."""
        most_ns, images, files = self._deadline_ns, self._images, self._files
        average.add(own_ns if own_ns < most_ns else most_ns, work_ns if work_ns < most_ns else most_ns)
        longest_ns = self._longest_ns = images.work_ns if images.work_ns > files.work_ns else files.work_ns
        if longest_ns:  # else it runs free, and has its features ready
            room = (_KEPT_SHARE * most_ns - (images.own_ns or files.own_ns)) / longest_ns
            self.room = self._credit if room >= self._credit else max(1, int(room))
