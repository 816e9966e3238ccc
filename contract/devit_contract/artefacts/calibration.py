"""``calibration.safetensors``: what the validation part says of answers of some devices alone.

An answer of a subset of devices is *certain* if its score reaches the subset's threshold. The score is the smallest
margin of its class over a rival, in standard deviations of what the missing devices would change (the error covariance
of :mod:`devit_contract.artefacts.head`)::

    score = min over k of (l_c - l_k) / sqrt(U_cc + U_kk - 2 U_ck)          c: the class with the largest logit l

A *flip* is an answer that differs from that of all devices. A frame is tested after each of at most ``tests`` subsets,
so each subset gets an equal part of the promised share and of the error probability: its threshold is the lowest score
above which as many validation images flip as the exact binomial bound allows. By the union bound the promise then holds
for every order of devices that does not depend on the image, whichever are missing. Testing thresholds from the highest
downwards until the first that fails is a fixed-sequence test (Learn then Test, arXiv 2110.01052).

The file also tells what is usual: how well the features of two devices agree, and how far they are from the training
part's mean (:mod:`devit_contract.artefacts.agreement`). The node finds devices that lie, and novel images, by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from devit_contract.arrays import Float32Array, Int64Array
from devit_contract.artefacts.agreement import Comparison, Usual, ranks
from devit_contract.artefacts.files import Tensors, read_tensors, write_tensors
from devit_contract.artefacts.head import Fusion, FusionHead, error_covariance, mask_of
from devit_contract.artefacts.trial import Trial
from devit_contract.binomial import most_within
from devit_contract.errors import ManifestError

MAX_ENUMERATED = 6
"""Up to so many devices, every subset is calibrated; beyond, those that begin anywhere and go on in device order."""
_KEPT_SHARE = 0.1
"""Of the validation images: no useful promise allows more flips."""
_LEAST_VARIANCE = 1e-12
_HINT = "make the bundle again with devit export"


@dataclass(frozen=True)
class Calibration:
    """The flips of each subset over the validation part."""

    images: int
    """In the validation part."""
    flips: Mapping[int, Float32Array]
    """By mask, the scores of the images that flip, highest first; at most a tenth of the images are kept."""
    trial: Trial | None = None
    """For plans; absent where the labels were not known."""
    usual: Usual | None = None
    """How the devices' features agree; absent from older files, and from cells of one device."""

    def threshold(self, mask: int, *, flips: float, confidence: float = 0.95, tests: int = 1) -> float:
        """Give the score from which on an answer of a subset is certain; infinity if none is.

        ``flips`` is the promised share of answers that differ from that of all devices, and ``confidence`` that of the
        promise; ``tests`` is how many subsets of a frame may be tested.

        >>> some = Calibration(1000, {0b01: np.array([5.0, 3.0, 2.0], np.float32)})
        >>> round(some.threshold(0b01, flips=0.005), 6), some.threshold(0b10, flips=0.005)
        (3.0, inf)
        """
        if mask not in self.flips:
            return math.inf
        allowed = _most_within(flips / tests, self.images, 1.0 - (1.0 - confidence) / tests)
        scores = self.flips[mask]
        if allowed < 0:
            return math.inf
        if allowed >= len(scores) < _most_kept(self.images):  # no more than so many flip at all
            return 0.0
        return float(np.nextafter(scores[min(allowed, len(scores) - 1)], np.float32(np.inf)))

    def save(self, path: Path) -> None:
        """Write ``calibration.safetensors``: ``images``, ``flips.<mask>`` of each subset, trial and ``usual.*``."""
        tensors: Tensors = {"images": np.asarray([self.images], np.int64)}
        tensors |= self.trial.tensors() if self.trial is not None else {}
        if self.usual is not None:
            tensors |= {"usual.agreements": self.usual.agreements}
            tensors["usual.closeness"] = np.stack(list(self.usual.closeness.values()))
        write_tensors(path, tensors | {f"flips.{mask}": scores for mask, scores in self.flips.items()})

    @classmethod
    def load(cls, path: Path, *, devices: int, sha256: str = "") -> Calibration:
        """Read ``calibration.safetensors`` of a cell of so many devices.

        Raises:
            InputError: The file cannot be read.
            ManifestError: It has another digest, or holds something else.
        """
        tensors = read_tensors(path, _HINT, sha256=sha256)
        flips: dict[int, Float32Array] = {}
        for name, tensor in tensors.items():
            kind, _, number = name.partition(".")
            if kind == "flips":
                mask = int(number) if number.isdecimal() else 0
                is_sorted = tensor.dtype == np.float32 and tensor.ndim == 1 and bool((np.diff(tensor) <= 0).all())
                if not (0 < mask < (1 << devices) - 1 and is_sorted and np.isfinite(tensor).all()):
                    raise ManifestError(f"{path}: expected falling scores of a subset in {name}, found others: {_HINT}")
                flips[mask] = tensor
        images = tensors.get("images", np.zeros(1, np.int64))
        if images.shape != (1,) or images.dtype != np.int64 or images[0] < 1:
            raise ManifestError(f"{path}: expected the number of validation images, found {images}: {_HINT}")
        try:
            trial = Trial.from_tensors(tensors, devices)
        except ManifestError as err:
            raise ManifestError(f"{path}: {err}: {_HINT}") from err
        return cls(int(images[0]), flips, trial, _usual(path, tensors, int(images[0]), devices))


class Scores:
    """The score of one subset's answers."""

    def __init__(self, head: FusionHead, mask: int) -> None:
        """Compute the standard deviations of all margins, ``(K, K)``."""
        uncertain = error_covariance(head, mask)
        variances = np.diag(uncertain)
        margins = np.maximum(variances[:, None] + variances - 2 * uncertain, _LEAST_VARIANCE)
        self._deviations: Float32Array = np.sqrt(margins).astype(np.float32)

    def of(self, logits: Float32Array) -> float:
        """Give the score of one answer, logits ``(K,)``."""
        top = int(logits.argmax())
        ratios = (logits[top] - logits) / self._deviations[top]
        ratios[top] = np.inf
        return float(ratios.min())

    def of_batch(self, logits: Float32Array) -> Float32Array:
        """Give the scores ``(n,)`` of answers, logits ``(n, K)``."""
        rows, top = np.arange(len(logits)), logits.argmax(axis=1)
        ratios = (logits[rows, top][:, None] - logits) / self._deviations[top]
        ratios[rows, top] = np.inf
        return np.asarray(ratios.min(axis=1), np.float32)


def calibrate(head: FusionHead, features: Float32Array, labels: Int64Array | None = None) -> Calibration:
    """Score the flips of every calibrated subset, over the validation part's features ``(n, sum of dims)``.

    With the labels ``(n,)`` there is a trial too.
    """
    fusion, images, whole = Fusion(head), len(features), head.all_devices
    given = {whole: answers(fusion, features, whole)}
    scores: dict[int, Float32Array] = {}
    flips: dict[int, Float32Array] = {}
    for mask in calibrated_masks(len(head.dims)):
        logits = fusion.batch_logits(features, mask)
        given[mask] = np.asarray(logits.argmax(axis=1), np.int64)
        scores[mask] = Scores(head, mask).of_batch(logits)
        flips[mask] = np.sort(scores[mask][given[mask] != given[whole]])[::-1][: _most_kept(images)].copy()
    trial = Trial.of(scores, given, labels, whole) if labels is not None else None
    usual = Comparison(head).usual(features, _watched_masks(len(head.dims))) if len(head.dims) > 1 else None
    return Calibration(images, flips, trial, usual)


def answers(fusion: Fusion, features: Float32Array, mask: int) -> Int64Array:
    """Answer images ``(n,)`` by a subset of devices, from the features of all ``(n, sum of dims)``."""
    return np.asarray(fusion.batch_logits(features, mask).argmax(axis=1), np.int64)


def calibrated_masks(devices: int) -> list[int]:
    """List the subsets that are calibrated: all but the whole cell, or in a large one, runs of neighbours.

    >>> [bin(mask) for mask in calibrated_masks(2)]
    ['0b1', '0b10']
    """
    if devices <= MAX_ENUMERATED:
        return list(range(1, (1 << devices) - 1))
    return sorted(
        {
            mask_of([(first + step) % devices for step in range(count)])
            for first in range(devices)
            for count in range(1, devices)
        }
    )


def _watched_masks(devices: int) -> list[int]:
    return [*calibrated_masks(devices), (1 << devices) - 1]


def _usual(path: Path, tensors: Tensors, images: int, devices: int) -> Usual | None:
    """Take what is usual from the tensors; older files have none."""
    if not any(name.startswith("usual.") for name in tensors):
        return None
    masks = _watched_masks(devices)
    agreements, closeness = (
        _rising(path, tensors, f"usual.{name}", (rows, len(ranks(images))))
        for name, rows in (("agreements", devices * (devices - 1) // 2), ("closeness", len(masks)))
    )
    return Usual(images, agreements, dict(zip(masks, closeness, strict=True)))


def _rising(path: Path, tensors: Tensors, name: str, shape: tuple[int, int]) -> Float32Array:
    found = tensors.get(name, np.zeros(0))
    if found.shape == shape and found.dtype == np.float32 and np.isfinite(found).all() and (np.diff(found) >= 0).all():
        return np.asarray(found, np.float32)
    raise ManifestError(f"{path}: expected {shape} numbers, rising in each row, in {name}, found others: {_HINT}")


def _most_kept(images: int) -> int:
    return max(1, int(_KEPT_SHARE * images))


@lru_cache(maxsize=256)
def _most_within(share: float, tries: int, confidence: float) -> int:
    return most_within(share, tries, confidence)
