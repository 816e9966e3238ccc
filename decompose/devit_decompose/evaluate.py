"""How good the parts and the whole are: features, their statistics, the accuracy of every subset of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from devit_contract.head import Float32Array, Fusion, FusionStatistics
from devit_decompose.data import Int64Array, Split, UInt8Array
from devit_decompose.model import Model

_BATCH = 500


def run(function: Callable[[Tensor], Tensor], images: UInt8Array) -> Float32Array:
    """Apply a model to uint8 images ``(n, H, W, C)`` batch by batch, in float32, without gradients."""
    with torch.inference_mode():
        parts = [
            function(torch.from_numpy(images[start : start + _BATCH].copy())).float().numpy()
            for start in range(0, len(images), _BATCH)
        ]
    return np.concatenate(parts)


def accuracy(logits: npt.NDArray[np.floating], labels: Int64Array) -> float:
    """Share of images, in 0 to 1, whose largest logit is the label's."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def score_of(module: nn.Module, split: Split) -> Callable[[], float]:
    """Make the judge of a stage that trains one model."""
    return lambda: accuracy(run(module, split.images), split.labels)


def joined_features(submodels: Sequence[Model], images: UInt8Array) -> Float32Array:
    """Features of all submodels side by side, ``(n, sum of dims)``."""
    return np.concatenate([run(model.features, images) for model in submodels], axis=1)


def statistics_of(features: Float32Array) -> FusionStatistics:
    """Mean and covariance of concatenated features ``(n, sum of dims)``."""
    exact = features.astype(np.float64)
    return FusionStatistics(exact.mean(axis=0), np.cov(exact, rowvar=False))


def subset_accuracies(fusion: Fusion, features: Float32Array, labels: Int64Array) -> dict[int, float]:
    """Accuracy of each of the 2^N - 1 subsets of devices, by mask."""
    return {mask: accuracy(fusion.batch_logits(features, mask), labels) for mask in range(1, fusion.head.everyone + 1)}
