from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from devit_decompose.cost import macs, parameters
from devit_decompose.model import Attention, Model, ModelConfig, StemLayer, cct_config


def config(**changes: object) -> ModelConfig:
    settings: dict[str, object] = {
        "image_size": (12, 10, 3),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "stem": (StemLayer(8), StemLayer(16, stride=2, max_pool=True), StemLayer(32, kernel=5, batch_norm=False)),
        "depth": 2,
        "heads": 2,
        "mlp_ratio": 1.5,
        "classes": (0, 1, 2, 3),
    }
    return cct_config(**(settings | changes))  # type: ignore[arg-type]


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 12, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_model_maps_uint8_images_to_features_and_logits() -> None:
    model = Model(config()).eval()
    assert model.features(images()).shape == (3, 32)
    assert model(images()).shape == (3, 4)


def test_counted_parameters_are_those_of_the_built_model() -> None:
    assert parameters(config()) == sum(parameter.numel() for parameter in Model(config()).parameters())


def test_counted_macs_are_those_of_the_layers_that_run() -> None:
    """Counted a second way: by hooks on the layers as they are called with real tensors."""
    model = Model(config()).eval()
    counted = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d):
            counted += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            counted += inputs[0][0].numel() // module.in_features * module.weight.numel()
        elif isinstance(module, Attention):
            tokens = inputs[0].shape[1]
            counted += 2 * tokens * tokens * module.heads * module.head_width

    for module in model.modules():
        module.register_forward_hook(count)  # type: ignore[arg-type]
    model(images(1))
    rows, columns = model.config.token_grid
    counted += rows * columns * model.config.width  # the pooling's weighted sum is no module
    assert macs(model.config) == counted


def test_the_token_grid_is_what_the_tokenizer_makes() -> None:
    model = Model(config()).eval()
    rows, columns = model.config.token_grid
    assert model.tokenizer(torch.zeros(1, 3, 12, 10)).shape == (1, rows * columns, 32)


def test_written_out_attention_equals_pytorchs_own() -> None:
    attention = Attention(config(), 0).eval()
    tokens = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2))
    query, key, value = (
        layer(tokens).reshape(2, 7, 2, 16).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    )
    expected = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 7, 32)
    torch.testing.assert_close(attention(tokens), attention.project(expected), rtol=1e-5, atol=1e-6)


def test_pixels_are_normalised_inside_the_model() -> None:
    model = Model(config()).eval()
    seen: list[torch.Tensor] = []
    model.tokenizer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    picture = images(1)
    model(picture)
    expected = (picture.numpy() / 255.0 - np.array((0.5, 0.4, 0.3))) / np.array((0.2, 0.3, 0.4))
    np.testing.assert_allclose(seen[0].numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("heads", (2,)), ("backbone", "mlp"), ("mean", (0.5,)), ("stem", ()), ("neurons", ())],
)
def test_a_configuration_that_does_not_fit_together_is_refused(field: str, value: object) -> None:
    import msgspec

    with pytest.raises(ValueError, match=r"expected|differ|need"):
        msgspec.structs.replace(config(), **{field: value}).__post_init__()
