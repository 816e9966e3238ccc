"""Makes a cell from trained backbones: trains a linear fusion on their frozen features."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from devit_contract.arrays import Float32Array, Int64Array
from devit_contract.artefacts.files import check_replaceable, write_json
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import InputError
from devit_contract.service.progress import Progress
from devit_decompose.assembly.data_recipe import data_recipe
from devit_decompose.assembly.features import FeatureCache, weights_digest
from devit_decompose.assembly.logistic import fit_logistic
from devit_decompose.assembly.ridge import STRENGTHS, Fitted, LinearHead, Parts, Ridge, columns_of_parts, moments_of
from devit_decompose.data.dataset import Dataset, load_dataset
from devit_decompose.models.initial_weights import initial_weights
from devit_decompose.models.model import Model, ModelConfig
from devit_decompose.models.timm_models import import_timm, timm_config
from devit_decompose.models_folder.assembly import FILE_NAME, SCHEMA, Assembly, BackboneRecord, HeadRecord
from devit_decompose.models_folder.decomposition import FILE_NAME as DECOMPOSITION_NAME
from devit_decompose.models_folder.decomposition import Decomposition, StageRecord
from devit_decompose.models_folder.write import Made, write_models
from devit_decompose.recipe.schema import MAX_TRAINED


@dataclass(frozen=True)
class Order:
    """What is to be assembled."""

    models: tuple[str, ...]
    """timm's names, one for each device; a name may be repeated."""
    data: Path
    """Folder of the data set."""
    source: str = "folder"
    """As in a recipe."""
    name: str = ""
    """Of the cell and its bundles; by default that of the folder."""
    weights: tuple[Path, ...] = ()
    """A file for each model; without them timm downloads its published ones."""
    size: tuple[int, int] | None = None
    """Height and width that the backbones are brought to, by resampling their positions; by default their own."""
    resize_to: int = 0
    """Shorter side in pixels before the centre crop; 0 resizes straight to the size."""
    ridge: float | None = None
    """Strength of a ridge regression; by default it and a logistic regression are chosen on the validation part."""
    validation_images: int | None = None
    """Taken from the training part; by default a tenth."""
    workers: int = 0
    """Processes that decode pictures."""


def assemble(order: Order, out: Path, cache: Path, progress: Progress) -> tuple[Decomposition, Assembly]:
    """Train the fusion of trained backbones, without augmentation, and write the models folder.

    ``cache`` keeps the features, so that another run with the same backbones is quick.

    Raises:
        InputError: A backbone is not known, they do not fit together, or the data cannot be read.
        ManifestError: A weight file is of another model.
    """
    check_replaceable(out, DECOMPOSITION_NAME)
    if order.ridge is not None and not 0 < order.ridge < float("inf"):
        raise InputError(f"--ridge: expected auto or a number above 0, found {order.ridge:g}")
    configs = check_backbones(order)
    spec = _preprocess(configs[0], order.resize_to)
    recipe = data_recipe(
        order.source,
        order.data,
        spec,
        (configs[0].mean, configs[0].std),
        name=order.name or order.data.resolve().name,
        validation_images=order.validation_images,
        workers=order.workers,
    )
    data = load_dataset(recipe, spec)
    everything = tuple(range(len(data.class_names)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbones = _load_backbones(order, configs, everything, device, progress)
    digests = [weights_digest(model) for model in backbones]
    features = _features(order.models, backbones, digests, data, FeatureCache(cache, spec, order.workers), progress)
    heads, probes = _fit_heads(features, data, order.ridge, device, progress)
    for model, probe in zip(backbones, probes, strict=True):
        set_head(model, probe.head)
    fusion = heads[0][1].head
    made = Made(
        name=recipe.name,
        submodels=tuple(backbones),
        fusion=(fusion.weight, fusion.bias),
        class_subsets=(everything,) * len(backbones),
        stages=(StageRecord(f"fusion-{heads[0][0]}", 0, 0, heads[0][1].validation_accuracy),),
        features=tuple(np.concatenate(parts, axis=1) for parts in features),
    )
    decomposition = write_models(out, made, data, recipe.sample_images, progress)
    assembly = Assembly(
        SCHEMA,
        recipe,
        tuple(
            BackboneRecord(
                name, digest, probe.validation_accuracy, probe.head.accuracy([features.test[device]], data.test.labels)
            )
            for device, (name, digest, probe) in enumerate(zip(order.models, digests, probes, strict=True))
        ),
        tuple(HeadRecord(method, fitted.strength, fitted.validation_accuracy) for method, fitted in heads),
    )
    write_json(out / FILE_NAME, assembly)
    return decomposition, assembly


def check_backbones(order: Order) -> list[ModelConfig]:
    """Look all names up, without reading or downloading any weights, and check that the sizes fit together.

    Raises:
        InputError: A name is unknown or not a plain ViT or DeiT, there are too many, or sizes or files do not fit.
    """
    count = len(order.models)
    if not 1 <= count <= MAX_TRAINED:
        raise InputError(f"--models: expected 1 to {MAX_TRAINED} names, found {count}")
    if len(order.weights) not in (0, count):
        raise InputError(f"--weights: expected {count} files, one for each model, found {len(order.weights)}")
    configs = [_config(name, order.size) for name in order.models]
    first = configs[0].image_size
    sizes = [f"{height} x {width}" for height, width, _ in (config.image_size for config in configs)]
    others = [
        f"{name} ({size})"
        for name, size, config in zip(order.models, sizes, configs, strict=True)
        if config.image_size != first
    ]
    if others:
        raise InputError(
            f"--models: expected images of {sizes[0]} as {order.models[0]} takes, found {', '.join(others)}: "
            f"bring all to one size with --size {first[0]},{first[1]}"
        )
    return configs


def set_head(model: Model, head: LinearHead) -> None:
    """Give a backbone a linear head of its own; a DeiT's two, whose mean it is."""
    width = model.config.width
    weight, bias = (torch.from_numpy(values).float() for values in (head.weight, head.bias))
    with torch.no_grad():
        if model.distillation_head is not None:
            model.distillation_head.weight.copy_(2 * weight[:, width:])
            model.distillation_head.bias.copy_(bias)
            weight = 2 * weight[:, :width]
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)


class _Features(NamedTuple):
    """Features of each backbone, ``(n, dim)``."""

    training: Parts
    validation: Parts
    test: Parts


def _config(name: str, size: tuple[int, int] | None) -> ModelConfig:
    timm = import_timm()
    if not timm.is_model(name):
        known = timm.list_models(["vit_*", "deit_*"])
        near = difflib.get_close_matches(name.partition(".")[0], known, n=3, cutoff=0.5) or ["vit_tiny_patch16_224"]
        raise InputError(f"--models: expected a model that timm knows, found {name!r}: did you mean {', '.join(near)}?")
    try:
        statistics = timm.get_pretrained_cfg(name)
    except RuntimeError as err:
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise InputError(f"--models: expected {' or '.join(known)}, found {name!r}") from err
    config = timm_config(name, mean=tuple(statistics.mean), std=tuple(statistics.std), classes=(0,))
    if size is None:
        return config
    try:
        return msgspec.structs.replace(config, image_size=(*size, config.image_size[2]))
    except ValueError as err:
        raise InputError(f"--size: {name}: {err}") from err


def _preprocess(config: ModelConfig, resize_to: int) -> Preprocess:
    height, width, colours = config.image_size
    try:
        return Preprocess(height, width, "gray" if colours == 1 else "rgb", resize_to=resize_to)
    except ValueError as err:
        raise InputError(f"--size and --resize-to: {err}") from err


def _load_backbones(
    order: Order, configs: list[ModelConfig], classes: tuple[int, ...], device: torch.device, progress: Progress
) -> list[Model]:
    backbones: list[Model] = []
    for number, (name, config) in enumerate(zip(order.models, configs, strict=True)):
        progress("weights", number, len(configs), name)
        source = str(order.weights[number]) if order.weights else f"timm:{name}"
        torch.manual_seed(0)  # for heads, which are replaced later
        model = initial_weights(source, msgspec.structs.replace(config, classes=classes), fresh_head=True)
        backbones.append(model.to(device))
    progress("weights", len(configs), len(configs))
    return backbones


def _features(
    names: tuple[str, ...],
    backbones: list[Model],
    digests: list[str],
    data: Dataset,
    cache: FeatureCache,
    progress: Progress,
) -> _Features:
    """Compute what is not stored yet, backbone by backbone; a repeated one is computed once."""
    splits = (data.training, data.validation, data.test)
    split_digests = [split.digest() for split in splits]
    total = sum(len(split) for split in splits)
    found: list[list[Float32Array]] = [[], [], []]
    for number, (name, model, digest) in enumerate(zip(names, backbones, digests, strict=True)):
        done = 0
        for parts, split, split_digest in zip(found, splits, split_digests, strict=True):

            def report(images: int, done: int = done, name: str = name, number: int = number) -> None:
                progress(f"features {number}", done + images, total, f"{name}, {done + images:,} of {total:,} images")

            parts.append(cache.features(model, digest, split.images, split_digest, report))
            done += len(split)
    return _Features(*found)


def _fit_heads(
    features: _Features, data: Dataset, strength: float | None, device: torch.device, progress: Progress
) -> tuple[list[tuple[str, Fitted]], list[Fitted]]:
    """Train the fusion, in each way that is to be tried, best first; and a head on each backbone alone."""
    strengths = STRENGTHS if strength is None else (strength,)
    labels: Int64Array = data.validation.labels
    progress("fusion", 0, 2, "ridge regression")
    moments = moments_of(features.training, data.training.labels, len(data.class_names))
    ridge = Ridge(moments)
    fused = ridge.best(strengths, lambda head: head.accuracy(features.validation, labels))
    progress("fusion", 1, 2, "each backbone alone")
    probes = []
    for columns, part in zip(columns_of_parts(features.training), features.validation, strict=True):
        alone = Ridge(moments.columns(columns))
        probes.append(alone.best(strengths, lambda head, part=part: head.accuracy([part], labels)))  # type: ignore[misc]
    progress("fusion", 2, 2, f"ridge {fused.validation_accuracy:.2%}")
    heads = [("ridge", fused)]
    if strength is None:
        training, validation = (features.training, data.training.labels), (features.validation, labels)
        heads.append(("logistic", fit_logistic(ridge, fused.head, training, validation, device, progress)))
    heads.sort(key=lambda one: -one[1].validation_accuracy)  # the first of equals stays first
    return heads, probes
