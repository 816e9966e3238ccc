"""Takes what all channels of a token have in common out of a model's residual stream, at no cost and with no effect.

Every reader of the stream is a LayerNorm, which subtracts the mean over the channels first, so layers may write to it
without that mean. It matters because ONNX Runtime up to 1.26 (1.23.2 is the last for Python 3.10) computes the variance
of a norm as the mean square minus the square of the mean: where the mean is large beside the spread, rounding decides,
and a flat token gives NaN. In FP16, the offset would cost the stream bits as well.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from devit_decompose.models.model import Block, Model


def centred(model: Model) -> Model:
    """Copy a model as one with the same answers, whose tokens have mean 0 whatever the image.

    What a CCT's second norm writes keeps the part of the mean that differs from token to token; it is at most as large
    as the norm's own gain.
    """
    copied = copy.deepcopy(model)
    with torch.no_grad():
        last = copied.tokenizer.layers[-1]
        if isinstance(last, nn.Conv2d):
            _centre_output(last)
        else:  # a ReLU, or the maximum of some: no weights behind it could be changed
            copied.tokenizer.layers.append(_Centre(model.config.width))
        for added in (copied.positions, copied.prefix):
            if added is not None:
                _centre(added, -1)
        for block in copied.block_list():
            _centre_output(block.attention.project)
            _centre_output(block.contract)
            if block.norm_on_stream:
                _move_offset(block)
    return copied


class _Centre(nn.Module):
    """Subtracts the mean over the channels; by a convolution, as the rules take a ReduceMean for part of a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Conv2d(channels, 1, 1, bias=False)
        nn.init.constant_(self.mean.weight, 1.0 / channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(B, D, rows, columns)`` to the same shape."""
        centred_maps: Tensor = maps - self.mean(maps)
        return centred_maps


def _move_offset(block: Block) -> None:
    """Let a CCT's second norm write no offset; the MLP, which reads it without a norm, gets it by its own bias."""
    offset = block.mlp_norm.bias.double().mean()
    block.expand.bias.add_((offset * block.expand.weight.double().sum(dim=1)).float())
    _centre(block.mlp_norm.bias, 0)


def _centre_output(layer: nn.Linear | nn.Conv2d) -> None:
    _centre(layer.weight, 0)
    if layer.bias is not None:
        _centre(layer.bias, 0)


def _centre(weight: Tensor, channels: int) -> None:
    """Subtract the mean over one axis, rounded once."""
    exact = weight.double()
    weight.copy_(exact - exact.mean(dim=channels, keepdim=True))
