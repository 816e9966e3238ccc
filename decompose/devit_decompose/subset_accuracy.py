"""How good the parts and the whole are: features, their statistics, the accuracy of every subset of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from devit_contract.arrays import Float32Array, Int64Array
from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics, columns_of
from devit_decompose.data.splits import Images, Split
from devit_decompose.decomposition import SubsetRecord
from devit_decompose.models.model import Model
from devit_decompose.training.accelerator import Machine

_BATCH = 500


def run(function: Callable[[Tensor], Tensor], images: Images, device: torch.device | None = None) -> Float32Array:
    """Apply a model to uint8 images ``(n, H, W, C)`` batch by batch, in float32, without gradients.

    Args:
        function: From a batch ``(B, H, W, C)`` to ``(B, dim)``.
        images: All of them.
        device: Where the model is; by default that of ``function`` if it is a module, else the CPU.
    """
    if device is None and isinstance(function, nn.Module):
        device = next(function.parameters()).device
    with torch.inference_mode():
        parts = [
            function(torch.from_numpy(images[start : start + _BATCH].copy()).to(device)).float().cpu().numpy()
            for start in range(0, len(images), _BATCH)
        ]
    return np.concatenate(parts)


def accuracy(logits: npt.NDArray[np.floating], labels: Int64Array) -> float:
    """Share of images, in 0 to 1, whose largest logit is the label's."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def score_of(module: nn.Module, split: Split, machine: Machine) -> Callable[[], float]:
    """Make the judge of a stage: accuracy over a split that all processes share out among themselves."""

    def score() -> float:
        mine = np.arange(machine.rank, len(split), machine.world)
        correct = accuracy(run(module, split.images[mine]), split.labels[mine]) * len(mine) if len(mine) else 0.0
        return machine.sum(round(correct)) / len(split)

    return score


def joined_features(submodels: Sequence[Model], images: Images) -> Float32Array:
    """Features of all submodels side by side, ``(n, sum of dims)``."""
    return np.concatenate([run(model.features, images, next(model.parameters()).device) for model in submodels], axis=1)


def statistics_of(features: Float32Array) -> FusionStatistics:
    """Mean and covariance of concatenated features ``(n, sum of dims)``."""
    exact = features.astype(np.float64)
    return FusionStatistics(exact.mean(axis=0), np.cov(exact, rowvar=False))


def subset_records(
    head: FusionHead,
    validation_features: Float32Array,
    validation_labels: Int64Array,
    test_features: Float32Array,
    test_labels: Int64Array,
) -> tuple[SubsetRecord, ...]:
    """Measure each of the 2^N - 1 subsets of devices, by rising mask, features ``(n, sum of dims)``.

    Beside the conditional mean, which the node uses, stand the two simple ways to fill a missing place.
    """
    fusion = Fusion(head)
    return tuple(
        SubsetRecord(
            mask=mask,
            validation_accuracy=accuracy(fusion.batch_logits(validation_features, mask), validation_labels),
            test_accuracy=accuracy(fusion.batch_logits(test_features, mask), test_labels),
            test_accuracy_with_zeros=accuracy(filled_logits(head, test_features, mask, 0.0), test_labels),
            test_accuracy_with_mean=accuracy(
                filled_logits(head, test_features, mask, head.statistics.mean), test_labels
            ),
        )
        for mask in range(1, head.everyone + 1)
    )


def filled_logits(
    head: FusionHead, features: Float32Array, mask: int, filling: float | npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Fuse features ``(n, sum of dims)`` after putting a constant into the places of the missing devices.

    Args:
        head: The fusion.
        features: Of all devices.
        mask: The devices present.
        filling: One number, or one for each column, shape ``(sum of dims,)``.
    """
    _, missing = columns_of(head.dims, mask)
    filled = features.astype(np.float64)
    filled[:, missing] = np.broadcast_to(filling, filled.shape[1:])[missing]
    return filled @ head.weight.T + head.bias
