from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devit_decompose.models.model import Model, StemLayer, uniform_config
from devit_decompose.pruning.importance import (
    Importance,
    centred,
    channel_scores,
    dependence,
    gaussian_kernels,
    head_scores,
    hsic,
    importance,
    query_scores,
    value_scores,
)

Array = npt.NDArray[np.float64]


def plain_kernel(rows: Array) -> Array:
    """Gaussian kernels of widths 1, 2, 4, 8 and 16, averaged; number by number."""
    count = len(rows)
    kernel = np.zeros((count, count))
    for one in range(count):
        for other in range(count):
            distance = float(sum((a - b) ** 2 for a, b in zip(rows[one], rows[other], strict=True)))
            kernel[one, other] = np.mean([np.exp(-distance / (2 * width**2)) for width in (1, 2, 4, 8, 16)])
    return kernel


def plain_hsic(kernel: Array, other: Array) -> float:
    """Tr(K H L H) / (n - 1)^2 with H = 1 - 1/n."""
    count = len(kernel)
    centring = np.eye(count) - 1 / count
    return float(np.trace(kernel @ centring @ other @ centring)) / (count - 1) ** 2


def unit(scores: Array) -> Array:
    return (scores - scores.min()) / (scores.max() - scores.min())


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape) * scale


def answers(count: int = 7, seed: int = 1) -> Array:
    probabilities = np.exp(draw(count, 3, seed=seed))
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array).float()


@settings(deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.01, 1.0, 30.0]))
def test_dependence_is_that_of_the_plain_loops(seed: int, scale: float) -> None:
    activations, told = draw(7, 4, 3, scale=scale, seed=seed), answers(seed=seed + 1)
    expected = [plain_hsic(plain_kernel(activations[:, :, channel]), told @ told.T) for channel in range(3)]
    np.testing.assert_allclose(dependence(tensor(activations), tensor(told)).numpy(), expected, rtol=1e-3, atol=1e-9)


def test_kernels_are_those_of_the_plain_loops_less_one() -> None:
    rows = draw(6, 3)
    np.testing.assert_allclose(gaussian_kernels(tensor(rows)[None])[0].numpy(), plain_kernel(rows) - 1, atol=1e-5)


def test_what_does_not_change_depends_on_nothing() -> None:
    constant = torch.full((7, 4, 2), 3.0)
    assert dependence(constant, tensor(answers())).abs().max() < 1e-7


def test_what_tells_the_class_depends_on_it_more_than_noise() -> None:
    labels = np.arange(60) % 3
    told = np.eye(3)[labels]
    activations = np.stack([labels[:, None] * 2.0 + draw(60, 4, scale=0.1), draw(60, 4, seed=2)], axis=2)
    speaking, noise = dependence(tensor(activations), tensor(told))
    assert speaking > 10 * noise


def test_many_activations_are_scored_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken in chunks; where the cuts fall does not matter."""
    activations, told = tensor(draw(7, 4, 5)), tensor(answers())
    whole = dependence(activations, told)
    monkeypatch.setattr("devit_decompose.pruning.importance._KERNEL_NUMBERS", 100)
    torch.testing.assert_close(dependence(activations, told), whole)


def test_a_neurons_score_is_one_tenth_dependence_and_nine_tenths_size() -> None:
    activations, told = draw(7, 4, 3), answers()
    by_answer = np.array([plain_hsic(plain_kernel(activations[:, :, each]), told @ told.T) for each in range(3)])
    size = np.abs(activations).sum(axis=(0, 1))
    expected = 0.1 * unit(by_answer) + 0.9 * unit(size)
    np.testing.assert_allclose(channel_scores(tensor(activations), tensor(told)).numpy(), expected, atol=1e-4)


def test_a_heads_score_is_its_dependence_less_what_other_heads_tell() -> None:
    mixed, told = draw(7, 4, 3, 2), answers()
    means = mixed.mean(axis=3)
    kernels = [plain_kernel(means[:, :, head]) for head in range(3)]
    expected = []
    for head in range(3):
        others = [plain_hsic(kernels[head], kernels[other]) for other in range(3) if other != head]
        expected.append(plain_hsic(kernels[head], told @ told.T) - 0.1 * np.mean(others))
    np.testing.assert_allclose(head_scores(tensor(mixed), tensor(told)).numpy(), expected, rtol=1e-3, atol=1e-8)


def test_a_head_alone_has_no_redundancy() -> None:
    mixed, told = tensor(draw(7, 4, 1, 2)), tensor(answers())
    torch.testing.assert_close(head_scores(mixed, told), dependence(mixed.mean(dim=3), told))


def test_channels_of_the_value_compete_inside_their_head() -> None:
    mixed, told = tensor(draw(7, 4, 2, 3)), tensor(answers())
    by_head = torch.stack([channel_scores(mixed[:, :, head], told) for head in range(2)])
    torch.testing.assert_close(value_scores(mixed, told), by_head)


def test_a_key_channel_that_all_tokens_share_has_no_size() -> None:
    """The softmax over keys does not see it: what is left is the tenth of dependence."""
    query, key, told = tensor(draw(7, 4, 1, 3)), tensor(draw(7, 4, 1, 3, seed=4)), tensor(answers())
    key[..., 1] = 5.0
    assert query_scores(query, key, told)[0, 1] <= 0.1


def model(backbone: str, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    stem = (StemLayer(6), StemLayer(12, stride=2)) if backbone == "cct" else (StemLayer(12, 4, 4, batch_norm=False),)
    built = Model(
        uniform_config(
            backbone=backbone,
            image_size=(8, 8, 1),
            mean=(0.5,),
            std=(0.3,),
            stem=stem,
            depth=2,
            heads=3,
            mlp_ratio=1.5,
            classes=(0, 1, 2),
        )
    )
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return built


def images(count: int = 16) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


@pytest.mark.parametrize("method", ["hsic", "magnitude"])
@pytest.mark.parametrize("backbone", ["vit", "deit", "cct"])
def test_every_part_of_a_model_gets_a_score(backbone: str, method: str) -> None:
    whole = model(backbone)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    found = importance(whole, images(), method)  # type: ignore[arg-type]
    assert [scores.shape for scores in found.heads] == [(3,), (3,)]
    assert [scores.shape for scores in found.queries] == [(3, 4), (3, 4)]
    assert [scores.shape for scores in found.values] == [(3, 4), (3, 4)]
    assert [scores.shape for scores in found.neurons] == [(18,), (18,)]
    assert found.width.shape == (12,)
    assert [scores.shape for scores in found.stem] == ([(6,)] if backbone == "cct" else [])
    assert all(np.isfinite(scores).all() and np.ptp(scores) > 0 for scores in arrays(found))
    assert whole.training, "the model is left as it was"
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)


def arrays(found: Importance) -> list[Array]:
    fields = [getattr(found, each.name) for each in dataclasses.fields(found)]
    return [scores for each in fields for scores in (each if isinstance(each, tuple) else (each,))]


def test_neurons_are_scored_behind_their_activation_function() -> None:
    """Built a second way: what block 0 computes, written out for a ViT."""
    whole = model("vit").eval()
    with torch.no_grad():
        seen: list[torch.Tensor] = []
        hook = whole.blocks[0].contract.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        told = whole(torch.from_numpy(images())).softmax(dim=1)
        hook.remove()
    expected = channel_scores(seen[0], told).numpy()
    np.testing.assert_allclose(importance(whole, images(), "hsic").neurons[0], expected, atol=1e-6)


@pytest.mark.parametrize("method", ["hsic", "magnitude"])
@pytest.mark.parametrize("backbone", ["vit", "cct"])
def test_parts_that_do_nothing_come_last(backbone: str, method: str) -> None:
    whole = model(backbone)
    with torch.no_grad():
        block = whole.blocks[1]
        block.expand.weight[7] = block.expand.bias[7] = 0.0  # type: ignore[index]
        block.attention.value.weight[4 * 1 + 2] = 0.0  # type: ignore[index]
        block.attention.query.weight[4 * 2 + 3] = 0.0  # type: ignore[index]
        for layer in (block.attention.value, block.attention.query):
            if layer.bias is not None:
                layer.bias[[6, 11]] = 0.0  # type: ignore[index]
        if backbone == "cct":
            whole.tokenizer.layers[1].weight[5] = whole.tokenizer.layers[1].bias[5] = 0.0  # type: ignore[index]
    found = importance(whole, images(), method)  # type: ignore[arg-type]
    assert found.neurons[1].argmin() == 7
    assert found.values[1][1].argmin() == 2
    assert found.queries[1][2].argmin() == 3
    assert backbone == "vit" or found.stem[0][5] == found.stem[0].min()


def test_magnitude_is_the_length_in_times_the_length_out() -> None:
    whole = model("vit")
    block = whole.blocks[0]
    expand, bias, contract = (
        value.detach().numpy() for value in (block.expand.weight, block.expand.bias, block.contract.weight)
    )
    into, out = np.hypot(np.linalg.norm(expand, axis=1), bias), np.linalg.norm(contract, axis=0)
    found = importance(whole, images(0), "magnitude")
    np.testing.assert_allclose(found.neurons[0], into * out, rtol=1e-5)


def test_centring_takes_the_means_out() -> None:
    kernel = centred(tensor(draw(5, 5)))
    assert kernel.mean(dim=0).abs().max() < 1e-6
    assert kernel.mean(dim=1).abs().max() < 1e-6
    torch.testing.assert_close(hsic(kernel[None], kernel), kernel.square().sum()[None] / 16)
