"""Runs a model over many images, batch by batch, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from devit_contract.arrays import Float32Array

_BATCH = 500


class Images(Protocol):
    """uint8 images, in memory or decoded when they are taken; NumPy arrays fit."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, H, W, C)``."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: npt.NDArray[np.int64] | slice, /) -> npt.NDArray[np.uint8]:
        """Take some, ``(count, H, W, C)``."""
        ...


def run(
    function: Callable[[Tensor], Tensor], images: Images, device: torch.device | None = None, *, batch: int = _BATCH
) -> Float32Array:
    """Apply a model, ``(B, H, W, C)`` to ``(B, dim)``, to uint8 images ``(n, H, W, C)``, in float32.

    ``device`` is where the model is; by default that of ``function`` if it is a module, else the CPU.
    """
    if device is None and isinstance(function, nn.Module):
        device = next(function.parameters()).device
    with torch.inference_mode():
        parts = [
            function(torch.from_numpy(images[start : start + batch].copy()).to(device)).float().cpu().numpy()
            for start in range(0, len(images), batch)
        ]
    return np.concatenate(parts)


def accuracy(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> float:
    """Share of images, in 0 to 1, whose largest logit is the label's."""
    return float(np.mean(logits.argmax(axis=1) == labels))
