"""Writes the models folder: measures finished models on every part, then writes everything or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from devit_contract.arrays import Float32Array, Float64Array
from devit_contract.artefacts.file_list import FileEntry, describe_file
from devit_contract.artefacts.files import Tensors, new_folder, write_json, write_tensors
from devit_contract.artefacts.head import FusionHead
from devit_contract.choices import Role
from devit_contract.service.progress import Progress
from devit_decompose.data.dataset import Dataset, balanced_indices
from devit_decompose.models.inference import accuracy, run
from devit_decompose.models.model import Model
from devit_decompose.models.weights import save_weights
from devit_decompose.models_folder.calibration import write_calibration
from devit_decompose.models_folder.decomposition import (
    FILE_NAME,
    SCHEMA,
    DataRecord,
    Decomposition,
    ModelRecord,
    StageRecord,
)
from devit_decompose.models_folder.quantization import write_quantization
from devit_decompose.models_folder.subset_accuracy import joined_features, largest_norms, statistics_of, subset_records
from devit_decompose.pruning.cost import macs, parameters
from devit_decompose.pruning.search import SearchRecord
from devit_decompose.recipe.schema import Recipe


@dataclass(frozen=True)
class Made:
    """Finished models of a cell, with the record of their making."""

    name: str
    submodels: tuple[Model, ...]
    fusion: tuple[Float64Array, Float64Array]
    """Weight ``(K, sum of dims)`` and bias ``(K,)``."""
    class_subsets: tuple[tuple[int, ...], ...]
    recipe: Recipe | None = None
    teacher: Model | None = None
    stages: tuple[StageRecord, ...] = ()
    searches: tuple[SearchRecord, ...] = ()
    features: tuple[Float32Array, ...] | None = None
    """Of all submodels side by side, ``(n, sum of dims)``, over training, validation and test part, if they
    are known already."""

    def __post_init__(self) -> None:
        models, subsets = len(self.submodels), len(self.class_subsets)
        if models != subsets:
            raise ValueError(f"{models} submodels need as many class subsets, not {subsets}")


def write_models(out: Path, made: Made, data: Dataset, sample_images: int, progress: Progress) -> Decomposition:
    """Measure finished models on every split and write the folder; an older one is replaced when the new one is whole.

    ``sample_images`` validation images, the same number of each class, are kept for the export's golden set, and others
    for its INT8 variants.
    """
    progress("measuring", 0, 3, "submodels")
    training, validation, test = made.features or tuple(
        joined_features(made.submodels, split.images) for split in (data.training, data.validation, data.test)
    )
    dims = tuple(model.config.feature_dim for model in made.submodels)
    head = FusionHead(
        dims=dims,
        weight=made.fusion[0],
        bias=made.fusion[1],
        statistics=statistics_of(training),
        norms=largest_norms(validation, dims),
    )
    progress("measuring", 1, 3, "subsets of devices")
    subsets = subset_records(head, validation, data.validation.labels, test, data.test.labels)
    progress("measuring", 2, 3, "teacher")
    teacher_scores = [
        None if made.teacher is None else accuracy(run(made.teacher, split.images), split.labels)
        for split in (data.validation, data.test)
    ]
    with new_folder(out) as folder:
        decomposition = Decomposition(
            schema=SCHEMA,
            name=made.name,
            code_version=version("devit"),
            recipe=made.recipe,
            data=_data_record(data),
            preprocess=data.preprocess,
            class_names=data.class_names,
            class_subsets=made.class_subsets,
            teacher=None if made.teacher is None else _model_record(made.teacher, with_head=True),
            submodels=tuple(_model_record(model, with_head=False) for model in made.submodels),
            stages=made.stages,
            searches=made.searches,
            teacher_validation_accuracy=teacher_scores[0],
            teacher_test_accuracy=teacher_scores[1],
            subsets=subsets,
            files=_write_files(folder, made, head, _samples(data, sample_images), validation, data),
        )
        write_json(folder / FILE_NAME, decomposition)
    progress("measuring", 3, 3)
    return decomposition


def _samples(data: Dataset, count: int) -> Tensors:
    chosen = balanced_indices(data.validation.labels, count, len(data.class_names), seed=1)
    return {"images": data.validation.images[chosen], "labels": data.validation.labels[chosen]}


def _write_files(
    folder: Path, made: Made, head: FusionHead, samples: Tensors, validation_features: Float32Array, data: Dataset
) -> tuple[FileEntry, ...]:
    records = []

    def write(role: Role, name: str, device: int | None, content: Callable[[Path], None]) -> None:
        content(folder / name)
        records.append(describe_file(folder, name, role, device=device))

    if made.teacher is not None:
        write("teacher", "teacher.safetensors", None, partial(save_weights, model=made.teacher))
    write("fusion", "fusion.safetensors", None, head.save)
    write("samples", "samples.safetensors", None, partial(write_tensors, tensors=samples))
    for device, model in enumerate(made.submodels):
        write("submodel", f"submodel-{device}.safetensors", device, partial(save_weights, model=model))
    _, calibration = write_calibration(folder, "fusion.safetensors", validation_features, data.validation.labels)
    return (*records, calibration, *write_quantization(folder, data.validation, samples["images"]))


def _data_record(data: Dataset) -> DataRecord:
    return DataRecord(
        name=data.name,
        training_images=len(data.training),
        validation_images=len(data.validation),
        test_images=len(data.test),
        training_sha256=data.training.digest(),
        validation_sha256=data.validation.digest(),
        test_sha256=data.test.digest(),
    )


def _model_record(model: Model, *, with_head: bool) -> ModelRecord:
    return ModelRecord(model.config, macs(model.config, with_head=with_head), parameters(model.config))
