"""The accuracy of every subset of devices, from the features of all submodels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from devit_contract.arrays import Float32Array, Float64Array, Int64Array
from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics, columns_of
from devit_decompose.models.inference import Images, accuracy, run
from devit_decompose.models.model import Model
from devit_decompose.models_folder.decomposition import SubsetRecord


def joined_features(submodels: Sequence[Model], images: Images) -> Float32Array:
    """Features of all submodels side by side, ``(n, sum of dims)``."""
    return np.concatenate([run(model.features, images, next(model.parameters()).device) for model in submodels], axis=1)


def statistics_of(features: Float32Array) -> FusionStatistics:
    """Mean and covariance of concatenated features ``(n, sum of dims)``."""
    exact = features.astype(np.float64)
    return FusionStatistics(exact.mean(axis=0), np.cov(exact, rowvar=False))


def largest_norms(features: Float32Array, dims: Sequence[int]) -> tuple[float, ...]:
    """Of each device, the largest Euclidean norm among its features; all devices' are ``(n, sum of dims)``."""
    parts = np.split(features.astype(np.float64), np.cumsum(dims)[:-1], axis=1)  # each (n, dim)
    return tuple(float(np.linalg.norm(part, axis=1).max()) for part in parts)


def subset_records(
    head: FusionHead,
    validation_features: Float32Array,
    validation_labels: Int64Array,
    test_features: Float32Array,
    test_labels: Int64Array,
) -> tuple[SubsetRecord, ...]:
    """Measure each of the 2^N - 1 subsets of devices, by rising mask, features ``(n, sum of dims)``.

    With the conditional mean for missing features, which the node uses, and with two simpler fillings.
    """
    fusion = Fusion(head)
    with_zeros, with_mean = filled_accuracies(head, test_features, test_labels)
    return tuple(
        SubsetRecord(
            mask=mask,
            validation_accuracy=accuracy(fusion.batch_logits(validation_features, mask), validation_labels),
            test_accuracy=accuracy(fusion.batch_logits(test_features, mask), test_labels),
            test_accuracy_with_zeros=with_zeros[mask],
            test_accuracy_with_mean=with_mean[mask],
        )
        for mask in range(1, head.all_devices + 1)
    )


def filled_accuracies(
    head: FusionHead, features: Float32Array, labels: Int64Array
) -> tuple[dict[int, float], dict[int, float]]:
    """Measure each subset, by its mask, with zeros and with the mean in place of the missing devices' features."""
    with_zeros, with_mean = (
        {
            mask: accuracy(filled_logits(head, features, mask, filling), labels)
            for mask in range(1, head.all_devices + 1)
        }
        for filling in (0.0, head.statistics.mean)
    )
    return with_zeros, with_mean


def filled_logits(head: FusionHead, features: Float32Array, mask: int, filling: float | Float64Array) -> Float64Array:
    """Fuse features ``(n, sum of dims)`` with a constant, or one for each column, in those of the missing devices."""
    _, missing = columns_of(head.dims, mask)
    filled = features.astype(np.float64)
    filled[:, missing] = np.broadcast_to(filling, filled.shape[1:])[missing]
    return filled @ head.weight.T + head.bias
