"""The gate: which outputs of a graph or an engine pass as what was trained, by its variant.

The workstation holds each variant against it when a bundle is made, and each device every engine that it has built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.head import FusionHead
from devit_contract.binomial import upper_bound
from devit_contract.choices import Variant

ENOUGH_IMAGES = 256
"""If none of these flips, at most 1.2 % do (95 %); fewer are noted in ``engine.json``, and told by ``devit build``."""


class Thresholds(NamedTuple):
    """What the outputs of a variant have to keep. Beside that, no answer flips whose margin is above the smallest."""

    cosine_min: float
    cosine_median: float
    relative_l2: float


_FLOAT = Thresholds(0.995, 0.999, 0.03)
"""Rounding to FP16 stays far inside: what is beyond is a fault."""
_INT8 = Thresholds(0.97, 0.995, 0.10)
"""Rounding to INT8 is no fault. Of the shipped graphs, all products in INT8, the worst image has a cosine of 0.9865 and
the median one 0.9996, and the relative error is 3.1 %; one fused answer in a thousand is lost."""
_FP8 = Thresholds(0.95, 0.995, 0.10)
"""Four significant bits are fewer than INT8 has. Of the same graphs, all products in FP8, the worst image has a cosine
of 0.9774 and the median one 0.9991, and the relative error is 2.0 to 3.9 %; the fused cell answers as often rightly."""
THRESHOLDS: dict[Variant, Thresholds] = {
    "fp8-fp16": _FP8,
    "int8-fp16": _INT8,
    "int8": _INT8,
    "fp16": _FLOAT,
    "fp16-attn32": _FLOAT,
    "fp32": _FLOAT,
}


class AccuracyResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures of one engine over the golden images; kept in ``engine.json``."""

    images: int
    non_finite: int
    """Output numbers that are NaN or infinite; where there are any, the other figures are NaN."""
    cosine_min: float
    """Smallest cosine between an image's output and its reference, the reference's mean removed from both."""
    cosine_median: float
    relative_l2: float
    """Norm of all differences over the norm of all references."""
    max_abs_error: float
    flips: int
    """Images whose answer changed when this engine's output took the place of the reference."""
    flips_above_margin: int
    """Those of them whose reference margin is above ``margin``."""
    margin: float
    """5th percentile over the images of the distance between the largest and second largest reference logit."""
    flip_rate_bound: float
    """Upper bound of the share of all images that flip, at 95 % confidence (Clopper-Pearson), in 0 to 1."""

    def failures(self, variant: Variant) -> list[str]:
        """Name every figure that misses the threshold of a variant; a NaN misses it."""
        if self.non_finite:
            return [f"{self.non_finite} output numbers are NaN or infinite, expected none"]
        found, least = [], THRESHOLDS[variant]
        if not self.cosine_min >= least.cosine_min:
            found.append(f"smallest cosine {self.cosine_min:.4f}, expected at least {least.cosine_min}")
        if not self.cosine_median >= least.cosine_median:
            found.append(f"median cosine {self.cosine_median:.4f}, expected at least {least.cosine_median}")
        if not self.relative_l2 <= least.relative_l2:
            found.append(f"relative L2 error {self.relative_l2:.2%}, expected at most {least.relative_l2:.0%}")
        if self.flips_above_margin:
            found.append(f"{self.flips_above_margin} of {self.images} answers flipped, expected none")
        return found

    def doubt(self) -> str:
        """Say what too few images leave open; empty where they were enough."""
        if self.images >= ENOUGH_IMAGES:
            return ""
        return (
            f"validated with {self.images} golden images, fewer than {ENOUGH_IMAGES}: up to "
            f"{self.flip_rate_bound:.1%} of all answers may be others unseen; raise data.sample_images in the recipe"
        )


@dataclass(frozen=True)
class Reference:
    """What the outputs of one engine are compared with."""

    images: UInt8Array
    """Shape ``(n, H, W, C)``."""
    outputs: Float32Array
    """Shape ``(n, dim)``."""
    logits: Float32Array
    """Shape ``(n, K)``."""
    answer: Callable[[Float32Array], Float32Array]
    """Maps outputs ``(n, dim)`` to logits ``(n, K)``: the fusion with all other features at their reference."""


def compare(outputs: Float32Array, reference: Reference) -> AccuracyResult:
    """Compare outputs ``(n, dim)`` with the reference."""
    count = len(outputs)
    ordered = np.sort(reference.logits, axis=1)  # (n, K)
    margins = ordered[:, -1] - ordered[:, -2]  # (n,)
    margin = _quantile(margins, 0.05)
    non_finite = outputs.size - int(np.count_nonzero(np.isfinite(outputs)))
    if non_finite:
        nan = float("nan")
        return AccuracyResult(count, non_finite, nan, nan, nan, nan, 0, 0, margin, 1.0)
    cosines = _cosines(outputs, reference.outputs)
    difference = outputs.astype(np.float64) - reference.outputs
    flipped = reference.answer(outputs).argmax(axis=1) != reference.logits.argmax(axis=1)  # (n,)
    flips = int(np.count_nonzero(flipped))
    return AccuracyResult(
        images=count,
        non_finite=0,
        cosine_min=float(cosines.min()),
        cosine_median=_quantile(cosines, 0.5),
        relative_l2=_ratio(float(np.linalg.norm(difference)), float(np.linalg.norm(reference.outputs))),
        max_abs_error=float(np.abs(difference).max()),
        flips=flips,
        flips_above_margin=int(np.count_nonzero(flipped & (margins > margin))),
        margin=margin,
        flip_rate_bound=upper_bound(flips, count),
    )


def fused_with(
    head: FusionHead, features: Sequence[Float32Array], device: int
) -> Callable[[Float32Array], Float32Array]:
    """Map outputs of one device ``(n, dim)`` to logits ``(n, K)``, the features of the others being these."""
    all_devices = head.subset(head.all_devices)

    def answer(outputs: Float32Array) -> Float32Array:
        joined = np.concatenate([*features[:device], outputs, *features[device + 1 :]], axis=1)  # (n, sum of dims)
        return joined @ all_devices.weight.T + all_devices.bias

    return answer


def _cosines(outputs: Float32Array, references: Float32Array) -> npt.NDArray[np.float64]:
    """Cosine of each pair of rows, the references' mean removed from both; 1 where both rows are the mean itself.

    Without the removal, what all images have in common would hide what tells them apart.
    """
    mean = references.mean(axis=0, dtype=np.float64)
    left, right = outputs - mean, references - mean
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = np.einsum("nd,nd->n", left, right) / np.where(norms > 0.0, norms, 1.0)
    both_are_mean = (left == 0.0).all(axis=1) & (right == 0.0).all(axis=1)
    return np.where(both_are_mean, 1.0, cosines)


def _quantile(values: npt.NDArray[np.floating], share: float) -> float:
    """As ``np.quantile``, whose first call imports numpy.ma: 2 MB of every agent."""
    return float(np.interp(share * (len(values) - 1), np.arange(len(values)), np.sort(values)))


def _ratio(error: float, size: float) -> float:
    if size > 0.0:
        return error / size
    return 0.0 if error == 0.0 else float("inf")
