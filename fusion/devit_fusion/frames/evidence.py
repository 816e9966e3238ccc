"""The evidence against pairs of devices: that their features are not of the same images. No clock of its own.

Each frame bets against each pair of devices in it: by ``k p^(k-1)``, where p is the share of validation images on which
the pair agrees as little. If the frame is like those, the bet gains nothing on average, so the running product, which
never falls below 1, reaches a limit L by chance once in L frames at most (a CUSUM e-detector, arXiv 2203.03532). The
logarithm of that product is the evidence. A scene that stands still is one image, however many frames show it: a bet
counts by how much the features of either device have changed since the frame before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from devit_contract.arrays import Float32Array, Float64Array
from devit_contract.artefacts.agreement import Usual, rarities

_FRAMES_PER_FALSE_ALARM = 1_000_000
_BET = 0.5
"""k above: smaller ones win more on pairs that never agree, and less on those that agree too little."""
_CLOSE = 0.25
"""Of the limit: below, a pair agrees. In between it does neither, so that nobody is named while all evidence grows."""
_ROOM = 2.0
"""How far evidence rises above the limit: the more, the longer a device that is right again waits."""


class Evidence:
    """The evidence against each pair of one cell's devices."""

    def __init__(self, usual: Usual, devices: int) -> None:
        """Start with none."""
        self.of_pairs: Float64Array = np.zeros((devices, devices))
        """Symmetric, from 0 to a little above the limit."""
        self._is_compared = np.zeros((devices, devices), np.bool_)
        pairs = max(1, devices * (devices - 1) // 2)
        self.limit = math.log(pairs * _FRAMES_PER_FALSE_ALARM)
        """From here on a pair disagrees."""
        p = rarities(usual.images)
        self._gains = math.log(_BET) + (_BET - 1) * np.log(p)
        self._usual = np.full((devices, devices, usual.agreements.shape[1]), -np.inf, np.float32)
        for rows in (np.triu_indices(devices, 1), np.triu_indices(devices, 1)[::-1]):
            self._usual[rows] = usual.agreements

    def gains(self, devices: Sequence[int], agreements: Float32Array) -> Float64Array:
        """Give what one frame's bets gain, from the agreements ``(devices, devices)`` of those that are in it."""
        usual = self._usual if len(devices) == len(self._usual) else self._usual[np.ix_(devices, devices)]
        return np.asarray(self._gains[np.count_nonzero(usual <= agreements[:, :, None], axis=-1)], np.float64)

    def add(self, devices: Sequence[int], agreements: Float32Array, changes: Float64Array) -> None:
        """Take in a frame; ``changes`` of each device, 0 to 1, is how much its feature is another than before."""
        where = slice(None) if len(devices) == len(self._usual) else np.ix_(devices, devices)
        added = np.maximum(changes[:, None], changes) * self.gains(devices, agreements)
        self.of_pairs[where] = np.minimum(np.maximum(self.of_pairs[where] + added, 0.0), self.limit + _ROOM)
        self._is_compared[where] = True  # nothing is ever against a device and itself

    def forget(self, device: int) -> None:
        """Begin anew with a device."""
        self.of_pairs[device] = self.of_pairs[:, device] = 0.0
        self._is_compared[device] = self._is_compared[:, device] = False

    def against(self, device: int, others: Iterable[int]) -> float:
        """Tell what is against a device: the least that is against it with one of the others, a share of the limit."""
        compared = [other for other in others if other != device and self._is_compared[device, other]]
        found = [self.of_pairs[device, other] for other in compared]
        return float(min(found, default=0.0)) / self.limit

    def trusted(self, devices: Iterable[int]) -> set[int]:
        """Find those that agree with each other, directly or through others; empty if no group is the largest."""
        groups = sorted(self._groups(set(devices)), key=len)
        is_clear = len(groups[-1]) > 1 and (len(groups) == 1 or len(groups[-2]) < len(groups[-1]))
        return groups[-1] if is_clear else set()

    def _groups(self, left: set[int]) -> list[set[int]]:
        is_close, groups = self._is_compared & (self.of_pairs < _CLOSE * self.limit), []
        while left:
            group, fresh = set[int](), {min(left)}
            while fresh:
                group |= fresh
                fresh = (set(np.flatnonzero(is_close[sorted(fresh)].any(axis=0)).tolist()) & left) - group
            groups.append(group)
            left -= group
        return groups
