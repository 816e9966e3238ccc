"""A device's view of the scene as a layer, so that a submodel can be trained on images of the whole scene."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from devit_contract.views import STEPS, View


class Look(nn.Module):
    """Makes a view of each image, the same as :meth:`devit_contract.views.View.of`; it has no weights."""

    def __init__(self, view: View, height: int, width: int) -> None:
        """Look at images of this size."""
        super().__init__()
        places, weights = view.taps(height, width)
        self.places: Tensor
        self.weights: Tensor
        self.register_buffer("places", torch.from_numpy(places), persistent=False)
        self.register_buffer("weights", torch.from_numpy(weights)[..., None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, H, W, C)``, uint8 or mixed ones in float32, to views of the same type."""
        batch, _, _, channels = images.shape
        is_whole = images.dtype is torch.uint8
        black = images.new_zeros((batch, 1, channels))
        pixels = torch.cat([images.flatten(1, 2), black], dim=1)  # (B, H W + 1, C)
        total = torch.zeros(images.shape, dtype=torch.int32 if is_whole else images.dtype, device=images.device)
        for places, weights in zip(self.places, self.weights, strict=True):
            total = total + pixels[:, places] * weights  # (B, H, W, C)
        if is_whole:
            return ((total + STEPS**2 // 2) // STEPS**2).to(torch.uint8)
        return total / STEPS**2
