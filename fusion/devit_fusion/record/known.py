"""What the recording says of each request, kept as long as devices may still speak of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from devit_contract.wire.sockets import Sent
from devit_fusion.record import records

Key = tuple[str, int, int]
"""A request's client, its run and its number."""
FeatureOrSkip = records.FeatureCame | records.SkipCame
_KEPT_NS = 70_000_000_000
"""Longer than any deadline."""


@dataclass(frozen=True)
class Pair:
    """One request: what was answered, and what is answered now."""

    key: Key
    was: records.Answered
    now: records.Answered
    image_sha256: str = ""


@dataclass
class Counts:
    """What a replay has seen beside answers."""

    requests: int = 0
    unknown: int = 0
    """Features that the changes would have asked for, and that are not known: they count as missing."""
    cut: int = 0
    """Requests that are not compared: their frames were under way where the recording begins, or is interrupted."""
    under_way: int = 0
    """Frames that were under way where the replay began, as no quiet moment came."""
    lost: int = 0
    """Records that the recorder was too slow for."""
    unanswered: int = 0
    """Requests that were answered then, and are not now, or the other way round."""
    recorded_ns: int = 0
    took_s: float = 0.0


@dataclass
class Known:
    """What the recording says of one request."""

    answers: deque[records.Answered] = field(default_factory=deque)
    given: deque[records.Answered] = field(default_factory=deque)
    sent_ns: dict[int, int] = field(default_factory=dict)
    """By device, when it was sent the frame."""
    said: dict[int, list[tuple[int, FeatureOrSkip]]] = field(default_factory=dict)
    """By device, what it said of it, and where in the recording."""
    failed: dict[int, Sent] = field(default_factory=dict)
    """By device, why it could not be sent it."""
    asked: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By device, when it is asked now, and under which frame."""
    pairs: int = 0
    has_image: bool = False
    frames: set[int] = field(default_factory=set)
    """Recorded frames of it."""
    image_sha256: str = ""


class Ledger:
    """The requests of the last minute."""

    def __init__(self) -> None:
        """Start with none."""
        self.counts = Counts()
        self._known: dict[Key, Known] = {}
        self._keys: dict[int, Key] = {}  # by recorded frame
        self._ages: deque[tuple[int, Key]] = deque()

    def __getitem__(self, key: Key) -> Known:
        """Find a request that came."""
        return self._known[key]

    def find(self, key: Key) -> Known | None:
        """Find a request; ``None`` if it came before the recording, or long ago."""
        return self._known.get(key)

    def came(self, record: records.RequestCame) -> Known:
        """Take a request in; one that is sent again is the same."""
        self.counts.requests += 1
        key = record.client, record.run_id, record.number
        known = self._known.setdefault(key, Known())
        known.has_image = len(record.image) == record.image_bytes > 0
        self._ages.append((record.at_ns, key))
        while self._ages[0][0] < record.at_ns - _KEPT_NS:
            self._forget(self._ages.popleft()[1])
        return known

    def sent(self, record: records.Dispatched) -> Known | None:
        """Take in which devices were sent a request's frame."""
        key = record.client, record.run_id, record.number
        known = self._known.get(key)
        if known is not None:
            self._keys[record.frame_id] = key
            known.frames.add(record.frame_id)
            known.sent_ns |= dict.fromkeys(record.devices, record.at_ns)
        return known

    def of_frame(self, frame_id: int) -> Known | None:
        """Find the request of a recorded frame."""
        key = self._keys.get(frame_id)
        return None if key is None else self._known.get(key)

    def clear(self) -> None:
        """Forget all: what is under way has no end in the recording."""
        while self._ages:
            self._forget(self._ages.popleft()[1])

    def _forget(self, key: Key) -> None:
        known = self._known.pop(key, None)
        if known is None:
            return
        if known.answers:
            self.counts.unanswered += 1
        elif not known.pairs:
            self.counts.cut += 1
        for frame_id in known.frames:
            self._keys.pop(frame_id, None)
