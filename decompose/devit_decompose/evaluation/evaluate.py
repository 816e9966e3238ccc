"""Measures a finished models folder again on its test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from devit_contract.arrays import Float32Array, Int64Array
from devit_contract.artefacts.head import Fusion, FusionHead, devices_of
from devit_contract.choices import Role
from devit_contract.errors import InputError
from devit_contract.service.progress import Progress
from devit_decompose.data.dataset import Dataset, load_dataset
from devit_decompose.models.inference import run
from devit_decompose.models.model import Model
from devit_decompose.models.weights import load_model
from devit_decompose.models_folder.assembly import FILE_NAME as ASSEMBLY_NAME
from devit_decompose.models_folder.assembly import load_assembly
from devit_decompose.models_folder.decomposition import Decomposition, ModelRecord, load_decomposition
from devit_decompose.models_folder.subset_accuracy import filled_accuracies, joined_features

Right = npt.NDArray[np.bool_]
"""For each test image, ``(n,)``, whether the answer is the label."""


class ClassFigures(msgspec.Struct, frozen=True):
    """One class; percent."""

    name: str
    images: int
    fused_accuracy: float | None
    """None if there is no test image; so is the next."""
    teacher_accuracy: float | None


class ClassSubsetFigures(msgspec.Struct, frozen=True):
    """The test images of one device's first classes; percent."""

    device: int
    classes: tuple[int, ...]
    images: int
    fused_accuracy: float | None
    without_device: float | None
    """With that device missing; None for a cell of one."""
    device_alone: float | None


class Comparison(msgspec.Struct, frozen=True):
    """An exact two-sided McNemar test of two cells on the same images."""

    against: str
    other_fused_accuracy: float
    """Percent."""
    only_this_right: int
    """b"""
    only_other_right: int
    """c"""
    p_value: float
    """Chance of a split of b + c as uneven as this, were both cells equally good."""


class Evaluation(msgspec.Struct, frozen=True):
    """All figures; accuracies in percent, subsets of devices written ``0,2``."""

    name: str
    data: str
    test_images: int
    is_stored_test_set: bool
    """Whether decomposition.json was measured on these images."""
    teacher_accuracy: float | None
    fused_accuracy: float
    teacher_macs: int | None
    submodel_macs: tuple[int, ...]
    subsets: dict[str, float]
    """With missing features predicted from those present, as the node does."""
    subsets_with_zeros: dict[str, float]
    subsets_with_mean: dict[str, float]
    class_subsets: tuple[ClassSubsetFigures, ...]
    classes: tuple[ClassFigures, ...]
    comparison: Comparison | None = None


@dataclass(frozen=True)
class LoadedCell:
    """A models folder in memory."""

    decomposition: Decomposition
    teacher: Model | None
    submodels: tuple[Model, ...]
    head: FusionHead


def evaluate(models: Path, *, data: Path | None, against: Path | None, progress: Progress) -> Evaluation:
    """Measure a models folder on its test images, in ``data`` or where the training had them.

    ``against`` is another models folder, to be compared on the same images.

    Raises:
        InputError: A file cannot be read, or the other cell has other test images.
        ManifestError: A models folder breaks its format or a digest.
    """
    cell, dataset = load_cell(models), data_of(models, data)
    steps = 3 if against is None else 4
    progress("evaluating", 0, steps, "submodels")
    features = joined_features(cell.submodels, dataset.test.images)
    progress("evaluating", 1, steps, "teacher")
    labels = dataset.test.labels
    teacher = None if cell.teacher is None else run(cell.teacher, dataset.test.images).argmax(axis=1) == labels
    progress("evaluating", 2, steps, "subsets of devices")
    digest = dataset.test.digest()
    figures, fused = _figures(cell, dataset, features, teacher, digest)
    if against is not None:
        progress("evaluating", 3, steps, str(against))
        figures = msgspec.structs.replace(figures, comparison=_compared(fused, against, data, digest, labels))
    progress("evaluating", steps, steps)
    return figures


def load_cell(models: Path) -> LoadedCell:
    """Read all models of a folder, to the GPU if there is one.

    Raises:
        InputError: A file cannot be read.
        ManifestError: The format or a digest is broken.
    """
    found = load_decomposition(models)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def load(role: Role, number: int | None, record: ModelRecord) -> Model:
        model = load_model(models / found.file(role, number).name, record.config)
        model.see(found.view_of(number))
        return model.to(device)

    return LoadedCell(
        decomposition=found,
        teacher=None if found.teacher is None else load("teacher", None, found.teacher),
        submodels=tuple(load("submodel", number, record) for number, record in enumerate(found.submodels)),
        head=FusionHead.load(models / found.file("fusion").name),
    )


def data_of(models: Path, folder: Path | None) -> Dataset:
    """Read the data set that a models folder was made with, by default from the same folder.

    Raises:
        InputError: A file is missing or damaged, or nothing says what data set it was.
    """
    found = load_decomposition(models)
    if found.recipe is not None:
        recipe = found.recipe.data
    elif (models / ASSEMBLY_NAME).exists():
        recipe = load_assembly(models).data
    else:
        raise InputError(f"{models}: expected a recipe or {ASSEMBLY_NAME}, found none: make the models again")
    if folder is not None:
        recipe = msgspec.structs.replace(recipe, folder=str(folder))
    return load_dataset(recipe, found.preprocess)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: of b + c fair coins, as few of one side, or fewer, twice.

    >>> mcnemar(1, 5)
    0.21875
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    term = total = 1  # "count" over 0
    for chosen in range(fewer):
        term = term * (count - chosen) // (chosen + 1)
        total += term
    p_value: float = 2 * total / 2**count  # exact: Python divides integers of any size
    return min(1.0, p_value)


def _figures(
    cell: LoadedCell, dataset: Dataset, features: Float32Array, teacher: Right | None, digest: str
) -> tuple[Evaluation, Right]:
    labels, found = dataset.test.labels, cell.decomposition
    fusion, masks = Fusion(cell.head), range(1, cell.head.all_devices + 1)
    right = {mask: fusion.batch_logits(features, mask).argmax(axis=1) == labels for mask in masks}
    fused = right[cell.head.all_devices]
    with_zeros, with_mean = filled_accuracies(cell.head, features, labels)
    figures = Evaluation(
        name=found.name,
        data=found.data.name,
        test_images=len(labels),
        is_stored_test_set=digest == found.data.test_sha256,
        teacher_accuracy=None if teacher is None else _percent(teacher),
        fused_accuracy=_percent(fused) or 0.0,
        teacher_macs=None if found.teacher is None else found.teacher.macs,
        submodel_macs=tuple(record.macs for record in found.submodels),
        subsets={_key(mask): 100 * float(one.mean()) for mask, one in right.items()},
        subsets_with_zeros={_key(mask): 100 * one for mask, one in with_zeros.items()},
        subsets_with_mean={_key(mask): 100 * one for mask, one in with_mean.items()},
        class_subsets=tuple(
            _class_subset(device, classes, right, cell.head.all_devices, labels)
            for device, classes in enumerate(found.class_subsets)
        ),
        classes=_classes(found.class_names, labels, fused, teacher),
    )
    return figures, fused


def _class_subset(
    device: int, classes: Sequence[int], right: dict[int, Right], all_devices: int, labels: Int64Array
) -> ClassSubsetFigures:
    is_one = np.isin(labels, classes)
    others = all_devices & ~(1 << device)
    return ClassSubsetFigures(
        device=device,
        classes=tuple(classes),
        images=int(is_one.sum()),
        fused_accuracy=_percent(right[all_devices][is_one]),
        without_device=_percent(right[others][is_one]) if others else None,
        device_alone=_percent(right[1 << device][is_one]),
    )


def _classes(names: Sequence[str], labels: Int64Array, fused: Right, teacher: Right | None) -> tuple[ClassFigures, ...]:
    figures = []
    for label, name in enumerate(names):
        is_one = labels == label
        of_teacher = None if teacher is None else _percent(teacher[is_one])
        figures.append(ClassFigures(name, int(is_one.sum()), _percent(fused[is_one]), of_teacher))
    return tuple(figures)


def _compared(fused: Right, against: Path, data: Path | None, digest: str, labels: Int64Array) -> Comparison:
    cell, dataset = load_cell(against), data_of(against, data)
    if dataset.test.digest() != digest:
        raise InputError(
            f"{against}: expected a cell with the same test images, found others ({dataset.name}): "
            "compare cells of one data set"
        )
    features = joined_features(cell.submodels, dataset.test.images)
    other = Fusion(cell.head).batch_logits(features, cell.head.all_devices).argmax(axis=1) == labels
    first, second = int(np.sum(fused & ~other)), int(np.sum(other & ~fused))
    return Comparison(str(against), 100 * float(other.mean()), first, second, mcnemar(first, second))


def _key(mask: int) -> str:
    return ",".join(str(device) for device in devices_of(mask))


def _percent(right: Right) -> float | None:
    return 100 * float(right.mean()) if len(right) else None
