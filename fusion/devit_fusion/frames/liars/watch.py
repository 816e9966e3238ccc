"""Notices devices whose features do not fit those of the others, and images unlike any. No clock of its own.

Suspects are the fewest devices without which all others agree. If several sets are as small, nobody can be named: the
devices disagree, or the images are unlike those of the training.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from devit_contract.arrays import Float32Array, Float64Array
from devit_contract.artefacts.agreement import Compared, Comparison, Usual, rarities
from devit_contract.artefacts.head import FusionHead, mask_of
from devit_contract.service.journal import Priority
from devit_fusion.events import Events
from devit_fusion.frames.liars.evidence import Evidence

Fault = Literal["constant", "stale", "disagrees"]
"""How a suspect's features are wrong: always the same; those of an earlier frame; in another way."""
_TEXTS: dict[Fault, str] = {
    "constant": "its features are the same for every image: restart its agent, and look at its camera",
    "stale": "its features are those of an earlier frame: restart its agent",
    "disagrees": "its features do not fit those of the others: look at its camera, then run devit engines verify there",
}
_MOST_MACS = 4_000_000
"""Of a frame on average, about a millisecond of a small core: larger cells compare a random share of the frames."""
_FULL_CHANGE = 0.25
"""Of a feature, from which on a frame counts in full; two unrelated images have about 1."""
_KEPT_FRAMES, _MOST_FRAMES_LATE = 16, 8
_LEAST_STEPS = 3
"""From which on a feature that does not change is constant."""
_CONSTANT, _AS_USUAL = 1e-3, 0.5
"""Change of a feature that is the same, and the mean gain of a bet against features of one image."""
_UNCLEAR_FRAMES = 25
"""How long devices disagree before that is told: meanwhile one of them is named, if one can be."""


class _Kept(NamedTuple):
    devices: list[int]
    compared: Compared


class Watch:
    """Watches the devices of one cell."""

    def __init__(
        self,
        head: FusionHead,
        usual: Usual,
        names: Mapping[int, str],
        events: Events,
        chance: random.Random | None = None,
    ) -> None:
        """Trust all; ``names`` is by device index, and ``chance`` picks what is compared in a large cell."""
        self._chance = chance or random.Random()
        self._comparison = Comparison(head)
        self._evidence = Evidence(usual, len(head.dims))
        self._closeness = usual.closeness
        self._rarities = rarities(usual.images)
        self._share = min(1.0, _MOST_MACS / self._comparison.macs)
        self._names = names
        self._events = events
        self._behind: list[Mapping[int, Float32Array]] = []
        self._last: dict[int, Float32Array] = {}  # by device: its last whitened feature
        self._frames: deque[_Kept] = deque(maxlen=_KEPT_FRAMES)
        self._unclear = 0
        self.suspects: dict[int, Fault] = {}
        """By device, how its features are wrong."""

    @property
    def is_unclear(self) -> bool:
        """Whether devices disagree, and none of them can be named."""
        return self._unclear >= _UNCLEAR_FRAMES

    def suspicion(self, device: int) -> float:
        """Tell how much speaks against a device, from 0 to 1, the limit."""
        return 1.0 if device in self.suspects else self._evidence.against(device, set(self._names) - set(self.suspects))

    def forget(self, device: int) -> None:
        """Trust a device again, e.g. as another engine runs on it."""
        self._evidence.forget(device)
        self._last.pop(device, None)
        self.suspects.pop(device, None)

    @property
    def frames_behind(self) -> int:
        """How many frames are looked at, and wait for :meth:`catch_up`."""
        return len(self._behind)

    def look(self, features: Mapping[int, Float32Array]) -> float | None:
        """Give the novelty of a frame's image by its features ``(dim,)``, by device; :meth:`catch_up` compares them.

        That is the share of the validation images, 0 to 1, that are less unlike the training part than this one;
        ``None`` where the frame is not compared, or its subset of devices has no quantiles.
        """
        if not features or (self._share < 1.0 and self._chance.random() > self._share):
            return None
        if len(features) > 1:
            self._behind.append(features)
        usual = self._closeness.get(mask_of(features))
        if usual is None:
            return None
        closeness = self._comparison.closeness(features)
        return 1.0 - float(self._rarities[usual.searchsorted(np.float32(closeness), "right")])

    def catch_up(self) -> None:
        """Compare the features of the frames looked at: many together take little more time than one."""
        behind, self._behind = self._behind, []
        for devices, group in itertools.groupby(behind, key=sorted):
            frames = list(group)
            compared = self._comparison.of({device: np.stack([each[device] for each in frames]) for device in devices})
            gains = self._evidence.gains(devices, compared.agreements)
            changes = self._changes(devices, compared)
            for number in range(len(frames)):
                self._evidence.add(devices, gains[number], changes[number])
                self._frames.append(_Kept(devices, compared.frame(number)))
                self._judge()

    def _changes(self, devices: list[int], compared: Compared) -> Float64Array:
        """Give how much each device's feature has changed in each frame, ``(n, devices)``."""
        changes = np.ones((len(compared.closeness), len(devices)))
        for place, device in enumerate(devices):
            now = compared.whitened[place]
            before = self._last.get(device)
            earlier = now[:-1] if before is None else np.concatenate([before[None], now[:-1]])
            first = len(now) - len(earlier)
            changes[first:, place] = np.minimum(1.0, _change(earlier, now[first:]) / _FULL_CHANGE)
            self._last[device] = now[-1]
        return changes

    def _judge(self) -> None:
        evidence = self._evidence
        if not self.suspects and evidence.of_pairs.max() < evidence.limit:
            self._unclear = 0 if evidence.of_pairs.max() < evidence.limit / 2 else self._unclear
            return
        present = {device for kept in self._frames for device in kept.devices}
        trusted = present - set(self.suspects)
        for device in present & set(self.suspects):
            if trusted and evidence.is_clear_of(device, trusted):
                del self.suspects[device]
                self._events.note(self._names[device], "agrees with the others again")
        culprits = evidence.culprits(present)
        for device in culprits - set(self.suspects):
            fault = self.suspects[device] = self._fault(device, present - culprits)
            self._events.note(self._names[device], f"suspect: {_TEXTS[fault]}", Priority.WARNING)
        self._tell_unclear(sorted(present - set(self.suspects)))

    def _tell_unclear(self, others: list[int]) -> None:
        """Say that devices disagree, once it is plain that none of them can be named."""
        left = np.triu(self._evidence.of_pairs[np.ix_(others, others)])
        if left.size == 0 or left.max() < self._evidence.limit / 2:
            self._unclear = 0
        elif left.max() >= self._evidence.limit:
            self._unclear += 1
            if self._unclear == _UNCLEAR_FRAMES:
                pairs = ", ".join(
                    f"{self._names[others[first]]} and {self._names[others[second]]}"
                    for first, second in np.argwhere(left >= self._evidence.limit)
                )
                text = f"the devices disagree ({pairs}): look at their cameras, or the images are unlike the training's"
                self._events.note("", text, Priority.WARNING)

    def _fault(self, device: int, trusted: set[int]) -> Fault:
        own = [(kept, kept.devices.index(device)) for kept in self._frames if device in kept.devices]
        steps = [
            _change(before.compared.whitened[was][0], after.compared.whitened[place][0])
            for (before, was), (after, place) in itertools.pairwise(own)
        ][-_LEAST_STEPS:]
        if len(steps) == _LEAST_STEPS and max(steps) < _CONSTANT:
            return "constant"
        is_stale = any(self._gain(device, trusted, late) < _AS_USUAL for late in range(1, _MOST_FRAMES_LATE + 1))
        return "stale" if is_stale else "disagrees"

    def _gain(self, device: int, trusted: set[int], late: int) -> float:
        """Bet against a device's latest features and those of others so many frames before; the mean gain."""
        gains = []
        frames = list(self._frames)[-_LEAST_STEPS - late :]
        for before, after in zip(frames, frames[late:], strict=False):
            if device not in after.devices:
                continue
            said = after.compared.shared[0, after.devices.index(device)]  # (with, direction)
            for other in trusted & set(before.devices) & set(after.devices):
                heard = before.compared.shared[0, before.devices.index(other)]
                if device in before.devices:
                    agreement = said[after.devices.index(other)] @ heard[before.devices.index(device)]
                    both = np.full((2, 2), agreement, np.float32)
                    gains.append(self._evidence.gains([device, other], both)[0, 1])
        return float(np.mean(gains)) if len(gains) >= _LEAST_STEPS else np.inf


def _change(before: Float32Array, now: Float32Array) -> Float64Array:
    """Compare features ``(..., dim)`` of one device, whitened: 0 for the same, about 1 for two unrelated images'."""
    step = now - before
    squares = (before * before).sum(axis=-1) + (now * now).sum(axis=-1)
    return np.asarray((step * step).sum(axis=-1) / np.maximum(1e-12, squares), np.float64)
