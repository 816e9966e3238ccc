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

# Every part of a timm ViT or DeiT that ours have too, by its place; what stands elsewhere must be without effect.
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
    """Give timm.

    Raises:
        InputError: It or torchvision is not installed, or cannot be loaded.
    """
    import_torchvision()
    return _import("timm")


def import_torchvision() -> ModuleType:
    """Give torchvision, also beside a torch that its own operators do not load with.

    The wheel for CUDA comes without them beside a CPU build of torch, and then stumbles over ``nms`` and ``qnms``,
    which nothing here calls: they are declared, and stay without code.

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

    Args:
        name_or_model: A name that timm knows (nothing is downloaded), or the built model.
        mean: Per colour, of pixels in 0 to 1.
        std: The same.
        classes: Global labels of the head's outputs.

    Raises:
        InputError: timm has no such model, or it has a part that ours has not; the part is named.
    """
    model = _build(name_or_model) if isinstance(name_or_model, str) else name_or_model
    name = name_or_model if isinstance(name_or_model, str) else type(model).__name__
    if misfit := _misfit(model):
        raise InputError(f"timm:{name}: expected a plain ViT or DeiT, found {misfit}: choose another model")
    built: Any = model  # timm is not installed everywhere, so its types are none here
    patch: int = built.patch_embed.patch_size[0]
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
            softmax_scales=tuple(attention.scale for attention in attentions),
            neurons=tuple(block.mlp.fc1.out_features for block in built.blocks),
            classes=classes,
        )
        from_timm(model.state_dict(), config, fresh_head=True)  # its tensors tell the rest, e.g. missing biases
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
    model = _download(name)
    theirs = timm_config(model, **_pixels(model), classes=config.classes)
    for field in ("backbone", "heads", "head_widths", "softmax_scales"):  # no tensor's shape tells them
        expected, found = getattr(config, field), getattr(theirs, field)
        if expected != found:
            raise ManifestError(f"timm:{name}: {field}: expected {expected}, found {found}: {SAME_SHAPE}")
    try:
        tensors = from_timm(model.state_dict(), config, fresh_head=fresh_head, grid=theirs.token_grid)
    except ManifestError as err:
        raise ManifestError(f"timm:{name}: {err}: {SAME_SHAPE}") from err
    return tensors | _renormalised(tensors, theirs, config)


def _renormalised(tensors: dict[str, Tensor], found: ModelConfig, wanted: ModelConfig) -> dict[str, Tensor]:
    """Make patches of pixels normalised one way work on pixels normalised another way.

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


def _misfit(model: nn.Module) -> str:
    """Name the first part that our models have no place for; empty when there is none."""
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
    if built.patch_embed.img_size is None or len(set(built.patch_embed.patch_size)) != 1:
        return f"patches {built.patch_embed.patch_size} of images {built.patch_embed.img_size}"
    return ""


def _pixels(model: nn.Module) -> dict[str, tuple[float, ...]]:
    statistics: Any = model.pretrained_cfg
    return {"mean": tuple(statistics["mean"]), "std": tuple(statistics["std"])}


def _build(name: str) -> nn.Module:
    """Build a model without memory for its weights."""
    _check_name(name)
    with torch.device("meta"):
        model: nn.Module = import_timm().create_model(name)
    return model


def _download(name: str) -> nn.Module:
    _check_name(name)
    try:
        model: nn.Module = import_timm().create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as err:  # from the network, or timm has no weights under the name
        raise InputError(
            f"timm:{name}: weights cannot be downloaded ({_line(err)}): look to the network, or give a file"
        ) from err
    return model


def _check_name(name: str) -> None:
    if not import_timm().is_model(name):
        raise InputError(f"timm:{name}: expected a model that timm knows, found none: see timm.list_models('*vit*')")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise InputError(f"{name} cannot be imported ({_line(err)}): {_INSTALL}") from err


def _line(err: Exception) -> str:
    return str(err).partition("\n")[0]
