"""What a policy makes of images whose features are known: which devices it asks, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from devit_contract.arrays import Float32Array, Float64Array, Int64Array
from devit_contract.artefacts.calibration import Scores
from devit_contract.artefacts.head import Fusion, FusionHead, mask_of
from devit_contract.choices import Policy
from devit_contract.errors import InputError

Path = tuple[int, ...]
"""The subsets of devices that a frame may be answered by, in turn, as masks: each holds the one before, and the last
one's answer is final."""
DEFAULT_STAGES = (1, 1)
"""Devices asked in each stage; the rest follows."""


class Judged:
    """Answers and scores of subsets of devices over the same images; a subset is computed when it is first needed."""

    def __init__(self, head: FusionHead, features: Float32Array) -> None:
        """Take the features of all devices, ``(n, sum of dims)``."""
        self.head = head
        self.images = len(features)
        self._features = features
        self._fusion = Fusion(head)
        self._kept: dict[int, tuple[Int64Array, Float32Array]] = {}

    def answers(self, mask: int) -> Int64Array:
        """Give the class of each image ``(n,)``."""
        return self._of(mask)[0]

    def scores(self, mask: int) -> Float32Array:
        """Give the score of each answer ``(n,)``; of all devices together there is none to compare."""
        return self._of(mask)[1]

    def _of(self, mask: int) -> tuple[Int64Array, Float32Array]:
        if mask not in self._kept:
            logits = self._fusion.batch_logits(self._features, mask)
            scores = Scores(self.head, mask).of_batch(logits)
            self._kept[mask] = np.asarray(logits.argmax(axis=1), np.int64), scores
        return self._kept[mask]


@dataclass(frozen=True)
class Played:
    """What became of images ``(n,)`` on each path ``(p,)``."""

    paths: tuple[Path, ...]
    answers: Int64Array
    """Classes, ``(p, n)``."""
    stages: Int64Array
    """How many stages it took, from 1, ``(p, n)``."""

    def of_asked(self, figure: Callable[[int], float]) -> Float64Array:
        """Look up a figure of the devices that were asked, by their mask, ``(p, n)``."""
        figures = np.asarray([[figure(mask) for mask in path] for path in self.paths], np.float64)
        return np.take_along_axis(figures, self.stages - 1, axis=1)

    def in_turn(self) -> Int64Array:
        """Give one answer to each image ``(n,)``, on the paths in turn, as a node does."""
        images = np.arange(self.answers.shape[1])
        return self.answers[images % len(self.paths), images]


def play(judged: Judged, paths: tuple[Path, ...], thresholds: Mapping[int, float]) -> Played:
    """Answer every image on every path; all paths have as many stages.

    ``thresholds`` has the score from which on a subset's answer is certain, by its mask.
    """
    answers, stages = (np.empty((len(paths), judged.images), np.int64) for _ in range(2))
    for row, path in enumerate(paths):
        is_open = np.ones(judged.images, np.bool_)
        for stage, mask in enumerate(path, start=1):
            ends = is_open
            if stage < len(path):
                ends = is_open & (judged.scores(mask) >= thresholds[mask])
            answers[row, ends], stages[row, ends] = judged.answers(mask)[ends], stage
            is_open = is_open & ~ends
    return Played(paths, answers, stages)


def paths_of(policy: Policy, stages: Sequence[int], orders: Sequence[Sequence[int]]) -> tuple[Path, ...]:
    """List the paths of a policy; each order names all devices, and begins with those to be asked first.

    >>> paths_of("certain", (1, 1, 2), [[2, 3, 0, 1]]), paths_of("single", (), [[2, 3, 0, 1]])
    (((4, 12, 15),), ((4,),))
    """
    if policy == "all":
        return ((mask_of(list(orders[0])),),)
    if policy == "certain":
        return tuple(tuple(mask_of(list(order[:count])) for count in accumulate(stages)) for order in orders)
    return tuple((1 << order[0],) for order in (orders[:1] if policy == "single" else orders))


def rotations(devices: int) -> list[list[int]]:
    """List the orders that begin with each device in turn.

    >>> rotations(3)
    [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    return [[(first + step) % devices for step in range(devices)] for first in range(devices)]


def complete_stages(stages: Sequence[int], devices: int) -> tuple[int, ...]:
    """Name all devices: those left over are the last stage.

    >>> complete_stages((1, 1), 4), complete_stages((1, 1, 2), 4), complete_stages((1, 1), 1)
    ((1, 1, 2), (1, 1, 2), (1,))
    """
    ends = [min(end, devices) for end in accumulate(stages)]
    ends = sorted({*ends, devices})
    return tuple(end - before for before, end in zip([0, *ends], ends, strict=False))


def parse_stages(text: str, devices: int) -> tuple[int, ...]:
    """Read stages such as ``1-1-2``; devices that are not named are the last one.

    Raises:
        InputError: It is something else, or names more devices than there are.
    """
    words = text.split("-")
    stages = [int(word) for word in words if word.isdecimal()]
    if len(stages) < len(words) or 0 in stages or sum(stages) > devices:
        hint = "name how many are asked in each stage, e.g. 1-1"
        raise InputError(f"stages: expected {devices} devices at most, e.g. 1-{devices - 1}, found {text!r}: {hint}")
    return complete_stages(stages, devices)
