"""The evidence that the features of two devices are not of the same images, and who is to blame. No clock of its own.

Each frame bets against each pair of devices in it: by ``k p^(k-1)``, where p is the share of validation images on which
the pair agrees as little. If the frame is like those, the bet gains nothing on average, so the running product, which
never falls below 1, reaches a limit L by chance once in L frames at most (a CUSUM e-detector, arXiv 2203.03532). The
logarithm of that product is the evidence. A scene that stands still is one image, however many frames show it: a bet
counts by how much the features of either device have changed since the frame before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from devit_contract.arrays import Float32Array, Float64Array
from devit_contract.artefacts.agreement import Usual, rarities

_FRAMES_PER_FALSE_ALARM = 1_000_000
_BET = 0.5
"""k above: smaller ones win more on pairs that never agree, and less on those that agree too little."""
_CLOSE = 0.25
"""Of the limit: below, a pair agrees. In between it does neither, so that nobody is named while all evidence grows."""
_MOST_CULPRITS = 3
"""At the same time: that more lie than that is told, but not who."""
_ROOM = 2.0
"""How far evidence rises above the limit: the more, the longer a device that is right again waits."""


class Evidence:
    """The evidence against each pair of one cell's devices."""

    def __init__(self, usual: Usual, devices: int) -> None:
        """Start with none."""
        self.of_pairs: Float64Array = np.zeros((devices, devices))
        """Symmetric, from 0 to a little above the limit."""
        pairs = max(1, devices * (devices - 1) // 2)
        self.limit = math.log(pairs * _FRAMES_PER_FALSE_ALARM)
        """From here on a pair disagrees."""
        p = rarities(usual.images)
        self._gains = math.log(_BET) + (_BET - 1) * np.log(p)
        self._usual = np.full((devices, devices, usual.agreements.shape[1]), -np.inf, np.float32)
        for rows in (np.triu_indices(devices, 1), np.triu_indices(devices, 1)[::-1]):
            self._usual[rows] = usual.agreements

    def gains(self, devices: Sequence[int], agreements: Float32Array) -> Float64Array:
        """Give what the bets of frames gain, from the agreements ``(..., devices, devices)`` of those in them."""
        usual = self._usual if len(devices) == len(self._usual) else self._usual[np.ix_(devices, devices)]
        return np.asarray(self._gains[np.count_nonzero(usual <= agreements[..., None], axis=-1)], np.float64)

    def add(self, devices: Sequence[int], gains: Float64Array, changes: Float64Array) -> None:
        """Take in a frame; ``changes`` of each device, 0 to 1, is how much its feature is another than before."""
        where = slice(None) if len(devices) == len(self._usual) else np.ix_(devices, devices)
        added = np.maximum(changes[:, None], changes) * gains
        self.of_pairs[where] = np.minimum(np.maximum(self.of_pairs[where] + added, 0.0), self.limit + _ROOM)

    def forget(self, device: int) -> None:
        """Begin anew with a device."""
        self.of_pairs[device] = self.of_pairs[:, device] = 0.0

    def against(self, device: int, others: Iterable[int]) -> float:
        """Tell what at least two of the others have against a device, or the only one: a share of the limit, 0 to 1."""
        found = sorted((float(self.of_pairs[device, other]) for other in others if other != device), reverse=True)
        return min(1.0, found[:2][-1] / self.limit) if found else 0.0

    def culprits(self, devices: Iterable[int]) -> set[int]:
        """Find the fewest devices without which all others agree, if that is one set alone, by all evidence or much.

        Two others at least have to accuse each of them.
        """
        present = sorted(devices)
        most = min(len(present) // 2, _MOST_CULPRITS)
        found, by_much = (_smallest_cover(self._pairs(present, share), most) for share in (_CLOSE, 1.0))
        rest = set(present) - found
        if found != by_much or len(rest) < 2:
            return set()
        return {device for device in found if self.against(device, rest) >= 1.0}

    def is_clear_of(self, device: int, others: Iterable[int]) -> bool:
        """Tell whether a device agrees with all others."""
        return all(self.of_pairs[device, other] < _CLOSE * self.limit for other in others)

    def _pairs(self, devices: Sequence[int], share: float) -> frozenset[tuple[int, int]]:
        """List the pairs with at least so much evidence, as a share of the limit."""
        return frozenset(pair for pair in combinations(devices, 2) if self.of_pairs[pair] >= share * self.limit)


@lru_cache(maxsize=64)
def _smallest_cover(pairs: frozenset[tuple[int, int]], most: int) -> frozenset[int]:
    """Find the smallest set, of so many at most, that holds one of each pair; empty if there is none, or several."""
    for size in range(1, most + 1):
        if found := _covers(pairs, size):
            return found.pop() if len(found) == 1 else frozenset()
    return frozenset()


def _covers(pairs: frozenset[tuple[int, int]], size: int) -> set[frozenset[int]]:
    """Find the sets of at most so many that hold one of each pair: of any pair, that is the one or the other."""
    if not pairs:
        return {frozenset()}
    if size == 0:
        return set()
    return {
        cover | {device}
        for device in next(iter(pairs))
        for cover in _covers(frozenset(pair for pair in pairs if device not in pair), size - 1)
    }
