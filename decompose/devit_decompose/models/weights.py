"""Model weights from files: this project's own, and published ones translated by the names of their tensors.

Own files are safetensors, which hold numbers and nothing that runs. Published files may also be torch's pickles; of
those only tensors and plain values are read (``weights_only``).
"""

from __future__ import annotations

import argparse
import math
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from devit_contract.artefacts.files import read_tensors, write_tensors
from devit_contract.artefacts.regular import open_regular
from devit_contract.errors import InputError, ManifestError
from devit_decompose.models.model import Model, ModelConfig

_HINT = "make the models again with devit decompose"
_SOURCES = "give a file of this project, of timm or of the public CCT"
SAME_SHAPE = "give weights of the shape that the recipe names"

# Left from masked pre-training; no classifier reads it.
_IGNORABLE = frozenset({"mask_token"})

# How training scripts wrap a model's tensors, the averaged ones first, as timm prefers them.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")

# Raised by torch for damaged pickles.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)

# Modules of a block: ours, which hold the rows of theirs one after another; timm's; those of the public CCT.
_BLOCK: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("attention_norm",), "norm1", "pre_norm"),
    (("attention.query", "attention.key", "attention.value"), "attn.qkv", "self_attn.qkv"),
    (("attention.project",), "attn.proj", "self_attn.proj"),
    (("mlp_norm",), "norm2", "norm1"),
    (("expand",), "mlp.fc1", "linear1"),
    (("contract",), "mlp.fc2", "linear2"),
)
_TIMM_BLOCK = {timm: ours for ours, timm, _ in _BLOCK}
_CCT_BLOCK = {cct: ours for ours, _, cct in _BLOCK}


def save_weights(path: Path, model: Model) -> None:
    """Write every tensor of the model's state."""
    write_tensors(path, {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()})


def load_model(path: Path, config: ModelConfig) -> Model:
    """Build a model and fill it from a file of this project, ready for inference.

    Raises:
        InputError: The file cannot be read.
        ManifestError: Its tensors are not those of the configuration.
    """
    state = _read_safetensors(path, _HINT)
    try:
        return filled_model(config, _from_own(state, config))
    except ManifestError as err:
        raise ManifestError(f"{path}: {err}: {_HINT}") from err


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file, ``.safetensors`` or torch's ``.pth``, ``.pt`` or ``.bin``, as float32.

    Raises:
        InputError: The file cannot be read.
        ManifestError: It holds something else than tensors by name.
    """
    if path.suffix == ".safetensors":
        state: object = _read_safetensors(path, _SOURCES)
    elif path.suffix in (".pth", ".pt", ".bin"):
        state = _read_pickle(path)
    else:
        raise InputError(f"{path}: expected a name ending in .safetensors, .pth, .pt or .bin: {_SOURCES}")
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state:
        raise ManifestError(f"{path}: expected tensors by name, found {type(state).__name__}: {_SOURCES}")
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ManifestError(f"{path}: expected tensors by name, found {name!r}: {type(value).__name__}: {_SOURCES}")
        # "module." is put in front by torch's data parallel training.
        tensors[name.removeprefix("module.")] = value.float() if value.is_floating_point() else value
    return tensors


def from_timm(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    fresh_head: bool = False,
    grid: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """Translate the tensors of a timm ViT or DeiT.

    Args:
        state: timm's tensors.
        config: The model they are for.
        fresh_head: Leave heads out that are missing or have another number of classes.
        grid: Rows and columns of the image tokens the positions were trained for; by default a square.

    Raises:
        ManifestError: A tensor is missing, has no place in the configuration, or another shape.
    """
    if config.backbone == "cct":
        raise ManifestError("expected a public CCT for backbone cct, found a ViT or DeiT")
    modules = _in_blocks(_TIMM_BLOCK, "blocks", config) | {"norm": ("norm",), "head": ("head",)}
    modules |= {"patch_embed.proj": ("tokenizer.layers.0",), "head_dist": ("distillation_head",)}
    shapes = _shapes(config)
    del shapes["prefix"]  # one tensor here, one for each token there
    tokens = ("cls_token", "dist_token")[: config.prefix_tokens]
    shapes |= dict.fromkeys(tokens, (1, 1, config.width))
    tensors = _of_modules(modules, shapes) | {name: (name,) for name in tokens} | {"pos_embed": ("positions",)}
    layout = _Layout(tensors, shapes, "pos_embed", ("head", "head_dist"))
    ours = _fitted(state, layout, config, fresh_head, grid)
    ours["prefix"] = torch.cat([ours.pop(token) for token in tokens], dim=1)  # (1, P, D)
    return ours


def from_cct(state: Mapping[str, Tensor], config: ModelConfig, *, fresh_head: bool = False) -> dict[str, Tensor]:
    """Translate the tensors of a CCT as SHI-Labs published it (Compact-Transformers, Apache-2.0); see `from_timm`.

    Its convolutions have no bias; ours then begin at zero.
    """
    if config.backbone != "cct":
        raise ManifestError(f"expected a ViT or DeiT for backbone {config.backbone}, found a public CCT")
    if not all(layer.max_pool and not layer.batch_norm for layer in config.stem):
        raise ManifestError("stem: expected max_pool = true and batch_norm = false as in a public CCT, found others")
    ends = {"classifier.attention_pool": ("pool",), "classifier.norm": ("norm",), "classifier.fc": ("head",)}
    modules = _in_blocks(_CCT_BLOCK, "classifier.blocks", config) | ends
    state = dict(state)
    for index, layer in enumerate(config.stem):
        theirs = f"tokenizer.conv_layers.{index}.0"
        modules[theirs] = (f"tokenizer.layers.{3 * index}",)  # convolution, ReLU, pooling
        state.setdefault(f"{theirs}.bias", torch.zeros(layer.width))
    shapes = _shapes(config)
    tensors = _of_modules(modules, shapes) | {"classifier.positional_emb": ("positions",)}
    layout = _Layout(tensors, shapes, "classifier.positional_emb", ("classifier.fc",))
    return _fitted(state, layout, config, fresh_head, None)


def translated(state: Mapping[str, Tensor], config: ModelConfig, *, fresh_head: bool) -> dict[str, Tensor]:
    """Translate the tensors of this project, of timm or of the public CCT; their names show which.

    Raises:
        ManifestError: They are of none of these, or do not fit; see :func:`from_timm`.
    """
    if "patch_embed.proj.weight" in state:
        return from_timm(state, config, fresh_head=fresh_head)
    if "classifier.attention_pool.weight" in state:
        return from_cct(state, config, fresh_head=fresh_head)
    if "tokenizer.layers.0.weight" in state:
        return _from_own(state, config, fresh_head=fresh_head)
    raise ManifestError(f"expected a known model's tensors, found {_listed(state)}: {_SOURCES}")


def filled_model(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Model:
    """Build a model from translated tensors, ready for inference; what is not among them stays fresh."""
    model = Model(config)
    model.load_state_dict({**model.state_dict(), **tensors})
    return model.eval()


class _Layout(NamedTuple):
    """How the tensors of a file become those of a model."""

    tensors: dict[str, tuple[str, ...]]
    """For each of theirs, ours that hold its rows one after another."""
    shapes: dict[str, tuple[int, ...]]
    """Of ours."""
    positions: str
    """Their name of the positions, ``(1, T, D)``, the prefix tokens' first."""
    heads: tuple[str, ...]
    """Their names of the modules that give logits."""


def _from_own(state: Mapping[str, Tensor], config: ModelConfig, *, fresh_head: bool = False) -> dict[str, Tensor]:
    shapes = _shapes(config)
    layout = _Layout({name: (name,) for name in shapes}, shapes, "positions", ("head", "distillation_head"))
    is_same_size = "positions" in state and tuple(state["positions"].shape) == shapes["positions"]
    return _fitted(state, layout, config, fresh_head, config.token_grid if is_same_size else None)


def _fitted(
    state: Mapping[str, Tensor],
    layout: _Layout,
    config: ModelConfig,
    fresh_head: bool,
    grid: tuple[int, int] | None,
) -> dict[str, Tensor]:
    """Rename, split and resample; everything must fit in the end."""
    state = {name: tensor for name, tensor in state.items() if name not in _IGNORABLE}
    wanted = dict(layout.tensors)
    heads = {name for name in wanted if name.rpartition(".")[0] in layout.heads}
    if fresh_head:
        for name in heads:
            if name not in state or state[name].shape[:1] != (len(config.classes),):
                state.pop(name, None)
                del wanted[name]
    if missing := wanted.keys() - state.keys():
        raise ManifestError(f"expected tensors {_listed(missing)}, found none of that name")
    if surplus := state.keys() - wanted.keys():
        raise ManifestError(f"expected no tensors beyond the configuration's, found {_listed(surplus)}")
    state[layout.positions] = _resampled(layout.positions, state[layout.positions], config, grid)
    ours: dict[str, Tensor] = {}
    for theirs, names in wanted.items():
        shape = layout.shapes[names[0]]  # query, key and value are alike
        expected = (len(names) * shape[0], *shape[1:]) if len(names) > 1 else shape
        found = tuple(state[theirs].shape)
        if found != expected:
            why = " (only a model that is trained from here on may have a fresh head)" if theirs in heads else ""
            raise ManifestError(f"tensor {theirs}: expected shape {expected}, found {found}{why}")
        ours.update(zip(names, state[theirs].chunk(len(names)) if len(names) > 1 else [state[theirs]], strict=True))
    return ours


def _resampled(name: str, positions: Tensor, config: ModelConfig, grid: tuple[int, int] | None) -> Tensor:
    """Bring positions ``(1, T', D)`` to the token grid, bicubic with antialiasing as timm does."""
    if positions.ndim != 3 or len(positions) != 1:
        raise ManifestError(f"tensor {name}: expected shape (1, tokens, width), found {tuple(positions.shape)}")
    ahead, image = positions[:, : config.prefix_tokens], positions[:, config.prefix_tokens :]
    count = image.shape[1]
    side = math.isqrt(count)
    grids = {each for each in (grid or (side, side), grid or config.token_grid) if each[0] * each[1] == count}
    if len(grids) != 1:
        fits = " or ".join(f"{rows} x {columns}" for rows, columns in sorted(grids)) or "no square"
        raise ManifestError(f"tensor {name}: expected one grid of {count} tokens, found {fits}")
    found = grids.pop()
    if found == config.token_grid:
        return positions
    maps = image.reshape(1, *found, -1).permute(0, 3, 1, 2)  # (1, rows columns, D) -> (1, D, rows, columns)
    maps = functional.interpolate(maps, size=config.token_grid, mode="bicubic", antialias=True)
    return torch.cat([ahead, maps.flatten(2).transpose(1, 2)], dim=1)  # (1, D, rows, columns) -> (1, T, D)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):  # no memory, no time
        return {name: tuple(value.shape) for name, value in Model(config).state_dict().items()}


def _in_blocks(block: dict[str, tuple[str, ...]], theirs: str, config: ModelConfig) -> dict[str, tuple[str, ...]]:
    return {
        f"{theirs}.{index}.{module}": tuple(f"blocks.{index}.{name}" for name in names)
        for index in range(len(config.heads))
        for module, names in block.items()
    }


def _of_modules(modules: dict[str, tuple[str, ...]], shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, ...]]:
    """Spell out weights and biases, as far as our modules have them."""
    return {
        f"{theirs}.{kind}": tuple(f"{name}.{kind}" for name in names)
        for theirs, names in modules.items()
        for kind in ("weight", "bias")
        if all(f"{name}.{kind}" in shapes for name in names)
    }


def _read_safetensors(path: Path, hint: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in read_tensors(path, hint).items()}


def _read_pickle(path: Path) -> object:
    try:
        # Training scripts keep their options beside the tensors: a namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles: what comes out is checked
            with open_regular(path) as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as err:
        raise InputError(f"{path}: cannot be read ({err.strerror}): {_SOURCES}") from err
    except _UNREADABLE as err:
        reason = str(err).partition("\n")[0]
        raise ManifestError(f"{path}: not torch's weights alone ({reason}): save the model's state_dict alone") from err


def _listed(names: Mapping[str, Tensor] | set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
