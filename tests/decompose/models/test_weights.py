"""Published weights in our models: against timm's own code, and a CCT written out a second time."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor, nn

from devit_contract.errors import InputError, ManifestError
from devit_decompose.models import timm_models
from devit_decompose.models.initial_weights import initial_weights
from devit_decompose.models.model import PRESETS, Model, ModelConfig, StemLayer, uniform_config
from devit_decompose.models.timm_models import import_timm, import_torchvision, timm_config
from devit_decompose.models.weights import filled_model, from_cct, from_timm, load_model, save_weights

EXAMPLE = Path(__file__).parents[3] / "examples" / "fashion-mnist"

# A ViT-L alone takes seconds on an idle core.
pytestmark = pytest.mark.timeout(300)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    try:
        return import_timm()
    except InputError as err:
        pytest.skip(str(err))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter numbers of its own, of a size that lets attention choose and signals pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            bound = math.sqrt(3.0 / parameter[0].numel()) if parameter.ndim in (2, 4) else 0.4
            parameter.uniform_(-bound, bound, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def random_timm(timm: ModuleType, name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    return randomise(model.to_empty(device="cpu"))


def pictures(count: int, size: tuple[int, ...] = (224, 224, 3)) -> Tensor:
    return torch.randint(0, 256, (count, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def pixels(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Normalise as published models are fed: ``(B, C, H, W)``."""
    scaled = images.double() / 255.0
    return ((scaled - torch.tensor(mean).double()) / torch.tensor(std).double()).float().permute(0, 3, 1, 2)


def small_config(backbone: str = "vit", **changes: object) -> ModelConfig:
    stem: tuple[StemLayer, ...] = (StemLayer(16, kernel=4, stride=4, batch_norm=False),)
    if backbone == "cct":
        layer = StemLayer(16, kernel=3, stride=1, batch_norm=False, max_pool=True)
        stem = (StemLayer(64, kernel=3, stride=1, batch_norm=False, max_pool=True), layer)
    options: dict[str, object] = {
        "backbone": backbone,
        "image_size": (16, 16, 3),
        "mean": MEAN,
        "std": STD,
        "stem": stem,
        "depth": 2,
        "heads": 2,
        "mlp_ratio": 2.0,
        "classes": (0, 1, 2),
    }
    return uniform_config(**(options | changes))  # type: ignore[arg-type]


def small_timm(timm: ModuleType, /, name: str = "vit_tiny_patch16_224", **changes: object) -> nn.Module:
    options: dict[str, object] = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "num_classes": 3,
    }
    return random_timm(timm, name, **(options | changes))


# timm


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny_patch16_224", 2),
        ("vit_small_patch16_224", 2),
        ("vit_base_patch16_224", 1),
        pytest.param("vit_large_patch16_224", 1, marks=pytest.mark.nightly(part="models")),  # slow
        ("deit_tiny_patch16_224", 2),
        ("deit_small_patch16_224", 2),
        ("deit_base_patch16_224", 1),
        ("deit_tiny_distilled_patch16_224", 2),
        ("deit_small_distilled_patch16_224", 2),
        ("deit_base_distilled_patch16_224", 1),
    ],
)
def test_a_model_filled_from_timm_gives_timms_features_and_logits(
    timm: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    for start in ("trunc_normal_", "kaiming_uniform_"):  # seconds for a ViT-L, of numbers that are replaced at once
        monkeypatch.setattr(nn.init, start, lambda tensor, **_options: tensor)
    theirs = random_timm(timm, name)
    config = timm_config(theirs, mean=MEAN, std=STD, classes=tuple(range(1000)))
    ours = filled_model(config, from_timm(theirs.state_dict(), config))
    images = pictures(count)
    with torch.inference_mode():
        tokens = theirs.forward_features(pixels(images))  # type: ignore[operator]
        features = ours.features(images)
        expected_logits = theirs.forward_head(tokens)  # type: ignore[operator]
        found_logits = ours(images)
    torch.testing.assert_close(features, tokens[:, : config.prefix_tokens].flatten(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found_logits, expected_logits, rtol=0, atol=1e-5)


def test_what_a_block_compares_is_what_timms_block_compares(timm: ModuleType) -> None:
    theirs = random_timm(timm, "deit_tiny_distilled_patch16_224")
    config = timm_config(theirs, mean=MEAN, std=STD, classes=tuple(range(1000)))
    ours = filled_model(config, from_timm(theirs.state_dict(), config))
    seen: list[Tensor] = []
    theirs.blocks[5].attn.qkv.register_forward_hook(lambda _module, _inputs, output: seen.append(output))  # type: ignore[index, union-attr]
    images = pictures(1)
    with torch.inference_mode():
        theirs(pixels(images))
        _, compared = ours.observe(images, 5)
    for found, expected in zip(compared, seen[0].chunk(3, dim=2), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_a_pruned_module_scales_its_queries_as_its_own_attention_does(timm: ModuleType, fused: bool) -> None:
    """Fused attention never asks for ``scale``, which stays that of the width before pruning."""
    theirs = small_timm(timm, "vit_tiny_patch16_224")
    for block in theirs.blocks:  # type: ignore[union-attr]
        block.attn.scale, block.attn.fused_attn = 2.5, fused  # type: ignore[union-attr]
    config = timm_config(theirs, mean=MEAN, std=STD, classes=(0, 1, 2))
    images = pictures(2, (16, 16, 3))
    with torch.inference_mode():
        found = filled_model(config, from_timm(theirs.state_dict(), config))(images)
        torch.testing.assert_close(found, theirs(pixels(images)), rtol=0, atol=1e-5)


def test_a_weight_that_is_not_finite_is_refused_by_name(timm: ModuleType) -> None:
    theirs = small_timm(timm, "vit_tiny_patch16_224")
    config = timm_config(theirs, mean=MEAN, std=STD, classes=(0, 1, 2))
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["blocks.1.mlp.fc2.weight"][3, 5] = math.nan
    with pytest.raises(ManifestError, match=r"tensor blocks\.1\.mlp\.fc2\.weight: expected finite numbers"):
        from_timm(state, config)


def test_patches_that_overlap_are_refused_whatever_timm_notes_of_them(timm: ModuleType) -> None:
    """Its convolution decides; ``patch_size`` is a note of how it was built."""
    theirs = small_timm(timm, "vit_tiny_patch16_224")
    theirs.patch_embed.proj.stride = (2, 2)  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"patches \(4, 4\) every \(2, 2\)"):
        timm_config(theirs, mean=MEAN, std=STD, classes=(0, 1, 2))


@pytest.mark.parametrize(
    ("one", "other"),
    [("cls_token", "dist_token"), ("head", "head_dist"), ("norm1", "norm2"), ("query", "key"), ("key", "value")],
)
def test_random_numbers_would_show_a_wrong_order(timm: ModuleType, one: str, other: str) -> None:
    """The comparison above means something: no two parts can take each other's place in it."""
    theirs = small_timm(timm, "deit_tiny_distilled_patch16_224")
    config = timm_config(theirs, mean=MEAN, std=STD, classes=(0, 1, 2))
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    if one in ("query", "key"):
        for name in [name for name in state if "qkv" in name]:
            parts = dict(zip(("query", "key", "value"), state[name].chunk(3), strict=True))
            parts[one], parts[other] = parts[other], parts[one]
            state[name] = torch.cat(list(parts.values()))
    else:
        for name in [name for name in state if one in name.split(".")]:
            swapped = ".".join(other if part == one else part for part in name.split("."))
            state[name], state[swapped] = state[swapped], state[name]
    images = pictures(2, (16, 16, 3))
    with torch.inference_mode():
        right = filled_model(config, from_timm(theirs.state_dict(), config)).features(images)
        wrong_model = filled_model(config, from_timm(state, config))
        wrong = wrong_model.features(images)
        answers = wrong_model(images)
        expected = theirs(pixels(images))
    assert max((wrong - right).abs().max().item(), (answers - expected).abs().max().item()) > 1e-3


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_positions_of_another_image_size_are_resampled_as_timm_does(timm: ModuleType, name: str) -> None:
    theirs = small_timm(timm, name)
    config = timm_config(theirs, mean=MEAN, std=STD, classes=(0, 1, 2))
    taller = msgspec.structs.replace(config, image_size=(24, 12, 3))
    state = theirs.state_dict()
    found = from_timm(state, taller)["positions"]
    expected = timm.layers.resample_abs_pos_embed(
        state["pos_embed"], new_size=[6, 3], num_prefix_tokens=config.prefix_tokens
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_positions_that_fit_two_grids_are_refused_until_the_grid_is_told() -> None:
    config = small_config(image_size=(8, 32, 3))  # 2 x 8 tokens, as many as 4 x 4
    state = timm_state(small_config())
    with pytest.raises(ManifestError, match=r"pos_embed.* 2 x 8 or 4 x 4"):
        from_timm(state, config)
    same = from_timm(state, config, grid=(2, 8))["positions"]
    torch.testing.assert_close(same, state["pos_embed"], rtol=0, atol=0)
    assert not torch.equal(from_timm(state, config, grid=(4, 4))["positions"], same)


def test_every_architecture_that_ours_lacks_a_part_of_is_refused(timm: ModuleType) -> None:
    refused = {
        "deit3_small_patch16_224": "LayerScale at blocks.0.ls1",
        "vit_small_patch14_dinov2": "LayerScale",
        "vit_little_patch16_reg4_gap_256": "LayerScale|register",
        "vit_base_patch16_gap_224": "no class token",
        "vit_base_patch16_siglip_224": "AttentionPoolLatent at attn_pool",
        "vit_base_patch16_clip_224": "LayerNorm at norm_pre",
        "vit_base_patch16_224_miil": "blocks.0.attn.qkv.bias",
        "vit_base_r50_s16_224": "HybridEmbed at patch_embed",
        "vit_base_patch16_rpn_224": "ResPostBlock",
        "vit_small_patch16_18x2_224": "ParallelThingsBlock",
        "vit_relpos_small_patch16_224": "VisionTransformerRelPos",
        "resnet18": "ResNet",
    }
    for name, part in refused.items():
        with pytest.raises(InputError, match=part) as found:
            timm_config(name, mean=MEAN, std=STD, classes=(0, 1))
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"qk_norm": True}, r"LayerNorm at blocks.0.attn.q_norm"),
        ({"init_values": 0.1}, r"LayerScale at blocks.0.ls1"),
        ({"reg_tokens": 2}, r"register tokens"),
        ({"no_embed_class": True}, r"class token without position"),
        ({"global_pool": "avg", "fc_norm": False}, r"pooling 'avg'"),
        ({"norm_layer": nn.LayerNorm}, r"eps 1e-05"),
        ({"act_layer": "quick_gelu"}, r"QuickGELU at blocks.0.mlp.act"),
        ({"act_layer": lambda: nn.GELU(approximate="tanh")}, r"approximate GELU"),
        ({"final_norm": False}, r"Identity at norm"),
        ({"patch_size": (4, 8)}, r"patches \(4, 8\)"),
        ({"img_size": 18}, r"multiples of the patch 4"),
    ],
)
def test_every_option_that_ours_lacks_is_refused(timm: ModuleType, options: dict[str, object], part: str) -> None:
    with pytest.raises(InputError, match=part):
        timm_config(small_timm(timm, "vit_tiny_patch16_224", **options), mean=MEAN, std=STD, classes=(0, 1, 2))


def test_a_model_of_another_package_is_refused(timm: ModuleType) -> None:
    with pytest.raises(InputError, match="Linear of another package"):
        timm_config(nn.Linear(2, 2), mean=MEAN, std=STD, classes=(0, 1))


@pytest.mark.parametrize("name", ["vit_tiny_patch17_224", "hf-hub:someone/model", ""])
def test_a_name_that_timm_does_not_know_is_refused(timm: ModuleType, name: str) -> None:
    with pytest.raises(InputError, match="expected a model that timm knows"):
        timm_config(name, mean=MEAN, std=STD, classes=(0, 1))


def test_a_timm_model_from_a_file_answers_as_timm_does(timm: ModuleType, tmp_path: Path) -> None:
    theirs = random_timm(timm, "vit_tiny_patch16_224")
    path, half = tmp_path / "vit.safetensors", (0.5, 0.5, 0.5)
    save_file(theirs.state_dict(), path)
    config = timm_config("vit_tiny_patch16_224", mean=half, std=half, classes=tuple(range(1000)))
    ours = initial_weights(str(path), config)
    images = pictures(1)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(pixels(images, half, half)), rtol=0, atol=1e-5)
    with pytest.raises(ManifestError, match=r"vit.safetensors.*head.*\(10, 192\).*fresh head"):
        initial_weights(str(path), msgspec.structs.replace(config, classes=tuple(range(10))))
    fresh = initial_weights(str(path), msgspec.structs.replace(config, classes=(0, 1)), fresh_head=True)
    assert fresh(images).shape == (1, 2)


@pytest.fixture
def published(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[], nn.Module]:
    """What timm would download: here, random numbers."""
    create = timm.create_model
    made: list[nn.Module] = []

    def create_model(name: str, pretrained: bool = False) -> nn.Module:
        model: nn.Module = create(name)
        if pretrained:
            made.append(randomise(model))
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    return lambda: made[-1]


def test_published_weights_answer_alike_however_the_recipe_normalises_pixels(
    published: Callable[[], nn.Module],
) -> None:
    config = timm_config("vit_tiny_patch16_224", mean=MEAN, std=STD, classes=tuple(range(1000)))
    ours = initial_weights("timm:vit_tiny_patch16_224", config)
    assert not ours.training
    images = pictures(2)
    half = (0.5, 0.5, 0.5)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), published()(pixels(images, half, half)), rtol=0, atol=2e-5)


def test_published_weights_fit_another_image_size_and_another_number_of_classes(
    timm: ModuleType, published: Callable[[], nn.Module]
) -> None:
    config = timm_config("deit_tiny_distilled_patch16_224", mean=MEAN, std=STD, classes=(3, 4))
    config = msgspec.structs.replace(config, image_size=(112, 448, 3))  # 7 x 28 tokens, as many as 14 x 14
    ours = initial_weights("timm:deit_tiny_distilled_patch16_224", config, fresh_head=True)
    expected = timm.layers.resample_abs_pos_embed(published().pos_embed, new_size=[7, 28], num_prefix_tokens=2)
    torch.testing.assert_close(ours.positions, expected, rtol=0, atol=1e-6)
    assert ours(pictures(1, (112, 448, 3))).shape == (1, 2)


@pytest.mark.parametrize(
    ("changes", "field"), [({"heads": 6}, "heads"), ({"backbone": "deit"}, "backbone"), ({"depth": 6}, "heads")]
)
def test_published_weights_are_refused_where_only_the_shapes_would_fit(
    published: Callable[[], nn.Module], changes: dict[str, object], field: str
) -> None:
    shape = PRESETS["ViT-Ti/16"]._asdict() | changes
    config = uniform_config(**shape, image_size=(224, 224, 3), mean=MEAN, std=STD, classes=(0, 1))
    with pytest.raises(ManifestError, match=f"timm:vit_tiny_patch16_224: {field}: expected"):
        initial_weights("timm:vit_tiny_patch16_224", config, fresh_head=True)


def test_a_failed_download_is_one_line(timm: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"timm:deit_tiny_patch16_224: weights cannot be downloaded \(.+\): ") as found:
        initial_weights("timm:deit_tiny_patch16_224", small_config("deit"))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_missing_package_says_what_to_install(
    timm: ModuleType, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package} cannot be imported \(.+\): pip install 'devit\[timm\]'"):
        import_timm()


def test_torchvision_is_given_whole_each_time(timm: ModuleType) -> None:
    assert import_torchvision() is import_torchvision()
    assert import_torchvision().transforms.functional is not None


def test_a_torchvision_that_breaks_otherwise_is_not_papered_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise RuntimeError("something else\nand more")

    monkeypatch.setattr(timm_models, "_import", broken)
    with pytest.raises(InputError, match=r"^torchvision cannot be loaded \(something else\): pip install"):
        import_torchvision()


# The public CCT, written after the structure and the names of SHI-Labs/Compact-Transformers (src/cct.py).


class PublicAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        query, key, value = self.qkv(x).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        mixed: Tensor = self.proj((weights @ value).transpose(1, 2).reshape(batch, count, width))
        return mixed


class PublicLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(width)
        self.self_attn = PublicAttention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.norm1 = nn.LayerNorm(width)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(self.pre_norm(x)))
        mlp: Tensor = self.linear2(nn.functional.gelu(self.linear1(x)))
        return x + mlp


class PublicTokenizer(nn.Module):
    def __init__(self, widths: list[int], kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False),
                    nn.ReLU(),
                    nn.MaxPool2d(3, 2, 1),
                )
                for before, after in itertools.pairwise(widths)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.conv_layers(x)
        return torch.flatten(maps, 2, 3).transpose(-2, -1)


class PublicClassifier(nn.Module):
    def __init__(self, tokens: int, width: int, depth: int, heads: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.positional_emb = nn.Parameter(torch.zeros(1, tokens, width))
        self.attention_pool = nn.Linear(width, 1)
        self.blocks = nn.ModuleList(PublicLayer(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def pooled(self, x: Tensor) -> Tensor:
        x = x + self.positional_emb
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return torch.matmul(self.attention_pool(x).softmax(dim=1).transpose(-1, -2), x).squeeze(-2)


class PublicCct(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        first, width = config.stem[0], config.width
        self.tokenizer = PublicTokenizer([3, *(layer.width for layer in config.stem)], first.kernel, first.stride)
        self.classifier = PublicClassifier(
            config.tokens, width, len(config.heads), config.heads[0], config.neurons[0], len(config.classes)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.pooled(self.tokenizer(x))
        return features, self.classifier.fc(features)


def test_a_model_filled_from_a_public_cct_gives_its_features_and_logits() -> None:
    config = uniform_config(
        **PRESETS["CCT-14/7x2"]._asdict(), image_size=(224, 224, 3), mean=MEAN, std=STD, classes=tuple(range(1000))
    )
    theirs = randomise(PublicCct(config))
    ours = filled_model(config, from_cct(theirs.state_dict(), config))
    images = pictures(2)
    with torch.inference_mode():
        features, logits = theirs(pixels(images))
        torch.testing.assert_close(ours.features(images), features, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours(images), logits, rtol=0, atol=1e-5)


def test_a_public_cct_for_another_image_size_is_resampled() -> None:
    config = small_config("cct")
    state = randomise(PublicCct(config)).state_dict()
    wider = msgspec.structs.replace(config, image_size=(16, 32, 3))
    positions = state["classifier.positional_emb"].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(positions, (4, 8), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(from_cct(state, wider)["positions"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", [StemLayer(16), StemLayer(16, batch_norm=False)])
def test_a_stem_that_no_public_cct_has_is_refused(layer: StemLayer) -> None:
    config = small_config("cct")
    with pytest.raises(ManifestError, match="stem: expected max_pool = true and batch_norm = false"):
        from_cct(randomise(PublicCct(config)).state_dict(), msgspec.structs.replace(config, stem=(layer,)))


# Files


def timm_state(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a timm model by name and shape, made without timm."""
    width, hidden, depth = config.width, config.neurons[0], len(config.heads)
    side, classes = config.stem[0].kernel, len(config.classes)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, config.tokens, width),
        "patch_embed.proj.weight": (width, 3, side, side),
        "patch_embed.proj.bias": (width,),
    }
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for block in range(depth):
        for name, shape in linear.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
    for name in ["norm", *(f"blocks.{block}.norm{number}" for block in range(depth) for number in (1, 2))]:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    shapes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    if config.backbone == "deit":
        shapes |= {"dist_token": (1, 1, width), "head_dist.weight": (classes, width), "head_dist.bias": (classes,)}
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def foreign_state(backbone: str) -> dict[str, Tensor]:
    config = small_config(backbone)
    return randomise(PublicCct(config)).state_dict() if backbone == "cct" else timm_state(config)


def translated(backbone: str) -> dict[str, Tensor]:
    return (from_cct if backbone == "cct" else from_timm)(foreign_state(backbone), small_config(backbone))


each_backbone = pytest.mark.parametrize("backbone", ["vit", "deit", "cct"])


@each_backbone
def test_saved_weights_are_loaded_as_they_were(backbone: str, tmp_path: Path) -> None:
    model = randomise(Model(small_config(backbone)))
    assert isinstance(model, Model)
    save_weights(tmp_path / "own.safetensors", model)
    for loaded in (
        load_model(tmp_path / "own.safetensors", model.config),
        initial_weights(str(tmp_path / "own.safetensors"), model.config),
    ):
        assert not loaded.training
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_shipped_models_load_and_know_their_pictures() -> None:
    record = json.loads((EXAMPLE / "decomposition.json").read_text())
    config = msgspec.convert(record["teacher"]["config"], ModelConfig)
    samples = load_file(EXAMPLE / "samples.safetensors")
    teacher = load_model(EXAMPLE / "teacher.safetensors", config)
    with torch.inference_mode():
        answers = teacher(torch.from_numpy(samples["images"])).argmax(dim=1)
    assert (answers.numpy() == samples["labels"]).mean() > 0.88
    for device, submodel in enumerate(record["submodels"]):
        load_model(EXAMPLE / f"submodel-{device}.safetensors", msgspec.convert(submodel["config"], ModelConfig))


@each_backbone
@pytest.mark.parametrize("wrapper", ["", "model", "state_dict", "model_ema"])
@pytest.mark.parametrize("is_legacy", [False, True])
def test_published_files_are_told_by_the_names_in_them(
    backbone: str, wrapper: str, is_legacy: bool, tmp_path: Path
) -> None:
    """Also inside a training script's checkpoint, with its options beside them, and in torch's old format."""
    state = foreign_state(backbone)
    content: object = state
    if wrapper:
        content = {wrapper: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=not is_legacy)
    loaded = initial_weights(str(tmp_path / "file.pth"), small_config(backbone)).state_dict()
    expected = translated(backbone)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name


def test_averaged_weights_go_before_the_last_ones(tmp_path: Path) -> None:
    averaged = foreign_state("vit")
    last = {name: tensor + 1 for name, tensor in averaged.items()}
    torch.save({"model": last, "model_ema": averaged}, tmp_path / "file.pth")
    loaded = initial_weights(str(tmp_path / "file.pth"), small_config())
    assert torch.equal(loaded.state_dict()["norm.bias"], averaged["norm.bias"])


def test_half_precision_and_parallel_trainings_prefix_are_taken(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor.half() for name, tensor in foreign_state("vit").items()}
    save_file(state, tmp_path / "file.safetensors")
    loaded = initial_weights(str(tmp_path / "file.safetensors"), small_config())
    assert torch.equal(loaded.norm.bias, state["module.norm.bias"].float())


@each_backbone
def test_a_head_for_other_classes_is_replaced_only_when_asked(backbone: str, tmp_path: Path) -> None:
    torch.save(foreign_state(backbone), tmp_path / "file.pth")
    save_weights(tmp_path / "own.safetensors", filled_model(small_config(backbone), translated(backbone)))
    wanted = small_config(backbone, classes=(0, 1, 2, 3, 4))
    for name in ("file.pth", "own.safetensors"):
        path = str(tmp_path / name)
        with pytest.raises(ManifestError, match=rf"{name}: tensor .*: expected shape \(5, 16\), found \(3, 16\)"):
            initial_weights(path, wanted)
        model = initial_weights(path, wanted, fresh_head=True)
        assert torch.equal(model.norm.weight, translated(backbone)["norm.weight"])
        assert all(answer.shape == (1, 5) for answer in model.answers(torch.zeros(1, wanted.feature_dim)))
        kept = initial_weights(path, small_config(backbone), fresh_head=True)
        assert torch.equal(kept.head.weight, translated(backbone)["head.weight"])


def test_a_file_without_a_head_gets_a_fresh_one_only_when_asked() -> None:
    state = {name: tensor for name, tensor in foreign_state("vit").items() if not name.startswith("head")}
    with pytest.raises(ManifestError, match=r"expected tensors head\.bias, head\.weight, found none"):
        from_timm(state, small_config())
    assert not {"head.weight", "head.bias"} & from_timm(state, small_config(), fresh_head=True).keys()


@each_backbone
def test_every_tensor_counts(backbone: str) -> None:
    """Take any one away, or change its shape: it is named. Put one in: it is named."""
    state, config = foreign_state(backbone), small_config(backbone)
    translate = from_cct if backbone == "cct" else from_timm
    for name in state:
        with pytest.raises(ManifestError, match=f"expected tensors {name}, found none"):
            translate({other: tensor for other, tensor in state.items() if other != name}, config)
        with pytest.raises(ManifestError, match=f"tensor {name}: expected"):
            translate(state | {name: torch.cat([state[name], state[name]], dim=-1)}, config)
    with pytest.raises(ManifestError, match=r"found blocks\.9\.norm1\.weight"):
        translate(state | {"blocks.9.norm1.weight": torch.ones(16)}, config)
    translate(state | {"mask_token": torch.ones(1, 1, 16)}, config)


def test_many_wrong_names_make_one_short_line() -> None:
    with pytest.raises(ManifestError, match=r"expected tensors blocks\.\S+, blocks\.\S+, blocks\.\S+ and 9 more,"):
        from_timm(foreign_state("vit"), small_config(depth=3))


def test_a_distilled_model_is_no_plain_one_and_no_cct() -> None:
    with pytest.raises(ManifestError, match=r"found dist_token, head_dist\.bias, head_dist\.weight"):
        from_timm(foreign_state("deit"), small_config("vit"))
    with pytest.raises(ManifestError, match="expected tensors dist_token"):
        from_timm(foreign_state("vit"), small_config("deit"))
    with pytest.raises(ManifestError, match="backbone cct, found a ViT"):
        from_timm(foreign_state("vit"), small_config("cct"))
    with pytest.raises(ManifestError, match="backbone vit, found a public CCT"):
        from_cct(foreign_state("cct"), small_config("vit"))


def test_own_weights_of_another_image_size_are_resampled_and_those_of_the_same_kept(tmp_path: Path) -> None:
    """Also where as many tokens would fit a square: an own file with as many tokens has the same grid."""
    config = small_config(image_size=(8, 32, 3))
    model = randomise(Model(config))
    assert isinstance(model, Model)
    path = tmp_path / "own.safetensors"
    save_weights(path, model)
    assert torch.equal(initial_weights(str(path), config).positions, model.positions)
    assert torch.equal(load_model(path, config).positions, model.positions)
    larger = initial_weights(str(path), small_config(image_size=(32, 32, 3)))
    assert larger.positions.shape == (1, 65, 16)
    with pytest.raises(ManifestError, match="make the models again"):
        load_model(path, small_config(depth=1))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none.pth", None, "cannot be read"),
        ("none.safetensors", None, "cannot be read"),
        ("bad.safetensors", b"no tensors", "not a safetensors file"),
        ("bad.pth", b"", "not torch's weights alone"),
        ("weights.npz", b"", "expected a name ending in"),
        ("number.pt", 3, "expected tensors by name, found int"),
        ("empty.pt", {}, "expected tensors by name, found dict"),
        ("mixed.bin", {"a": 1}, "expected tensors by name, found 'a': int"),
        ("other.pth", {"fc.weight": torch.ones(2)}, "expected a known model's tensors, found fc.weight"),
    ],
)
def test_a_file_that_is_no_use_is_refused_in_one_line(tmp_path: Path, name: str, content: object, problem: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises((InputError, ManifestError), match=problem) as found:
        initial_weights(str(path), small_config())
    assert "\n" not in str(found.value)
    assert str(path) in str(found.value)


class Trap:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    torch.save({"model": foreign_state("vit"), "trap": Trap(trace)}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(trace)))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(ManifestError, match="not torch's weights alone"):
            initial_weights(str(tmp_path / name), small_config())
    assert not trace.exists()


@given(data=st.data(), is_legacy=st.booleans())
def test_a_damaged_file_is_refused_or_read_but_never_breaks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, is_legacy: bool
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "file.pth"
    torch.save({"head.bias": torch.ones(3)}, path, _use_new_zipfile_serialization=not is_legacy)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with pytest.raises((InputError, ManifestError)):
        initial_weights(str(path), small_config())
