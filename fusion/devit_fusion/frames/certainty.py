"""Whether the answer of some devices is certain: what is calibrated, applied to one frame at a time.

What a subset's score takes is computed when a frame needs it. Where that is long, a thread does it, and until then no
answer of that subset is certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.calibration import Calibration, Scores
from devit_contract.artefacts.fleet import Certain
from devit_contract.artefacts.head import Fusion, FusionHead, columns_of, mask_of

_QUICK_MACS = 70_000_000
"""Multiply-accumulates of what is computed while its first frame waits: less than 20 ms of one core."""
_MAX_KEPT_BYTES = 64 << 20
"""Of all scores: clients choose the subsets. With 1,000 classes, one takes 4 MB."""


class Verdict(NamedTuple):
    """What a test said."""

    score: float
    threshold: float
    logits: Float32Array
    """Of the features tested, shape ``(K,)``."""

    @property
    def is_certain(self) -> bool:
        """Whether the promise holds for this answer; never with a score that is no number."""
        return self.score >= self.threshold


class Certainty:
    """The scores and thresholds of one node's subsets of devices."""

    def __init__(self, fusion: Fusion, calibration: Calibration, certain: Certain, *, tests: Iterable[int]) -> None:
        """Look up all thresholds, for frames that are tested as many times as ``tests`` says: that may take long."""
        self._fusion = fusion
        self._thresholds = {
            count: {
                mask: calibration.threshold(mask, flips=certain.flips, confidence=certain.confidence, tests=count)
                for mask in calibration.flips
            }
            for count in tests
            if count
        }
        self._scores: dict[int, Scores] = {}
        self._most_kept = max(1, _MAX_KEPT_BYTES // (4 * len(fusion.head.bias) ** 2))
        self._worker = ThreadPoolExecutor(1, "scores")
        self._coming: tuple[int, Future[Scores]] | None = None

    def judge(self, features: Mapping[int, Float32Array], tests: int) -> Verdict | None:
        """Test a frame by its features ``(dim,)``; ``None`` if nothing is known of their subset, or not yet."""
        mask = mask_of(features)
        threshold = self._thresholds.get(tests, {}).get(mask, np.inf)
        if threshold == np.inf or not self._fusion.prepare(mask):
            return None
        scores = self._find(mask)
        if scores is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self._fusion.logits(features)
            return Verdict(scores.of(logits), threshold, logits)

    def _find(self, mask: int) -> Scores | None:
        if self._coming is not None and self._coming[1].done():
            (done, future), self._coming = self._coming, None
            self._keep(done, future.result())
        if mask in self._scores:
            self._scores[mask] = self._scores.pop(mask)
        elif _macs(self._fusion.head, mask) <= _QUICK_MACS:
            self._keep(mask, Scores(self._fusion.head, mask))
        elif self._coming is None:
            self._coming = mask, self._worker.submit(Scores, self._fusion.head, mask)
        return self._scores.get(mask)

    def _keep(self, mask: int, scores: Scores) -> None:
        self._scores[mask] = scores
        while len(self._scores) > self._most_kept:
            del self._scores[next(iter(self._scores))]


def _macs(head: FusionHead, mask: int) -> int:
    """Estimate what a subset's scores cost: a linear system, and the products with the missing devices' weights."""
    present, missing = map(len, columns_of(head.dims, mask))
    classes = len(head.bias)
    return present**3 // 3 + (present + classes) * (present + missing) * missing + classes**2 * missing
