"""Leaves devices out in training, and fills their place exactly as the fusion node does."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from devit_contract.artefacts.head import columns_of, mask_of, prediction


class Failout(nn.Module):
    """Replaces the features of randomly chosen devices by their prediction from those of the others.

    With a chance, each device is left out by it, and there is one subset for a batch; without, there is one of every
    size from 1 to N - 1.

    Mean and covariance are running ones, kept as buffers: a checkpoint holds them, and all processes share them.
    """

    def __init__(self, dims: tuple[int, ...], chance: float | None, seed: int) -> None:
        """Start without statistics."""
        super().__init__()
        size = sum(dims)
        self.dims = dims
        self.chance = chance
        self.mean: Tensor
        self.covariance: Tensor
        self.steps: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("covariance", torch.zeros(size, size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._seed = seed

    def forward(self, features: Tensor) -> list[Tensor]:
        """Map all devices' features side by side, ``(B, sum of dims)``, to some of them replaced: once a subset."""
        self._note(features.detach())
        return [self._filled(features, mask) for mask in self.draw()]

    def draw(self) -> list[int]:
        """Draw the masks of the present devices, by the number of steps: a resumed run leaves out the same ones."""
        generator = np.random.default_rng((self._seed, int(self.steps)))
        if self.chance is None:
            orders = [generator.permutation(len(self.dims)).tolist() for _ in self.dims[1:]]
            return [mask_of(sorted(order[:size])) for size, order in enumerate(orders, start=1)]
        is_kept = generator.random(len(self.dims)) >= self.chance
        if not is_kept.any():
            is_kept[generator.integers(len(self.dims))] = True
        return [mask_of([int(device) for device in np.flatnonzero(is_kept)])]

    def _filled(self, features: Tensor, mask: int) -> Tensor:
        present, missing = columns_of(self.dims, mask)
        if len(missing) == 0:
            return features
        covariance = self.covariance.double().cpu().numpy()
        predict = torch.from_numpy(prediction(covariance, present, missing)).to(features)  # (missing, present)
        guess = self.mean[missing] + (features[:, present] - self.mean[present]) @ predict.T
        filled = features.clone()
        filled[:, missing] = guess
        return filled

    def _note(self, features: Tensor) -> None:
        steps = float(self.steps)
        keep = min(0.99, steps / (steps + 1.0))
        self.mean.mul_(keep).add_(features.mean(dim=0), alpha=1 - keep)
        centred = features - self.mean
        self.covariance.mul_(keep).add_(centred.T @ centred, alpha=(1 - keep) / len(features))
        self.steps += 1
