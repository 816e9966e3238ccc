"""timm's published models: their shapes and weights; the only module that imports timm or torchvision for models."""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from devit_contract.errors import InputError, ManifestError
from devit_decompose.models.model import ModelConfig, StemLayer
from devit_decompose.models.weights import SAME_SHAPE, from_timm

_INSTALL = "pip install 'devit[timm]'"

# Every part of a timm ViT or DeiT that our models have too, by its place; other parts must be without effect.
_PARTS = {
    "": {"VisionTransformer", "VisionTransformerDistilled"},
    "patch_embed": {"PatchEmbed"},
    "patch_embed.proj": {"Conv2d"},
    "blocks": {"Sequential"},
    "block": {"Block"},
    "block.norm1": {"LayerNorm"},
    "block.attn": {"Attention"},
    "block.attn.qkv": {"Linear"},
    "block.attn.proj": {"Linear"},
    "block.norm2": {"LayerNorm"},
    "block.mlp": {"Mlp"},
    "block.mlp.fc1": {"Linear"},
    "block.mlp.act": {"GELU"},
    "block.mlp.fc2": {"Linear"},
    "norm": {"LayerNorm"},
    "head": {"Linear", "Identity"},
    "head_dist": {"Linear", "Identity"},
}
_WITHOUT_EFFECT = {"Identity", "Dropout", "DropPath", "PatchDropout"}  # in inference
_A_BLOCK = re.compile(r"^blocks\.\d+")

# Definitions last as long as the library that holds them.
_libraries: list[torch.library.Library] = []


def import_timm() -> ModuleType:
    """Import timm.

    Raises:
        InputError: It or torchvision is not installed, or cannot be loaded.
    """
    import_torchvision()
    return _import("timm")


def import_torchvision() -> ModuleType:
    """Import torchvision, even if its own operators do not load with this torch.

    With a CPU build of torch, the wheel for CUDA cannot load them and fails at ``nms`` and ``qnms``. Nothing here calls
    these, so they are declared without code.

    Raises:
        InputError: It is not installed, or cannot be loaded.
    """
    try:
        return _import("torchvision")
    except RuntimeError as err:
        if "torchvision::" not in str(err):
            raise InputError(f"torchvision cannot be loaded ({_line(err)}): {_INSTALL}") from err
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _libraries.append(library)
    return _import("torchvision")


def timm_config(
    name_or_model: str | nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], classes: tuple[int, ...]
) -> ModelConfig:
    """Describe a timm model, ``vit_*`` or ``deit_*``, as one of ours, by reading how it is built.

    For a name nothing is downloaded. Mean and std are per colour, of pixels in 0 to 1.

    Raises:
        InputError: timm has no such model, or it has a part that ours has not; the part is named.
    """
    if isinstance(name_or_model, str):
        name, timm = name_or_model, _timm_with(name_or_model)
        with torch.device("meta"):  # no memory for its weights
            model: nn.Module = timm.create_model(name)
    else:
        name, model = type(name_or_model).__name__, name_or_model
    if misfit := _misfit(model):
        raise InputError(f"timm:{name}: expected a plain ViT or DeiT, found {misfit}: choose another model")
    built: Any = model  # timm is not installed everywhere, so its types are none here
    patch: int = built.patch_embed.proj.stride[0]
    attentions = [block.attn for block in built.blocks]
    try:
        config = ModelConfig(
            backbone="vit" if built.num_prefix_tokens == 1 else "deit",
            image_size=(*built.patch_embed.img_size, built.patch_embed.proj.in_channels),
            mean=mean,
            std=std,
            stem=(StemLayer(built.embed_dim, kernel=patch, stride=patch, batch_norm=False),),
            heads=tuple(attention.num_heads for attention in attentions),
            head_widths=tuple(attention.head_dim for attention in attentions),
            softmax_scales=tuple(map(_softmax_scale, attentions)),
            neurons=tuple(block.mlp.fc1.out_features for block in built.blocks),
            classes=classes,
        )
        from_timm(model.state_dict(), config, fresh_head=True)  # refuses the rest, e.g. missing biases
    except (ValueError, ManifestError) as err:
        raise InputError(f"timm:{name}: expected a plain ViT or DeiT: {err}: choose another model") from err
    return config


def published_tensors(name: str, config: ModelConfig, *, fresh_head: bool = False) -> dict[str, Tensor]:
    """Download a timm model's weights and translate them for a model of ours, of another image size, too.

    Its answers stay the same whatever mean and std the configuration has.

    Raises:
        InputError: timm is not installed, has no such model, or cannot download it.
        ManifestError: The configuration is of another model.
    """
    timm = _timm_with(name)
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as err:  # from the network, or timm has no weights under the name
        raise InputError(
            f"timm:{name}: weights cannot be downloaded ({_line(err)}): check the network, or give a file"
        ) from err
    pixels = {key: tuple(model.pretrained_cfg[key]) for key in ("mean", "std")}
    theirs = timm_config(model, **pixels, classes=config.classes)
    for field in ("backbone", "heads", "head_widths", "softmax_scales"):  # no tensor's shape shows them
        expected, found = getattr(config, field), getattr(theirs, field)
        if expected != found:
            raise ManifestError(f"timm:{name}: {field}: expected {expected}, found {found}: {SAME_SHAPE}")
    try:
        tensors = from_timm(model.state_dict(), config, fresh_head=fresh_head, grid=theirs.token_grid)
    except ManifestError as err:
        raise ManifestError(f"timm:{name}: {err}: {SAME_SHAPE}") from err
    return tensors | _renormalised(tensors, theirs, config)


def _renormalised(tensors: dict[str, Tensor], found: ModelConfig, wanted: ModelConfig) -> dict[str, Tensor]:
    """Adapt patch weights to pixels that are normalised in another way.

    ``(p - m) / s`` is ``(s' / s) x + (m' - m) / s`` of ``x = (p - m') / s'``. Exact, since patches have no padding.
    """
    mean, std, new_mean, new_std = (
        torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (found.mean, found.std, wanted.mean, wanted.std)
    )
    weight, bias = tensors["tokenizer.layers.0.weight"], tensors["tokenizer.layers.0.bias"]  # (D, C, P, P), (D,)
    return {
        "tokenizer.layers.0.weight": weight * (new_std / std),
        "tokenizer.layers.0.bias": bias + (weight * ((new_mean - mean) / std)).sum(dim=(1, 2, 3)),
    }


def _softmax_scale(attention: Any) -> float:  # noqa: ANN401 - timm's class
    """Read what the query is multiplied by: fused, torch divides by the root of the width and never asks timm.

    The two differ in a pruned module, whose heads are narrower than the scale that it was built with says.
    """
    return float(attention.head_dim**-0.5 if attention.fused_attn else attention.scale)


def _misfit(model: nn.Module) -> str:
    """Name the first part that our models do not have; empty if there is none."""
    if not type(model).__module__.startswith("timm."):
        return f"{type(model).__name__} of another package"
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind not in _PARTS.get(_A_BLOCK.sub("block", path), _WITHOUT_EFFECT):
            return f"{kind} at {path}" if path else kind
        if isinstance(module, nn.LayerNorm) and module.eps != 1e-6:
            return f"a norm with eps {module.eps} at {path}"
        if isinstance(module, nn.GELU) and module.approximate != "none":
            return f"an approximate GELU at {path}"
    built: Any = model
    if built.cls_token is None:
        return "no class token"
    if built.reg_token is not None:
        return "register tokens"
    if built.pos_embed is None or built.no_embed_class:
        return "a class token without position"
    if built.global_pool != "token":
        return f"pooling {built.global_pool!r}"
    patches = built.patch_embed.proj
    is_square = len({*patches.kernel_size, *patches.stride}) == 1 and not any(patches.padding)
    if built.patch_embed.img_size is None or not is_square:
        return f"patches {patches.kernel_size} every {patches.stride} of images {built.patch_embed.img_size}"
    return ""


def _timm_with(name: str) -> ModuleType:
    """Import timm, which must know a model of that name."""
    timm = import_timm()
    if not timm.is_model(name):
        raise InputError(f"timm:{name}: expected a model that timm knows, found none: see timm.list_models('*vit*')")
    return timm


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise InputError(f"{name} cannot be imported ({_line(err)}): {_INSTALL}") from err


def _line(err: Exception) -> str:
    return str(err).partition("\n")[0]
