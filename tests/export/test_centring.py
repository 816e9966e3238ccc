"""A centred model gives the same answers, also where an old ONNX Runtime computes its norms."""

from __future__ import annotations

import copy
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from devit_contract.arrays import UInt8Array
from devit_decompose.models.inference import run
from devit_decompose.models.model import Model
from devit_export.centring import centred
from devit_export.graph import export_features

HARD_KINDS = ("pruned", "cct")
"""A DeiT and a CCT whose widths are no powers of two: those would divide without rounding."""
HARD_TOKENS = ("flat", "far")
OFFSET = 3000.0
OLD = "onnxruntime==1.23.2"
"""The last for Python 3.10, which JetPack 6 has."""
RUN = """
import sys
from pathlib import Path
import numpy, onnxruntime
assert onnxruntime.__version__ == "1.23.2"
for graph in Path(sys.argv[1]).glob("*.onnx"):
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    images = numpy.load(graph.with_suffix(".images.npy"))
    numpy.save(graph.with_suffix(".npy"), session.run(None, {"images": images})[0])
"""


class OldNorm(nn.LayerNorm):
    """As ONNX Runtime computes it up to 1.26: the variance is the mean square minus the square of the mean."""

    def forward(self, tokens: Tensor) -> Tensor:
        mean = tokens.mean(dim=-1, keepdim=True)
        mean_square = (tokens * tokens).mean(dim=-1, keepdim=True)
        deviation = (mean_square - mean * mean + self.eps).sqrt()
        return (tokens - mean) / deviation * self.weight + self.bias


def with_old_norms(model: Model) -> Model:
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = OldNorm
    return copied


def hard_images(model: Model) -> UInt8Array:
    """Black, white, half black and one of noise, ``(4, H, W, C)``."""
    shape = model.config.image_size
    images = np.zeros((4, *shape), np.uint8)
    images[1] = 255
    images[2, :, shape[1] // 2 :] = 255
    images[3] = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    return images


def with_tokens(model: Model, tokens: str) -> Model:
    """Copy a model whose tokenizer adds 3,000 to every channel; in flat tokens, all channels are alike besides."""
    copied = copy.deepcopy(model)
    layers = list(copied.tokenizer.layers)
    first = max(index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
    last = [layer for layer in layers[first:] if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))]
    with torch.no_grad():
        if tokens == "flat":
            for tensor in [tensor for layer in last for tensor in (*layer.parameters(), *layer.buffers())]:
                tensor.copy_(tensor[:1].expand_as(tensor) if tensor.ndim else tensor)
            for added in (copied.positions, copied.prefix):
                if added is not None:
                    added.zero_()
        if last[-1].bias is None:
            raise AssertionError("a tokenizer ends in a layer with a bias")
        last[-1].bias.add_(OFFSET)
    return copied


@pytest.mark.parametrize("tokens", HARD_TOKENS)
@pytest.mark.parametrize("kind", HARD_KINDS)
def test_flat_and_far_off_tokens_are_right_where_norms_subtract_two_squares(
    kind: str, tokens: str, sample_model: Callable[[str], Model]
) -> None:
    """Without centring, each of these models goes wrong."""
    model = with_tokens(sample_model(kind), tokens)
    images = hard_images(model)
    exact = run(copy.deepcopy(model).double().features, images)
    size = float(np.abs(exact).max())
    uncentred = run(with_old_norms(model).features, images)
    assert not np.abs(uncentred - exact).max() < 0.03 * size  # or NaN
    found = run(with_old_norms(centred(model)).features, images)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-3 * size)


@pytest.mark.parametrize("kind", ["vit", "deit", "cct", "pruned"])
def test_a_centred_model_gives_the_features_and_logits_of_the_original(
    kind: str, sample_model: Callable[[str], Model]
) -> None:
    model = sample_model(kind)
    before = copy.deepcopy(model.state_dict())
    images = hard_images(model)
    np.testing.assert_allclose(run(centred(model).features, images), run(model.features, images), rtol=0, atol=2e-5)
    np.testing.assert_allclose(run(centred(model), images), run(model, images), rtol=0, atol=2e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.nightly(part="installs")
@pytest.mark.timeout(600)
def test_black_white_and_half_black_images_are_right_on_the_runtime_of_jetpack_6(
    sample_model: Callable[[str], Model], tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    words = [python, "-m", "pip", "install", "--quiet", OLD, "numpy"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    if done.returncode != 0:
        pytest.skip(f"cannot install {OLD}: {done.stderr.strip().splitlines()[-1]}")
    expected = {}
    for kind in HARD_KINDS:
        for tokens in HARD_TOKENS:
            model = with_tokens(sample_model(kind), tokens)
            path = tmp_path / f"{kind}-{tokens}.onnx"
            path.write_bytes(export_features(model, path.name).content)
            np.save(path.with_suffix(".images.npy"), hard_images(model))
            expected[path] = run(model.double().features, hard_images(model))
    subprocess.run([python, "-c", RUN, tmp_path], check=True, timeout=120)
    for path, exact in expected.items():
        found = np.load(path.with_suffix(".npy"))
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-3 * np.abs(exact).max(), err_msg=path.name)
