from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from devit_contract.errors import InputError
from devit_decompose.models.model import Attention, Block, Model, StemLayer, uniform_config
from devit_decompose.pruning.cost import parameters
from devit_decompose.pruning.importance import Importance, importance
from devit_decompose.pruning.shrink import Index, Keep, Shape, allowed_sizes, keep_best, kept_blocks, of_classes, prune

BACKBONES = ("vit", "deit", "cct")
DEPTH, HEADS, HEAD_WIDTH, NEURONS, WIDTH = 4, 3, 8, 10, 12
STEM = (StemLayer(5), StemLayer(6, batch_norm=False, max_pool=True), StemLayer(WIDTH, stride=2))


def random_model(backbone: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """A model of which no weight, bias, gain or statistic is what it starts with."""
    stem = STEM if backbone == "cct" else (StemLayer(WIDTH, kernel=4, stride=4, batch_norm=False),)
    model = Model(
        uniform_config(
            backbone=backbone,
            image_size=(8, 12, 2),
            mean=(0.5, 0.4),
            std=(0.3, 0.2),
            stem=stem,
            depth=DEPTH,
            heads=HEADS,
            head_width=HEAD_WIDTH,
            mlp_ratio=NEURONS / WIDTH,
            classes=(0, 1, 2, 3),
        )
    )
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator) * 0.4
            value.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn)
    return model.to(dtype).eval()


def pictures(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 8, 12, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def everything(backbone: str) -> Keep:
    heads = np.tile(np.arange(HEAD_WIDTH), (HEADS, 1))
    return Keep(
        blocks=np.arange(DEPTH),
        width=np.arange(WIDTH),
        heads=(np.arange(HEADS),) * DEPTH,
        queries=(heads,) * DEPTH,
        values=(heads,) * DEPTH,
        neurons=(np.arange(NEURONS),) * DEPTH,
        stem=tuple(np.arange(layer.width) for layer in STEM[:-1]) if backbone == "cct" else (),
    )


def changed(keep: Keep, **fields: object) -> Keep:
    return Keep(**(vars(keep) | fields))  # type: ignore[arg-type]


class Masked:
    """The large model with 0/1 masks: a second implementation, in which nothing is ever cut."""

    def __init__(self, model: Model, keep: Keep) -> None:
        self.model = model
        self.keep = keep
        self.width = self.mask(keep.width, WIDTH)

    def mask(self, kept: Sequence[int] | Index, size: int) -> Tensor:
        mask = torch.zeros(size, dtype=self.model.positions.dtype)
        mask[torch.as_tensor(kept)] = 1
        return mask

    def norm(self, layer: torch.nn.Module, tokens: Tensor) -> Tensor:
        """LayerNorm whose statistics are those of the kept channels."""
        assert isinstance(layer, torch.nn.LayerNorm)
        count = self.width.sum()
        mean = (tokens * self.width).sum(dim=-1, keepdim=True) / count
        variance = ((tokens - mean).square() * self.width).sum(dim=-1, keepdim=True) / count
        return ((tokens - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias) * self.width

    def tokens(self, images: Tensor) -> Tensor:
        model = self.model
        maps = ((images.to(self.width.dtype) - model.pixel_mean) / model.pixel_std).permute(0, 3, 1, 2)
        if model.config.backbone == "cct":
            masks = [
                *(self.mask(kept, layer.width) for kept, layer in zip(self.keep.stem, STEM, strict=False)),
                self.width,
            ]
            stages: list[list[torch.nn.Module]] = []
            for layer in model.tokenizer.layers:
                if isinstance(layer, torch.nn.Conv2d):
                    stages.append([])
                stages[-1].append(layer)
            for mask, stage in zip(masks, stages, strict=True):
                for layer in stage:
                    maps = layer(maps)
                maps = maps * mask[:, None, None]
        else:
            maps = model.tokenizer.layers[0](maps)
        tokens = maps.flatten(2).transpose(1, 2)
        if model.prefix is not None:
            tokens = torch.cat([model.prefix.expand(len(images), -1, -1), tokens], dim=1)
        return (tokens + model.positions) * self.width

    def attention(self, layer: Attention, tokens: Tensor, position: int) -> Tensor:
        outputs = []
        for head, queries, values in zip(
            self.keep.heads[position], self.keep.queries[position], self.keep.values[position], strict=True
        ):
            rows = slice(int(head) * HEAD_WIDTH, (int(head) + 1) * HEAD_WIDTH)
            query, key, value = (
                functional.linear(tokens, each.weight[rows], None if each.bias is None else each.bias[rows]) * mask
                for each, mask in (
                    (layer.query, self.mask(queries, HEAD_WIDTH)),
                    (layer.key, self.mask(queries, HEAD_WIDTH)),
                    (layer.value, self.mask(values, HEAD_WIDTH)),
                )
            )
            weights = (query @ key.transpose(1, 2) / HEAD_WIDTH**0.5).softmax(dim=-1)
            outputs.append(weights @ value @ layer.project.weight[:, rows].T)
        return (torch.stack(outputs).sum(dim=0) + layer.project.bias) * self.width

    def block(self, layer: Block, tokens: Tensor, position: int) -> Tensor:
        tokens = tokens + self.attention(layer.attention, self.norm(layer.attention_norm, tokens), position)
        normed = self.norm(layer.mlp_norm, tokens)
        hidden = functional.gelu(layer.expand(normed)) * self.mask(self.keep.neurons[position], NEURONS)
        stream = normed if self.model.config.backbone == "cct" else tokens
        return stream + layer.contract(hidden) * self.width

    def features(self, images: Tensor) -> Tensor:
        """The large model's feature, zero where a channel is masked."""
        model, tokens = self.model, self.tokens(images)
        for position, index in enumerate(self.keep.blocks):
            layer = model.blocks[index]
            assert isinstance(layer, Block)
            tokens = self.block(layer, tokens, position)
        tokens = self.norm(model.norm, tokens)
        if model.pool is None:
            return tokens[:, : model.config.prefix_tokens].flatten(1)
        return (model.pool(tokens).softmax(dim=1) * tokens).sum(dim=1)


def assert_pruned_equals_masked(backbone: str, keep: Keep, dtype: torch.dtype, tolerance: float, seed: int = 0) -> None:
    model = random_model(backbone, seed, dtype)
    masked = Masked(model, keep)
    with torch.no_grad():
        expected = masked.features(pictures())
        pruned = prune(model, keep)
        found = pruned.features(pictures())
        tokens = max(1, model.config.prefix_tokens)
        columns = np.concatenate([token * WIDTH + keep.width for token in range(tokens)])
        torch.testing.assert_close(found, expected[:, columns], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            pruned(pictures()), torch.stack(model.answers(expected)).mean(0), rtol=tolerance, atol=tolerance
        )
    assert pruned.config == keep.shape.config(model.config)
    assert sum(parameter.numel() for parameter in pruned.parameters()) == parameters(pruned.config), "weights are gone"
    assert all(parameter.requires_grad for parameter in pruned.parameters())


PARTS: dict[str, dict[str, object]] = {
    "nothing": {},
    "width": {"width": np.array([0, 2, 3, 7, 8, 11])},
    "heads": {
        "heads": (np.array([1]), np.array([0, 2]), np.array([0, 1, 2]), np.array([2])),
        "queries": tuple(np.tile(np.arange(HEAD_WIDTH), (count, 1)) for count in (1, 2, 3, 1)),
        "values": tuple(np.tile(np.arange(HEAD_WIDTH), (count, 1)) for count in (1, 2, 3, 1)),
    },
    "channels inside heads": {
        "queries": (np.array([[0, 1, 2], [3, 4, 7], [1, 5, 6]]),) * DEPTH,
        "values": (np.array([[5, 6, 7], [0, 2, 4], [0, 1, 7]]),) * DEPTH,
    },
    "neurons": {"neurons": (np.array([0]), np.array([1, 4, 9]), np.arange(NEURONS), np.array([3, 4]))},
    "depth": {
        "blocks": np.array([1, 3]),
        **{
            name: (each,) * 2
            for name, each in (
                ("heads", np.arange(HEADS)),
                ("queries", np.tile(np.arange(HEAD_WIDTH), (HEADS, 1))),
                ("values", np.tile(np.arange(HEAD_WIDTH), (HEADS, 1))),
                ("neurons", np.arange(NEURONS)),
            )
        },
    },
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_dimension_pruned_alone_gives_what_masking_gives(backbone: str, part: str) -> None:
    keep = changed(everything(backbone), **PARTS[part])
    assert_pruned_equals_masked(backbone, keep, torch.float32, 1e-5)


def test_a_pruned_stem_gives_what_a_masked_one_gives() -> None:
    keep = changed(everything("cct"), stem=(np.array([0, 3, 4]), np.array([1, 2, 5])))
    assert_pruned_equals_masked("cct", keep, torch.float32, 1e-5)


@st.composite
def keeps(draw: st.DrawFn) -> tuple[str, Keep, int]:
    """A backbone, anything that can be kept of it, and a seed of its weights."""
    backbone = draw(st.sampled_from(BACKBONES))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def some(size: int, count: int | None = None) -> Index:
        count = int(generator.integers(1, size + 1)) if count is None else count
        return np.sort(generator.choice(size, count, replace=False))

    blocks = kept_blocks(DEPTH, draw(st.sampled_from([1, 2, 4])))
    heads = tuple(some(HEADS) for _ in blocks)
    widths = [draw(st.integers(1, HEAD_WIDTH)) for _ in blocks]
    queries, values = (
        tuple(np.stack([some(HEAD_WIDTH, width) for _ in kept]) for kept, width in zip(heads, widths, strict=True))
        for _ in range(2)
    )
    keep = Keep(
        blocks=np.array(blocks),
        width=some(WIDTH),
        heads=heads,
        queries=queries,
        values=values,
        neurons=tuple(some(NEURONS) for _ in blocks),
        stem=tuple(some(layer.width) for layer in STEM[:-1]) if backbone == "cct" else (),
    )
    return backbone, keep, draw(st.integers(0, 1000))


@settings(deadline=None)
@given(case=keeps())
def test_all_dimensions_pruned_together_give_what_masking_gives(case: tuple[str, Keep, int]) -> None:
    backbone, keep, seed = case
    assert_pruned_equals_masked(backbone, keep, torch.float64, 1e-8, seed)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pruning_leaves_the_model_and_the_random_state_as_they_were(backbone: str) -> None:
    model = random_model(backbone)
    model.train()
    model.set_drop_path(0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    pruned = prune(model, everything(backbone))
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert pruned.training
    last = pruned.blocks[-1]
    assert isinstance(last, Block)
    assert last.drop_path == 0.3


def test_blocks_that_are_not_evenly_spaced_are_refused() -> None:
    keep = changed(everything("vit"), **(PARTS["depth"] | {"blocks": np.array([0, 3])}))
    with pytest.raises(InputError, match=r"shrink.depth: expected evenly spaced blocks up to the last, found \[0, 3\]"):
        prune(random_model("vit"), keep)


def test_a_depth_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match=r"shrink.depth: expected a divisor of the model's 12 blocks, found 5"):
        kept_blocks(12, 5)


@given(depth=st.integers(1, 48), step=st.integers(1, 6))
def test_kept_blocks_end_with_the_last_and_are_evenly_spaced(depth: int, step: int) -> None:
    blocks = kept_blocks(depth * step, depth)
    assert len(blocks) == depth
    assert blocks[-1] == depth * step - 1
    assert {later - earlier for earlier, later in zip((-1, *blocks), blocks, strict=False)} == {step}


@pytest.mark.parametrize(
    ("own", "dimension", "expected"),
    [
        (3, "heads", (1, 2, 3)),
        (32, "head_width", (16, 24, 32)),
        (20, "head_width", (16, 20)),
        (8, "head_width", (8,)),
        (264, "head_width", (*range(16, 257, 8), 264)),
        (64, "width", (16, 32, 48, 64)),
        (10, "neurons", (10,)),
    ],
)
def test_sizes_lie_on_the_grid_or_are_the_models_own(own: int, dimension: str, expected: tuple[int, ...]) -> None:
    assert allowed_sizes(own, dimension) == expected  # type: ignore[arg-type]


def made_scores() -> Importance:
    """Hand-made scores of a ViT: block 3 keeps heads 2 and 0, and other channels in each."""
    heads = np.array([5.0, 1.0, 9.0])
    queries = np.tile(np.arange(HEAD_WIDTH, dtype=float), (HEADS, 1))
    return Importance(
        heads=(np.zeros(HEADS),) * 3 + (heads,),
        queries=(np.zeros((HEADS, HEAD_WIDTH)),) * 3 + (queries,),
        values=(np.zeros((HEADS, HEAD_WIDTH)),) * 3 + (-queries,),
        neurons=(np.zeros(NEURONS),) * 3 + (np.arange(NEURONS) % 5.0,),
        width=np.zeros(WIDTH),
        stem=(),
    )


def test_the_highest_scores_are_kept_and_the_first_among_equals() -> None:
    shape = Shape(depth=1, width=3, heads=(2,), head_widths=(2,), neurons=(3,), stem=())
    keep = keep_best(random_model("vit"), made_scores(), shape)
    assert keep.blocks.tolist() == [3]
    assert keep.heads[0].tolist() == [0, 2]
    assert keep.queries[0].tolist() == [[6, 7], [6, 7]]
    assert keep.values[0].tolist() == [[0, 1], [0, 1]]
    assert keep.neurons[0].tolist() == [3, 4, 9]
    assert keep.width.tolist() == [0, 1, 2]
    assert keep.shape == shape


def test_each_head_keeps_its_own_channels() -> None:
    scores = made_scores()
    scores.queries[3][2] *= -1
    shape = Shape(depth=1, width=3, heads=(2,), head_widths=(2,), neurons=(3,), stem=())
    assert keep_best(random_model("vit"), scores, shape).queries[0].tolist() == [[6, 7], [0, 1]]


def test_more_than_there_is_cannot_be_kept() -> None:
    shape = Shape(depth=1, width=WIDTH + 1, heads=(2,), head_widths=(2,), neurons=(3,), stem=())
    with pytest.raises(ValueError, match="expected to keep 1 to 12, found 13"):
        keep_best(random_model("vit"), made_scores(), shape)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_the_best_keep_says_can_be_pruned(backbone: str) -> None:
    model = random_model(backbone)
    stem = (2, 3) if backbone == "cct" else ()
    shape = Shape(depth=2, width=6, heads=(2, 1), head_widths=(4, 8), neurons=(3, 10), stem=stem)
    keep = keep_best(model, importance(model, pictures(8).numpy(), "hsic"), shape)
    assert keep.shape == shape
    assert_pruned_equals_masked(backbone, keep, torch.float32, 1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_of_some_classes_answers_them_as_before(backbone: str) -> None:
    model = random_model(backbone)
    some = of_classes(model, (3, 1))
    torch.testing.assert_close(some(pictures()), model(pictures())[:, [3, 1]])
    assert some.config.classes == (3, 1)
    assert of_classes(some, (1,)).config.classes == (1,), "positions, not labels"
    assert sum(parameter.numel() for parameter in some.parameters()) == parameters(some.config)
    assert model.config.classes == (0, 1, 2, 3)
    assert some.positions is not model.positions
