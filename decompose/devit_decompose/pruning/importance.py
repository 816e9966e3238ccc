"""How much each part of a model matters: scores by which pruning chooses, the higher the better.

Two methods. ``hsic`` looks at the answers to one batch of images, ``magnitude`` at the weights alone.

``hsic``: dependence in the sense of the Hilbert-Schmidt independence criterion, as DeViT scores heads and neurons
(after Hou & Kung, arXiv 2201.00043). An activation is compared by Gaussian kernels, the mean over widths 1, 2, 4, 8 and
16, and the answer (softmax of the logits) by a linear kernel.

=================  =====================================================================================================
head               HSIC(mean over its channels, answer) - 0.1 x mean over other heads of HSIC(head, other head)
neuron             0.1 x HSIC(neuron, answer) + 0.9 x sum of its absolute values, both brought to 0 to 1 in the block
value channel      as a neuron, on what the head gives to the projection, among the channels of its head
query/key channel  as a neuron among those of its head: HSIC is the mean of query's and key's; the sum is that of its
                   products query x key over all pairs of tokens, absolute, where keys are taken from their mean over
                   tokens, since the softmax does not see what all keys share
token channel      as a neuron, on what attention and MLP read, where the sum is times the length of the weights that
                   read it; mean over all blocks
stem channel       the same, on the map that the next convolution reads
=================  =====================================================================================================

``magnitude``: length of the weights that lead into a part, times length of those that lead out of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from devit_contract.arrays import Float64Array, UInt8Array
from devit_decompose.models.model import Block, Model
from devit_decompose.recipe.schema import Method

Scores = Float64Array

_WIDEST = 16.0
_WIDTHS = 5
_REDUNDANCY = 0.1
_DEPENDENCE = 0.1
_KERNEL_NUMBERS = 1 << 18
"""Numbers of the kernels that are held at once: what fits into the cache of one core."""


@dataclass(frozen=True, eq=False)
class Importance:
    """Scores of everything that can be pruned; lists hold one array for each block of the model."""

    heads: tuple[Scores, ...]
    """Shape ``(h,)``."""
    queries: tuple[Scores, ...]
    """Channels of query and key inside each head, ``(h, k)``."""
    values: tuple[Scores, ...]
    """Channels of the value inside each head, ``(h, k)``."""
    neurons: tuple[Scores, ...]
    """Shape ``(neurons,)``."""
    width: Scores
    """Channels of the tokens, ``(D,)``."""
    stem: tuple[Scores, ...]
    """Channels of each stem layer but the last, ``(channels,)``."""


def importance(model: Model, images: UInt8Array, method: Method) -> Importance:
    """Score a model; it is left as it was. Training images ``(n, H, W, C)`` run as one batch, for ``hsic`` alone."""
    with torch.no_grad():
        return _by_dependence(model, images) if method == "hsic" else _by_magnitude(model)


def gaussian_kernels(rows: Tensor) -> Tensor:
    """Compare rows ``(c, n, p)`` with one another, for each of c activations: ``(c, n, n)``, mean over all widths.

    Less 1, which dependence does not see: small activations then keep their digits.
    """
    rows = rows - rows.mean(dim=1, keepdim=True)
    lengths = rows.square().sum(dim=2)  # (c, n)
    distances = torch.baddbmm(lengths[:, :, None] + lengths[:, None, :], rows, rows.transpose(1, 2), alpha=-2)
    kernel = distances.clamp_min_(0.0).mul_(-0.5 / _WIDEST**2).expm1_()
    total = kernel.clone()
    for _ in range(_WIDTHS - 1):
        for _ in range(2):
            kernel.mul_(kernel + 2)  # half the width is the fourth power: (1 + e)^2 - 1 = e (e + 2), twice
        total += kernel
    return total.div_(_WIDTHS)


def centred(kernels: Tensor) -> Tensor:
    """Take the means of rows and columns out of kernels ``(..., n, n)``: ``H L H``."""
    kernels = kernels - kernels.mean(dim=-1, keepdim=True)
    return kernels - kernels.mean(dim=-2, keepdim=True)


def hsic(kernels: Tensor, others: Tensor) -> Tensor:
    """Estimate dependence, ``tr(K H L H) / (n - 1)^2``, of kernels ``(c, n, n)`` and a centred one ``(n, n)``."""
    return kernels.flatten(1) @ others.flatten() / (len(others) - 1) ** 2


def channel_scores(activations: Tensor, answers: Tensor, weights: Tensor | None = None) -> Tensor:
    """Score channels ``(n, T, c)`` as DeViT scores neurons, against answers, probabilities ``(n, K)``.

    The sum of absolute values is multiplied by ``weights``, ``(c,)``, if there are any.
    """
    size = activations.double().abs().sum(dim=(0, 1))
    return _mixed(dependence(activations, answers), size if weights is None else size * weights)


def dependence(activations: Tensor, answers: Tensor) -> Tensor:
    """HSIC of each channel of ``(n, T, c)`` with answers ``(n, K)``, float64 ``(c,)``."""
    rows = activations.permute(2, 0, 1)  # (n, T, c) -> (c, n, T)
    step = max(1, _KERNEL_NUMBERS // rows.shape[1] ** 2)
    others = centred(answers.float() @ answers.float().T)
    return torch.cat([hsic(gaussian_kernels(chunk.float()), others) for chunk in torch.split(rows, step)]).double()


def head_scores(mixed: Tensor, answers: Tensor) -> Tensor:
    """Score heads by the dependence of what they give to the projection, ``(n, T, h, k)``, less their redundancy."""
    means = mixed.float().mean(dim=3)  # (n, T, h)
    scores = dependence(means, answers)
    heads = len(scores)
    if heads == 1:
        return scores
    kernels = gaussian_kernels(means.permute(2, 0, 1))  # (h, n, n)
    redundancy = torch.stack([hsic(kernels, centred(kernel)) for kernel in kernels])  # (h, h)
    redundancy.fill_diagonal_(0.0)
    return scores - _REDUNDANCY * redundancy.sum(dim=1) / (heads - 1)


def query_scores(query: Tensor, key: Tensor, answers: Tensor) -> Tensor:
    """Score the channels of query and key, ``(n, T, h, k)`` each, inside their heads, ``(h, k)``."""
    shape = query.shape[2:]
    shared = (dependence(query.flatten(2), answers) + dependence(key.flatten(2), answers)) / 2
    spread = key.double() - key.double().mean(dim=1, keepdim=True)
    products = query.double().abs().sum(dim=1) * spread.abs().sum(dim=1)  # (n, h, k)
    return _mixed(shared.reshape(shape), products.sum(dim=0))


def value_scores(mixed: Tensor, answers: Tensor) -> Tensor:
    """Score the channels of the value, ``(n, T, h, k)`` mixed by attention, inside their heads, ``(h, k)``."""
    shared = dependence(mixed.flatten(2), answers).reshape(mixed.shape[2:])
    return _mixed(shared, mixed.double().abs().sum(dim=(0, 1)))


def _mixed(shared: Tensor, size: Tensor) -> Tensor:
    return _DEPENDENCE * _unit(shared) + (1 - _DEPENDENCE) * _unit(size)


def _unit(scores: Tensor) -> Tensor:
    """Bring the last axis to 0 to 1."""
    low, high = scores.amin(dim=-1, keepdim=True), scores.amax(dim=-1, keepdim=True)
    return (scores - low) / torch.where(high > low, high - low, torch.ones_like(high))


class _Scorer:
    """Scores a model's parts while it answers one batch, so that only one block's activations are held."""

    def __init__(self, model: Model, answers: Tensor) -> None:
        self.model = model
        self.answers = answers
        self.heads: list[Tensor] = []
        self.queries: list[Tensor] = []
        self.values: list[Tensor] = []
        self.neurons: list[Tensor] = []
        self.width: list[Tensor] = []
        self.stem: list[Tensor] = []
        self._seen: dict[nn.Module, Tensor] = {}

    def run(self, images: Tensor) -> None:
        """Answer the images ``(n, H, W, C)`` and score on the way."""
        with ExitStack() as hooks:
            for block in self.model.block_list():
                attention = block.attention
                for module in (block.attention_norm, attention.query, attention.key, block.mlp_norm, block.expand):
                    hooks.callback(module.register_forward_hook(self._keep_output).remove)
                hooks.callback(attention.project.register_forward_pre_hook(self._keep_input).remove)
                hooks.callback(block.register_forward_hook(self._score_block).remove)
            for convolution in _convolutions(self.model)[1:]:
                hooks.callback(convolution.register_forward_pre_hook(self._score_map).remove)
            self.model.features(images)

    def _keep_output(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen[module] = output

    def _keep_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen[module] = inputs[0]

    def _score_map(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        maps = inputs[0].flatten(2).transpose(1, 2)  # (n, channels, rows, columns) -> (n, rows x columns, channels)
        self.stem.append(channel_scores(maps, self.answers, _out_of(module)))

    def _score_block(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, Block)
        attention, answers = module.attention, self.answers
        split = (*output.shape[:2], attention.heads, attention.head_width)
        query, key, mixed = (
            self._seen[layer].reshape(split)  # (n, T, h k) -> (n, T, h, k)
            for layer in (attention.query, attention.key, attention.project)
        )
        self.heads.append(head_scores(mixed, answers))
        self.queries.append(query_scores(query, key, answers))
        self.values.append(value_scores(mixed, answers))
        self.neurons.append(channel_scores(functional.gelu(self._seen[module.expand]), answers))
        for norm, layers in _readers(module):
            self.width.append(channel_scores(self._seen[norm], answers, _out_of(*layers)))
        self._seen.clear()


def _by_dependence(model: Model, images: UInt8Array) -> Importance:
    batch = torch.from_numpy(images.copy()).to(model.pixel_mean.device)
    was_training = model.training
    model.eval()
    scorer = _Scorer(model, model(batch).softmax(dim=1))
    scorer.run(batch)
    model.train(was_training)
    return Importance(
        heads=_arrays(scorer.heads),
        queries=_arrays(scorer.queries),
        values=_arrays(scorer.values),
        neurons=_arrays(scorer.neurons),
        width=_array(torch.stack(scorer.width).mean(dim=0)),
        stem=_arrays(scorer.stem),
    )


def _by_magnitude(model: Model) -> Importance:
    blocks = model.block_list()
    heads, queries, values = [], [], []
    for block in blocks:
        attention = block.attention
        split = (attention.heads, attention.head_width)
        query, key, value = (_into(layer).reshape(split) for layer in (attention.query, attention.key, attention.value))
        project = _out_of(attention.project).reshape(split)
        heads.append(value.norm(dim=1) * project.norm(dim=1))
        queries.append(query * key)
        values.append(value * project)
    convolutions = _convolutions(model)
    return Importance(
        heads=_arrays(heads),
        queries=_arrays(queries),
        values=_arrays(values),
        neurons=_arrays([_into(block.expand) * _out_of(block.contract) for block in blocks]),
        width=_array(_width_magnitude(model)),
        stem=_arrays([_into_map(model, layer) * _out_of(following) for layer, following in pairwise(convolutions)]),
    )


def _width_magnitude(model: Model) -> Tensor:
    """Everything that writes into a channel of the tokens, times everything that reads it."""
    written = [_into_map(model, _convolutions(model)[-1]), model.positions.double().norm(dim=(0, 1))]
    readers = (model.pool, model.head, model.distillation_head)
    read = [_out_of(layer) * model.norm.weight.double().abs() for layer in readers if layer is not None]
    for block in model.block_list():
        attention = block.attention
        written += [_into(attention.project), _into(block.contract)]
        for norm, layers in _readers(block):
            read.append(_out_of(*layers) * norm.weight.double().abs())
    magnitude: Tensor = torch.stack(written).norm(dim=0) * torch.stack(read).norm(dim=0)
    return magnitude


def _readers(block: Block) -> Iterator[tuple[nn.LayerNorm, tuple[nn.Linear, ...]]]:
    """Yield both norms of a block, each with the layers that read it."""
    yield block.attention_norm, (block.attention.query, block.attention.key, block.attention.value)
    yield block.mlp_norm, (block.expand,)


def _into(layer: nn.Linear) -> Tensor:
    """Length of the weights into each output, its bias included."""
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    return torch.hypot(layer.weight.double().norm(dim=1), bias.to(layer.weight.device).double())


def _out_of(*layers: nn.Linear | nn.Conv2d) -> Tensor:
    """Length of the weights that read each input, in all layers together."""
    by_input = [layer.weight.double().transpose(0, 1).flatten(1) for layer in layers]
    lengths: Tensor = torch.cat(by_input, dim=1).norm(dim=1)
    return lengths


def _into_map(model: Model, layer: nn.Conv2d) -> Tensor:
    """Length of the weights into each channel; after a BatchNorm, of its gain and shift."""
    layers = list(model.tokenizer.layers)
    following = layers[layers.index(layer) + 1] if layers[-1] is not layer else None
    if isinstance(following, nn.BatchNorm2d):
        return torch.hypot(following.weight.double(), following.bias.double())
    bias = torch.zeros_like(layer.weight[:, 0, 0, 0]) if layer.bias is None else layer.bias
    return torch.hypot(layer.weight.double().flatten(1).norm(dim=1), bias.double())


def _convolutions(model: Model) -> list[nn.Conv2d]:
    return [layer for layer in model.tokenizer.layers if isinstance(layer, nn.Conv2d)]


def _arrays(scores: list[Tensor]) -> tuple[Scores, ...]:
    return tuple(_array(each) for each in scores)


def _array(scores: Tensor) -> Scores:
    array: Scores = scores.cpu().double().numpy()
    return array
