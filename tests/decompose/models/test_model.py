from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from devit_decompose.models.model import PRESETS, Attention, Block, Model, ModelConfig, StemLayer, uniform_config
from devit_decompose.pruning.cost import macs, parameters

PATCHES = (StemLayer(32, kernel=2, stride=2, batch_norm=False),)
STEMS = {
    "vit": PATCHES,
    "deit": PATCHES,
    "cct": (StemLayer(8), StemLayer(16, stride=2, max_pool=True), StemLayer(32, kernel=5, batch_norm=False)),
}
FEATURE_DIMS = {"vit": 32, "deit": 64, "cct": 32}
each_backbone = pytest.mark.parametrize("backbone", list(STEMS))


def config(backbone: str = "cct", **changes: object) -> ModelConfig:
    settings: dict[str, object] = {
        "backbone": backbone,
        "image_size": (12, 10, 3),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "stem": STEMS[backbone],
        "depth": 2,
        "heads": 2,
        "mlp_ratio": 1.5,
        "classes": (0, 1, 2, 3),
    }
    return uniform_config(**(settings | changes))  # type: ignore[arg-type]


def preset(name: str) -> ModelConfig:
    half = (0.5, 0.5, 0.5)
    return uniform_config(
        **PRESETS[name]._asdict(), image_size=(224, 224, 3), mean=half, std=half, classes=tuple(range(1000))
    )


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 12, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@each_backbone
def test_a_model_maps_uint8_images_to_features_and_logits(backbone: str) -> None:
    model = Model(config(backbone)).eval()
    assert model.features(images()).shape == (3, FEATURE_DIMS[backbone])
    assert model.config.feature_dim == FEATURE_DIMS[backbone]
    assert model(images()).shape == (3, 4)


def test_a_deit_answers_with_both_heads_and_their_mean() -> None:
    """The class head reads the class token's half of the feature, the other head the distillation token's."""
    model = Model(config("deit")).eval()
    features = model.features(images())
    by_class, by_distillation = model.answers(features)
    assert model.distillation_head is not None
    torch.testing.assert_close(by_class, model.head(features[:, :32]), rtol=0, atol=0)
    torch.testing.assert_close(by_distillation, model.distillation_head(features[:, 32:]), rtol=0, atol=0)
    torch.testing.assert_close(model(images()), (by_class + by_distillation) / 2)


@each_backbone
def test_counted_parameters_are_those_of_the_built_model(backbone: str) -> None:
    assert parameters(config(backbone)) == sum(parameter.numel() for parameter in Model(config(backbone)).parameters())


@each_backbone
def test_counted_macs_are_those_of_the_layers_that_run(backbone: str) -> None:
    """Counted a second way: by hooks on the layers as they are called with real tensors."""
    model = Model(config(backbone)).eval()
    counted = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            counted += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            counted += inputs[0][0].numel() // module.in_features * module.weight.numel()
        if module in projections:
            _, tokens, inner = inputs[0].shape
            counted += 2 * tokens * tokens * inner  # query x key and weights x value are no modules

    projections = {module.project for module in model.modules() if isinstance(module, Attention)}
    for module in model.modules():
        module.register_forward_hook(count)
    model(images(1))
    if backbone == "cct":
        rows, columns = model.config.token_grid
        counted += rows * columns * model.config.width  # the pooling's weighted sum is no module either
    assert macs(model.config) == counted


@pytest.mark.parametrize(
    ("name", "millions", "giga_macs"),
    [
        # With 1000 classes and 224 x 224 pixels, as listed by timm (ViT, and DeiT distilled) and Compact-Transformers.
        ("ViT-Ti/16", 5.7, 1.25),
        ("ViT-S/16", 22.0, 4.6),
        ("ViT-B/16", 86.6, 17.6),
        ("ViT-L/16", 304.3, 61.6),
        ("DeiT-Ti", 5.9, 1.25),
        ("DeiT-S", 22.4, 4.6),
        ("DeiT-B", 87.3, 17.6),
        ("CCT-14/7x2", 22.36, 5.53),
    ],
)
def test_presets_have_the_published_cost(name: str, millions: float, giga_macs: float) -> None:
    assert parameters(preset(name)) / 1e6 == pytest.approx(millions, rel=0.006)
    assert macs(preset(name)) / 1e9 == pytest.approx(giga_macs, rel=0.03)


@each_backbone
def test_the_token_grid_is_what_the_tokenizer_makes(backbone: str) -> None:
    model = Model(config(backbone)).eval()
    rows, columns = model.config.token_grid
    assert model.tokenizer(torch.zeros(1, 3, 12, 10)).shape == (1, rows * columns, 32)
    assert model.config.tokens == rows * columns + {"vit": 1, "deit": 2, "cct": 0}[backbone]
    assert model.positions.shape == (1, model.config.tokens, 32)


@each_backbone
def test_written_out_attention_equals_pytorchs_own(backbone: str) -> None:
    attention = Attention(config(backbone), 0).eval()
    tokens = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2))
    query, key, value = (
        layer(tokens).reshape(2, 7, 2, 16).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    )
    expected = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 7, 32)
    torch.testing.assert_close(attention(tokens), attention.project(expected), rtol=1e-5, atol=1e-6)


@each_backbone
def test_observing_a_block_changes_no_feature_and_shows_what_it_compares(backbone: str) -> None:
    model = Model(config(backbone)).eval()
    seen: dict[str, torch.Tensor] = {}
    attention = model.blocks[1].attention
    assert isinstance(attention, Attention)
    for name in ("query", "key", "value"):
        layer = getattr(attention, name)
        layer.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    features, compared = model.observe(images(), 1)
    torch.testing.assert_close(features, model.features(images()), rtol=0, atol=0)
    assert compared.query.shape == (3, model.config.tokens, 32)
    for name, tensor in compared._asdict().items():
        torch.testing.assert_close(tensor, seen[name], rtol=0, atol=0)


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_is_not_there_cannot_be_observed(block: int) -> None:
    with pytest.raises(ValueError, match=r"expected 0 to 1"):
        Model(config()).observe(images(), block)


@each_backbone
def test_pixels_are_normalised_inside_the_model(backbone: str) -> None:
    model = Model(config(backbone)).eval()
    seen: list[torch.Tensor] = []
    model.tokenizer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    picture = images(1)
    model(picture)
    expected = (picture.numpy() / 255.0 - np.array((0.5, 0.4, 0.3))) / np.array((0.2, 0.3, 0.4))
    np.testing.assert_allclose(seen[0].numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_a_skipped_branch_leaves_an_image_as_it_was_and_the_others_make_up_for_it() -> None:
    """With the MLP silenced, what a block adds to an image is nothing or twice the attention's branch."""
    torch.manual_seed(3)
    block = Block(config("vit"), 0)
    nn.init.zeros_(block.contract.weight)
    nn.init.zeros_(block.contract.bias)
    tokens = torch.randn(1, 7, 32).expand(200, 7, 32)
    branch = block.eval()(tokens) - tokens
    block.train().drop_path = 0.5
    added = block(tokens) - tokens
    is_skipped = (added == 0).all(dim=(1, 2))
    assert 60 < is_skipped.sum() < 140
    torch.testing.assert_close(added[~is_skipped], 2 * branch[~is_skipped], rtol=1e-4, atol=1e-6)


@each_backbone
def test_skipping_rises_with_depth_and_ends_with_training(backbone: str) -> None:
    model = Model(config(backbone, depth=3)).eval()
    before = model(images())
    model.set_drop_path(0.4)
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.0, 0.2, 0.4])
    torch.testing.assert_close(model(images()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("backbone", "field", "value"),
    [
        ("cct", "heads", (2,)),
        ("cct", "backbone", "mlp"),
        ("cct", "mean", (0.5,)),
        ("cct", "stem", ()),
        ("cct", "neurons", ()),
        ("vit", "stem", STEMS["cct"]),
        ("vit", "image_size", (12, 9, 3)),
        ("deit", "stem", (StemLayer(32, kernel=3, stride=2, batch_norm=False),)),
        ("deit", "stem", (StemLayer(32, kernel=2, stride=2),)),
    ],
)
def test_a_configuration_that_does_not_fit_together_is_refused(backbone: str, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"expected|differ|need"):
        msgspec.structs.replace(config(backbone), **{field: value}).__post_init__()
