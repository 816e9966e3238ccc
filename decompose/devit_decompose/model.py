"""The models: a compact convolutional transformer (CCT), whole and as submodels, told by lists per block.

CCT (Hassani et al., arXiv 2104.05704) is one of DeViT's three backbones: a convolutional tokenizer, transformer
blocks whose second norm sits on the residual stream, and a pooling that weighs the tokens instead of a class token.
Attention is written out with the query scaled first, since exported fused attention has been compiled wrongly
(TensorRT issues 4328, 4333, 4558, 4742); no tensor has more than four dimensions.

Shapes: B images, H x W pixels, C colours, T tokens, D width, h heads, k numbers in a head, K classes.
"""

from __future__ import annotations

import math

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional


class StemLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One convolution of the tokenizer, with ReLU behind it."""

    width: int
    """Output channels; the last layer's is the width D of the tokens."""
    kernel: int = 3
    stride: int = 1
    batch_norm: bool = True
    max_pool: bool = False
    """A 3 x 3 maximum pooling of stride 2 behind the ReLU, as in the CCT of the paper."""


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is needed to build a model and to count its cost; one list entry per block."""

    backbone: str
    image_size: tuple[int, int, int]
    """Height, width, colours of the uint8 input."""
    mean: tuple[float, ...]
    """Per colour, of pixels in 0 to 1."""
    std: tuple[float, ...]
    stem: tuple[StemLayer, ...]
    heads: tuple[int, ...]
    """Attention heads of each block."""
    head_widths: tuple[int, ...]
    """Numbers per head of each block: 16 to 256 in steps of 8, what fused attention takes."""
    softmax_scales: tuple[float, ...]
    """What the query is multiplied by in each block; stored, so that pruning a head leaves it as it was."""
    neurons: tuple[int, ...]
    """Hidden neurons of each block's MLP."""
    classes: tuple[int, ...]
    """Global labels that the model's own head tells apart, in the order of its outputs."""

    def __post_init__(self) -> None:
        """Refuse lists that do not fit together."""
        lengths = {len(self.heads), len(self.head_widths), len(self.softmax_scales), len(self.neurons)}
        if len(lengths) != 1 or not self.heads:
            raise ValueError(f"heads, head_widths, softmax_scales and neurons differ in length: {sorted(lengths)}")
        if self.backbone != "cct":
            raise ValueError(f"backbone: expected cct, found {self.backbone!r}")
        if not len(self.mean) == len(self.std) == self.image_size[2]:
            raise ValueError(f"mean and std need one number for each of the {self.image_size[2]} colours")
        if not self.stem:
            raise ValueError("stem: expected at least one layer, found none")

    @property
    def width(self) -> int:
        """D, numbers per token, and the feature dimension."""
        return self.stem[-1].width

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        height, width = self.image_size[:2]
        for layer in self.stem:
            height, width = (-(-side // layer.stride) for side in (height, width))
            if layer.max_pool:
                height, width = (-(-side // 2) for side in (height, width))
        return height, width


def cct_config(
    *,
    image_size: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    stem: tuple[StemLayer, ...],
    depth: int,
    heads: int,
    mlp_ratio: float,
    classes: tuple[int, ...],
) -> ModelConfig:
    """Spell out a CCT whose blocks are all alike."""
    width = stem[-1].width
    head_width = width // heads
    return ModelConfig(
        backbone="cct",
        image_size=image_size,
        mean=mean,
        std=std,
        stem=stem,
        heads=(heads,) * depth,
        head_widths=(head_width,) * depth,
        softmax_scales=(1.0 / math.sqrt(head_width),) * depth,
        neurons=(round(width * mlp_ratio),) * depth,
        classes=classes,
    )


class Model(nn.Module):
    """uint8 images in, features or logits out; one class for the teacher and for every submodel."""

    def __init__(self, config: ModelConfig) -> None:
        """Build with fresh weights; the caller seeds torch."""
        super().__init__()
        self.config = config
        rows, columns = config.token_grid
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(config.mean).mul(255.0), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.std).mul(255.0), persistent=False)
        self.tokenizer = Tokenizer(config)
        self.positions = nn.Parameter(torch.zeros(1, rows * columns, config.width))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(len(config.heads)))
        self.norm = nn.LayerNorm(config.width)
        self.pool = nn.Linear(config.width, 1)
        self.head = nn.Linear(config.width, len(config.classes))
        self.apply(_initialise)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def features(self, images: Tensor) -> Tensor:
        """Map uint8 images ``(B, H, W, C)`` to features ``(B, D)``, the sequence-pooled vector."""
        pixels = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        tokens = self.tokenizer(pixels.permute(0, 3, 1, 2)) + self.positions  # (B, T, D)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        weights = self.pool(tokens).transpose(1, 2).softmax(dim=-1)  # (B, 1, T)
        pooled: Tensor = weights @ tokens
        return pooled.flatten(1)  # (B, 1, T) @ (B, T, D) -> (B, D)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images ``(B, H, W, C)`` to logits ``(B, K)``."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Tokenizer(nn.Module):
    """Convolutions that turn an image into tokens."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers of ``config.stem``."""
        super().__init__()
        channels = config.image_size[2]
        layers: list[nn.Module] = []
        for layer in config.stem:
            layers.append(
                nn.Conv2d(
                    channels,
                    layer.width,
                    layer.kernel,
                    layer.stride,
                    padding=layer.kernel // 2,
                    bias=not layer.batch_norm,
                )
            )
            if layer.batch_norm:
                layers.append(nn.BatchNorm2d(layer.width))
            layers.append(nn.ReLU())
            if layer.max_pool:
                layers.append(nn.MaxPool2d(3, 2, padding=1))
            channels = layer.width
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map normalised images ``(B, C, H, W)`` to tokens ``(B, T, D)``."""
        maps: Tensor = self.layers(pixels)
        return maps.flatten(2).transpose(1, 2)  # (B, D, rows, columns) -> (B, T, D)


class Block(nn.Module):
    """One transformer block of CCT: attention, a norm on the residual stream, MLP."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        """Build block ``index`` of ``config``."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config, index)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, config.neurons[index])
        self.contract = nn.Linear(config.neurons[index], config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(B, T, D)`` to tokens of the same shape."""
        tokens = self.mlp_norm(tokens + self.attention(self.attention_norm(tokens)))
        mlp: Tensor = self.contract(functional.gelu(self.expand(tokens)))
        return tokens + mlp


class Attention(nn.Module):
    """Multi-head self-attention, written out."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        """Build the attention of block ``index``."""
        super().__init__()
        self.heads = config.heads[index]
        self.head_width = config.head_widths[index]
        self.scale = config.softmax_scales[index]
        inner = self.heads * self.head_width
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key = nn.Linear(config.width, inner, bias=False)
        self.value = nn.Linear(config.width, inner, bias=False)
        self.project = nn.Linear(inner, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(B, T, D)`` to tokens of the same shape."""
        query = self._split(self.query(tokens)) * self.scale
        weights = (query @ self._split(self.key(tokens)).transpose(2, 3)).softmax(dim=-1)  # (B, h, T, T)
        mixed = (weights @ self._split(self.value(tokens))).transpose(1, 2).flatten(2)  # (B, h, T, k) -> (B, T, h k)
        projected: Tensor = self.project(mixed)
        return projected

    def _split(self, flat: Tensor) -> Tensor:
        batch, tokens, _ = flat.shape
        return flat.reshape(batch, tokens, self.heads, self.head_width).transpose(1, 2)  # (B, T, h k) -> (B, h, T, k)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
