"""The models: ViT, DeiT and CCT, whole and as submodels, configured block by block.

DeViT's three backbones differ in four places only, and share the rest:

========  ======================  ============================================  =============================
backbone  tokenizer               block                                         feature
========  ======================  ============================================  =============================
vit       one convolution, whose  norm -> attention -> +, norm -> MLP -> +      class token
deit      kernel is its stride    the same                                      class and distillation token
cct       convolutions with ReLU  norm -> attention -> + -> norm, MLP -> +      sequence pooling: a weighted
          (and maximum pooling)   (second norm on the residual stream)          sum of all tokens
========  ======================  ============================================  =============================

Sources: ViT arXiv 2010.11929, DeiT arXiv 2012.12877, CCT arXiv 2104.05704. Attention is written out with the query
scaled first, since exported fused attention has been compiled wrongly (TensorRT issues 4328, 4333, 4558, 4742); no
tensor has more than four dimensions.

Shapes: B images, H x W pixels, C colours, T tokens, D width, h heads, k numbers in a head, K classes, P prefix tokens
(class and distillation token: ViT 1, DeiT 2, CCT 0).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from devit_contract.views import View
from devit_decompose.models.look import Look

PREFIX_TOKENS = {"vit": 1, "deit": 2, "cct": 0}


class StemLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One convolution of the tokenizer; in a CCT with padding, and followed by ReLU."""

    width: int
    """Output channels; the last layer's is the width D of the tokens."""
    kernel: int = 3
    stride: int = 1
    batch_norm: bool = True
    max_pool: bool = False
    """A 3 x 3 maximum pooling of stride 2 after the ReLU, as in the CCT of the paper."""


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is needed to build a model and to count its cost; one list entry per block."""

    backbone: str
    """``vit``, ``deit`` or ``cct``."""
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
    """Global labels of the outputs of the model's own head, in their order."""

    def __post_init__(self) -> None:
        lengths = {len(self.heads), len(self.head_widths), len(self.softmax_scales), len(self.neurons)}
        if len(lengths) != 1 or not self.heads:
            raise ValueError(f"heads, head_widths, softmax_scales and neurons differ in length: {sorted(lengths)}")
        if self.backbone not in PREFIX_TOKENS:
            raise ValueError(f"backbone: expected one of {', '.join(PREFIX_TOKENS)}, found {self.backbone!r}")
        if not len(self.mean) == len(self.std) == self.image_size[2]:
            raise ValueError(f"mean and std need one number for each of the {self.image_size[2]} colours")
        if not self.stem:
            raise ValueError("stem: expected at least one layer, found none")
        if self.backbone != "cct":
            self._check_patches()

    def _check_patches(self) -> None:
        layer = self.stem[0]
        if len(self.stem) != 1 or layer.kernel != layer.stride or layer.batch_norm or layer.max_pool:
            raise ValueError(
                f"stem: expected one layer for {self.backbone}, with kernel = stride and neither batch_norm nor "
                f"max_pool, found {self.stem}"
            )
        if any(side % layer.stride for side in self.image_size[:2]):
            raise ValueError(f"image_size: expected multiples of the patch {layer.stride}, found {self.image_size[:2]}")

    @property
    def width(self) -> int:
        """D, numbers per token."""
        return self.stem[-1].width

    @property
    def prefix_tokens(self) -> int:
        """P, tokens in front of those of the image."""
        return PREFIX_TOKENS[self.backbone]

    @property
    def feature_dim(self) -> int:
        """Numbers of the feature: D, or 2 D for a DeiT's two tokens."""
        return self.width * max(1, self.prefix_tokens)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        height, width = self.image_size[:2]
        for layer in self.stem:
            height, width = (-(-side // layer.stride) for side in (height, width))
            if layer.max_pool:
                height, width = (-(-side // 2) for side in (height, width))
        return height, width

    @property
    def tokens(self) -> int:
        """T, the prefix tokens included."""
        rows, columns = self.token_grid
        return rows * columns + self.prefix_tokens


def uniform_config(
    *,
    backbone: str,
    image_size: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    stem: tuple[StemLayer, ...],
    depth: int,
    heads: int,
    mlp_ratio: float,
    classes: tuple[int, ...],
    head_width: int = 0,
) -> ModelConfig:
    """Configure a model whose blocks are all alike; by default, ``head_width`` is the width divided by the heads."""
    width = stem[-1].width
    head_width = head_width or width // heads
    return ModelConfig(
        backbone=backbone,
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


class Preset(NamedTuple):
    """A published shape."""

    backbone: str
    stem: tuple[StemLayer, ...]
    depth: int
    heads: int
    mlp_ratio: float


def _patches(width: int) -> tuple[StemLayer, ...]:
    return (StemLayer(width, kernel=16, stride=16, batch_norm=False),)


def _cct_stem(width: int) -> tuple[StemLayer, ...]:
    layer = StemLayer(width, kernel=7, stride=2, batch_norm=False, max_pool=True)
    return (msgspec.structs.replace(layer, width=64), layer)


PRESETS = {
    # The names of the papers; "DeiT" without "plain" is the distilled one with two tokens.
    "ViT-Ti/16": Preset("vit", _patches(192), 12, 3, 4.0),
    "ViT-S/16": Preset("vit", _patches(384), 12, 6, 4.0),
    "ViT-B/16": Preset("vit", _patches(768), 12, 12, 4.0),
    "ViT-L/16": Preset("vit", _patches(1024), 24, 16, 4.0),
    "DeiT-Ti": Preset("deit", _patches(192), 12, 3, 4.0),
    "DeiT-S": Preset("deit", _patches(384), 12, 6, 4.0),
    "DeiT-B": Preset("deit", _patches(768), 12, 12, 4.0),
    "CCT-7/7x2": Preset("cct", _cct_stem(256), 7, 4, 2.0),
    "CCT-14/7x2": Preset("cct", _cct_stem(384), 14, 6, 3.0),
}


class QueryKeyValue(NamedTuple):
    """Input of a block's attention, heads side by side, each ``(B, T, h k)``; the query unscaled."""

    query: Tensor
    key: Tensor
    value: Tensor


class Model(nn.Module):
    """uint8 images in, features or logits out; one class for the teacher and for every submodel."""

    def __init__(self, config: ModelConfig) -> None:
        """Build with fresh weights; the caller seeds torch."""
        super().__init__()
        self.config = config
        self.look: Look | None = None
        """Set by :meth:`see`; it has no weights, and exported graphs do without."""
        prefix = config.prefix_tokens
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(config.mean).mul(255.0), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.std).mul(255.0), persistent=False)
        self.tokenizer = Tokenizer(config)
        self.positions = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.prefix = nn.Parameter(torch.zeros(1, prefix, config.width)) if prefix else None
        self.blocks = nn.ModuleList(Block(config, index) for index in range(len(config.heads)))
        self.norm = _norm(config)
        self.pool = None if prefix else nn.Linear(config.width, 1)
        self.head = nn.Linear(config.width, len(config.classes))
        self.distillation_head = nn.Linear(config.width, len(config.classes)) if prefix == 2 else None
        self.apply(_initialise)
        nn.init.trunc_normal_(self.positions, std=0.02)
        if self.prefix is not None:
            nn.init.trunc_normal_(self.prefix, std=0.02)

    def see(self, view: View | None) -> None:
        """Take images of the whole scene from now on, and see a view of each; ``None`` for all of it."""
        self.look = None if view is None else Look(view, *self.config.image_size[:2]).to(self.pixel_mean.device)

    def features(self, images: Tensor) -> Tensor:
        """Map images of 0 to 255, ``(B, H, W, C)``, to features ``(B, feature_dim)``."""
        tokens = self._embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self._pool(tokens)

    def observe(self, images: Tensor, block: int) -> tuple[Tensor, QueryKeyValue]:
        """Compute the features, and the query, key and value of one block."""
        tokens = self._embed(images)
        seen: QueryKeyValue | None = None
        for index, each in enumerate(self.block_list()):
            tokens, compared = each.observe(tokens)
            seen = compared if index == block else seen
        if seen is None:
            raise ValueError(f"block {block}: expected 0 to {len(self.blocks) - 1}")
        return self._pool(tokens), seen

    def answers(self, features: Tensor) -> tuple[Tensor, ...]:
        """Map features to the logits ``(B, K)`` of each head: one, or a DeiT's class and distillation head."""
        if self.distillation_head is None:
            return (self.head(features),)
        width = self.config.width
        by_class, by_distillation = features[:, :width], features[:, width:]
        return self.head(by_class), self.distillation_head(by_distillation)

    def forward(self, images: Tensor) -> Tensor:
        """Map images of 0 to 255, ``(B, H, W, C)``, to logits ``(B, K)``, a DeiT's two averaged."""
        answers = self.answers(self.features(images))
        return answers[0] if len(answers) == 1 else (answers[0] + answers[1]) / 2

    def set_drop_path(self, chance: float) -> None:
        """Skip blocks in training, with a chance that rises linearly with depth up to ``chance`` (arXiv 1603.09382)."""
        last = max(1, len(self.blocks) - 1)
        for index, block in enumerate(self.block_list()):
            block.drop_path = chance * index / last

    def block_list(self) -> list[Block]:
        """List the blocks."""
        return [module for module in self.blocks if isinstance(module, Block)]

    def _embed(self, images: Tensor) -> Tensor:
        if self.look is not None:
            images = self.look(images)
        pixels = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        tokens: Tensor = self.tokenizer(pixels.permute(0, 3, 1, 2))  # (B, T - P, D)
        if self.prefix is None:
            return tokens + self.positions
        # Padding, then adding: a graph of any batch size then needs no shape arithmetic.
        count = self.config.prefix_tokens
        ahead = functional.pad(self.prefix, (0, 0, 0, self.config.tokens - count))
        return functional.pad(tokens, (0, 0, count, 0)) + (ahead + self.positions)

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.pool is None:
            kept: Tensor = self.norm(tokens[:, : self.config.prefix_tokens])
            return kept.flatten(1)  # (B, P, D) -> (B, P D)
        tokens = self.norm(tokens)
        weights = self.pool(tokens).transpose(1, 2).softmax(dim=-1)  # (B, 1, T)
        pooled: Tensor = weights @ tokens
        return pooled.flatten(1)  # (B, 1, T) @ (B, T, D) -> (B, D)


class Tokenizer(nn.Module):
    """Convolutions that turn an image into tokens."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers of ``config.stem``."""
        super().__init__()
        channels = config.image_size[2]
        is_cct = config.backbone == "cct"
        layers: list[nn.Module] = []
        for layer in config.stem:
            padding = layer.kernel // 2 if is_cct else 0
            bias = not layer.batch_norm
            layers.append(nn.Conv2d(channels, layer.width, layer.kernel, layer.stride, padding=padding, bias=bias))
            if layer.batch_norm:
                layers.append(nn.BatchNorm2d(layer.width))
            if is_cct:
                layers.append(nn.ReLU())
            if layer.max_pool:
                layers.append(nn.MaxPool2d(3, 2, padding=1))
            channels = layer.width
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map normalised images ``(B, C, H, W)`` to tokens ``(B, T - P, D)``."""
        maps: Tensor = self.layers(pixels)
        return maps.flatten(2).transpose(1, 2)  # (B, D, rows, columns) -> (B, T - P, D)


class Block(nn.Module):
    """One transformer block: attention and MLP, each added to what came in."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        """Build block ``index`` of ``config``."""
        super().__init__()
        self.norm_on_stream = config.backbone == "cct"
        self.drop_path = 0.0
        self.attention_norm = _norm(config)
        self.attention = Attention(config, index)
        self.mlp_norm = _norm(config)
        self.expand = nn.Linear(config.width, config.neurons[index])
        self.contract = nn.Linear(config.neurons[index], config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(B, T, D)`` to tokens of the same shape."""
        return self.observe(tokens)[0]

    def observe(self, tokens: Tensor) -> tuple[Tensor, QueryKeyValue]:
        """Map tokens ``(B, T, D)``, and return the attention's query, key and value too."""
        compared = self.attention.compared(self.attention_norm(tokens))
        tokens = tokens + self._dropped(self.attention.mix(compared))
        if self.norm_on_stream:
            tokens = self.mlp_norm(tokens)
        mlp: Tensor = tokens if self.norm_on_stream else self.mlp_norm(tokens)
        mlp = self.contract(functional.gelu(self.expand(mlp)))
        return tokens + self._dropped(mlp), compared

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        return branch * branch.new_empty((len(branch), 1, 1)).bernoulli_(keep).div_(keep)


class Attention(nn.Module):
    """Multi-head self-attention, written out."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        """Build the attention of block ``index``."""
        super().__init__()
        self.heads = config.heads[index]
        self.head_width = config.head_widths[index]
        self.scale = config.softmax_scales[index]
        inner = self.heads * self.head_width
        has_bias = config.backbone != "cct"
        self.query = nn.Linear(config.width, inner, bias=has_bias)
        self.key = nn.Linear(config.width, inner, bias=has_bias)
        self.value = nn.Linear(config.width, inner, bias=has_bias)
        self.project = nn.Linear(inner, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(B, T, D)`` to tokens of the same shape."""
        return self.mix(self.compared(tokens))

    def compared(self, tokens: Tensor) -> QueryKeyValue:
        """Map tokens ``(B, T, D)`` to query, key and value."""
        return QueryKeyValue(self.query(tokens), self.key(tokens), self.value(tokens))

    def mix(self, compared: QueryKeyValue) -> Tensor:
        """Mix the tokens by attention; ``(B, T, D)`` out."""
        query, key, value = (self._split(flat) for flat in (compared.query * self.scale, compared.key, compared.value))
        weights = (query @ key.transpose(2, 3)).softmax(dim=-1)  # (B, h, T, T)
        mixed = (weights @ value).transpose(1, 2).flatten(2)  # (B, h, T, k) -> (B, T, h k)
        projected: Tensor = self.project(mixed)
        return projected

    def _split(self, flat: Tensor) -> Tensor:
        batch, tokens, _ = flat.shape
        return flat.reshape(batch, tokens, self.heads, self.head_width).transpose(1, 2)  # (B, T, h k) -> (B, h, T, k)


def _norm(config: ModelConfig) -> nn.LayerNorm:
    # timm's ViT and DeiT use 1e-6, the public CCT torch's default.
    return nn.LayerNorm(config.width, eps=1e-5 if config.backbone == "cct" else 1e-6)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
