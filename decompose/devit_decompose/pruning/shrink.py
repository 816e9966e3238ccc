"""Prunes a trained model: removes heads, channels, neurons and blocks from its weights.

The smaller model computes what the large one would with the same parts masked, where the mask enters the statistics
of every LayerNorm and the softmax keeps its scale. Sizes come from a grid that device kernels like: 16 to 256 numbers
per head in steps of 8 (what fused attention takes), all other widths in steps of 16.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from devit_contract.arrays import Float64Array, Int64Array
from devit_contract.errors import InputError
from devit_decompose.models.model import Block, Model, ModelConfig, Tokenizer
from devit_decompose.pruning.importance import Importance
from devit_decompose.recipe.schema import Dimension

Index = Int64Array


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sizes of a pruned model; lists hold one entry for each block that is kept."""

    depth: int
    """Blocks."""
    width: int
    """D, numbers per token."""
    heads: tuple[int, ...]
    head_widths: tuple[int, ...]
    neurons: tuple[int, ...]
    stem: tuple[int, ...]
    """Channels of each stem layer but the last; empty for ViT and DeiT."""

    def config(self, source: ModelConfig) -> ModelConfig:
        """Configure the model that pruning ``source`` to this shape gives.

        Raises:
            InputError: The depth does not divide that of ``source``.
        """
        blocks = kept_blocks(len(source.heads), self.depth)
        widths = (*self.stem, self.width)
        return msgspec.structs.replace(
            source,
            stem=tuple(
                msgspec.structs.replace(layer, width=width) for layer, width in zip(source.stem, widths, strict=True)
            ),
            heads=self.heads,
            head_widths=self.head_widths,
            softmax_scales=tuple(source.softmax_scales[block] for block in blocks),
            neurons=self.neurons,
        )


@dataclass(frozen=True, eq=False)
class Keep:
    """What is kept of a model, as rising indices; lists hold one entry for each block that is kept."""

    blocks: Index
    width: Index
    """Channels of the tokens."""
    heads: tuple[Index, ...]
    queries: tuple[Index, ...]
    """Channels of query and key inside each head that is kept, ``(heads kept, channels kept)``."""
    values: tuple[Index, ...]
    """Channels of the value inside each head that is kept, of the same shape."""
    neurons: tuple[Index, ...]
    stem: tuple[Index, ...]
    """Channels of each stem layer but the last; empty for ViT and DeiT."""

    @property
    def shape(self) -> Shape:
        """Sizes of what is kept."""
        return Shape(
            depth=len(self.blocks),
            width=len(self.width),
            heads=tuple(len(heads) for heads in self.heads),
            head_widths=tuple(queries.shape[1] for queries in self.queries),
            neurons=tuple(len(neurons) for neurons in self.neurons),
            stem=tuple(len(channels) for channels in self.stem),
        )


def prune(model: Model, keep: Keep) -> Model:
    """Build the smaller model; ``model`` is left as it was, and no random number is drawn.

    Raises:
        InputError: The blocks that are kept are not evenly spaced up to the last.
    """
    if keep.blocks.tolist() != list(kept_blocks(len(model.blocks), len(keep.blocks))):
        raise InputError(f"shrink.depth: expected evenly spaced blocks up to the last, found {keep.blocks.tolist()}")
    with torch.device("meta"):
        small = Model(keep.shape.config(model.config))
    small.to_empty(device=model.positions.device).to(model.positions.dtype)
    small.pixel_mean.copy_(model.pixel_mean)
    small.pixel_std.copy_(model.pixel_std)
    _fill_tokenizer(small.tokenizer, model.tokenizer, keep)
    with torch.no_grad():
        width = torch.from_numpy(keep.width)
        small.positions.copy_(model.positions[:, :, width])
        if small.prefix is not None and model.prefix is not None:
            small.prefix.copy_(model.prefix[:, :, width])
    kept = [model.block_list()[block] for block in keep.blocks]
    for position, (target, source) in enumerate(zip(small.block_list(), kept, strict=True)):
        _fill_block(target, source, keep, position)
    _fill(small.norm, model.norm, out=keep.width)
    for name in ("pool", "head", "distillation_head"):
        if getattr(model, name) is not None:
            _fill(getattr(small, name), getattr(model, name), into=keep.width)
    return small.train(model.training)


def keep_best(model: Model, importance: Importance, shape: Shape) -> Keep:
    """Choose the parts with the highest scores, the first among equals.

    Raises:
        InputError: The depth does not divide that of ``model``.
    """
    blocks = kept_blocks(len(model.blocks), shape.depth)
    heads = [_best(importance.heads[block], count) for block, count in zip(blocks, shape.heads, strict=True)]
    queries, values = (
        tuple(
            _best(scores[block][chosen], width)
            for block, chosen, width in zip(blocks, heads, shape.head_widths, strict=True)
        )
        for scores in (importance.queries, importance.values)
    )
    return Keep(
        blocks=np.array(blocks, np.int64),
        width=_best(importance.width, shape.width),
        heads=tuple(heads),
        queries=queries,
        values=values,
        neurons=tuple(_best(importance.neurons[one], size) for one, size in zip(blocks, shape.neurons, strict=True)),
        stem=tuple(_best(scores, count) for scores, count in zip(importance.stem, shape.stem, strict=True)),
    )


def of_classes(model: Model, positions: Sequence[int]) -> Model:
    """Copy a model and cut its own heads to some classes, by position among its outputs."""
    small = copy.deepcopy(model)
    chosen = np.array(positions, np.int64)
    small.config = msgspec.structs.replace(
        model.config, classes=tuple(model.config.classes[position] for position in positions)
    )
    for name in ("head", "distillation_head"):
        source = getattr(model, name)
        if source is not None:
            head = nn.Linear(source.in_features, len(chosen), device="meta", dtype=source.weight.dtype)
            head.to_empty(device=source.weight.device)
            _fill(head, source, out=chosen)
            setattr(small, name, head)
    return small


def kept_blocks(depth: int, kept: int) -> tuple[int, ...]:
    """Number the blocks that stay: evenly spaced, the last among them.

    Raises:
        InputError: ``kept`` does not divide ``depth``.

    >>> kept_blocks(6, 2)
    (2, 5)
    """
    if kept < 1 or depth % kept:
        raise InputError(f"shrink.depth: expected a divisor of the model's {depth} blocks, found {kept}")
    return tuple(range(depth // kept - 1, depth, depth // kept))


def allowed_sizes(own: int, dimension: Dimension) -> tuple[int, ...]:
    """List, rising, what a dimension may be pruned to: the grid, and the model's own size.

    >>> allowed_sizes(40, "neurons")
    (16, 32, 40)
    """
    if dimension == "heads":
        return tuple(range(1, own + 1))
    grid = range(16, min(own, 256) + 1, 8) if dimension == "head_width" else range(16, own + 1, 16)
    return tuple(sorted({*grid, own}))


def _best(scores: Float64Array, count: int) -> Index:
    """Indices of the highest scores along the last axis, rising."""
    if not 1 <= count <= scores.shape[-1]:
        raise ValueError(f"expected to keep 1 to {scores.shape[-1]}, found {count}")
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    return np.sort(order, axis=-1).astype(np.int64)


def _fill_tokenizer(small: Tokenizer, large: Tokenizer, keep: Keep) -> None:
    widths = iter((*keep.stem, keep.width))
    into: Index | None = None
    out: Index | None = None
    for target, source in zip(small.layers, large.layers, strict=True):
        if isinstance(source, nn.Conv2d):
            into, out = out, next(widths)
        _fill(target, source, out=out, into=into)


def _fill_block(small: Block, large: Block, keep: Keep, position: int) -> None:
    width, neurons = keep.width, keep.neurons[position]
    first = keep.heads[position][:, np.newaxis] * large.attention.head_width  # (heads kept, 1)
    queries, values = (
        (first + channels[position]).reshape(-1)  # (heads kept, channels kept) -> one row
        for channels in (keep.queries, keep.values)
    )
    small.drop_path = large.drop_path
    _fill(small.attention_norm, large.attention_norm, out=width)
    _fill(small.attention.query, large.attention.query, out=queries, into=width)
    _fill(small.attention.key, large.attention.key, out=queries, into=width)
    _fill(small.attention.value, large.attention.value, out=values, into=width)
    _fill(small.attention.project, large.attention.project, out=width, into=values)
    _fill(small.mlp_norm, large.mlp_norm, out=width)
    _fill(small.expand, large.expand, out=neurons, into=width)
    _fill(small.contract, large.contract, out=width, into=neurons)


def _fill(target: nn.Module, source: nn.Module, *, out: Index | None = None, into: Index | None = None) -> None:
    """Copy the kept outputs and inputs of a layer's weights, statistics included."""
    state: dict[str, Tensor] = {}
    for name, value in source.state_dict().items():
        kept = value[torch.from_numpy(out)] if out is not None and value.ndim > 0 else value
        state[name] = kept[:, torch.from_numpy(into)] if into is not None and value.ndim > 1 else kept
    target.load_state_dict(state)
