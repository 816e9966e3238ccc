"""The stages of a decomposition in their order: teacher, sub-task distillation, ensemble, measurement."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from devit_contract.errors import TrainError
from devit_contract.files import (
    Tensors,
    check_replaceable,
    new_folder,
    sha256_of_file,
    write_bytes,
    write_json,
    write_tensors,
)
from devit_contract.head import Fusion, FusionHead, columns_of, mask_of, prediction
from devit_contract.progress import Progress
from devit_decompose.cost import macs, parameters
from devit_decompose.data import Dataset, Split, balanced_indices, load_dataset
from devit_decompose.decomposition import (
    FILE_NAME,
    SCHEMA,
    DataRecord,
    Decomposition,
    FileRecord,
    ModelRecord,
    StageRecord,
    SubsetRecord,
)
from devit_decompose.evaluate import accuracy, joined_features, run, score_of, statistics_of, subset_accuracies
from devit_decompose.losses import distillation
from devit_decompose.model import Model
from devit_decompose.partition import random_partition
from devit_decompose.recipe import DistilRecipe, EnsembleRecipe, Recipe, Schedule
from devit_decompose.train import Stage, StageResult, fit
from devit_decompose.weights import save_weights


def decompose(recipe: Recipe, out: Path, *, resume: bool, progress: Progress) -> Decomposition:
    """Run every stage and write the models folder.

    Checkpoints lie in ``<out>.work`` until the folder is whole; with ``resume`` they are continued.

    Raises:
        InputError: The data are missing or do not fit.
        TrainError: An unfinished run is in the way, belongs to another recipe, or training diverged.
    """
    check_replaceable(out, FILE_NAME)
    work = out.with_name(out.name + ".work")
    data = load_dataset(recipe.data, recipe.seed)
    _claim(work, recipe, resume=resume)
    torch.set_num_threads(recipe.threads)
    run_stage = _Runner(recipe, work, progress)
    teacher = train_teacher(recipe, data, run_stage)
    subsets = random_partition(len(recipe.data.classes), recipe.submodels, recipe.seed)
    submodels = [
        distil_submodel(recipe, data, run_stage, teacher, classes, device) for device, classes in enumerate(subsets)
    ]
    ensemble = train_ensemble(recipe, data, run_stage, teacher, submodels)
    result = write_models(out, recipe, data, teacher, ensemble, subsets, tuple(run_stage.records), progress)
    shutil.rmtree(work)
    progress("done", 1, 1)
    return result


def preview(recipe: Recipe) -> tuple[list[str], list[list[str]]]:
    """Check recipe and data without training, and count what each model will cost: a table's header and rows."""
    data = load_dataset(recipe.data, recipe.seed)
    image_size = data.training.images.shape[1:]
    subsets = random_partition(len(recipe.data.classes), recipe.submodels, recipe.seed)
    shapes = [("teacher", recipe.teacher.config(recipe.data, image_size, tuple(range(len(recipe.data.classes)))))]
    shapes += [
        (f"submodel {device}", recipe.student.config(recipe.data, image_size, classes))
        for device, classes in enumerate(subsets)
    ]
    rows = [
        [name, f"{macs(config) / 1e6:.2f}", f"{parameters(config):,}", str(len(config.classes))]
        for name, config in shapes
    ]
    return ["model", "MMACs", "parameters", "classes"], rows


@dataclass
class _Runner:
    """Runs stages with their own seeds and keeps a record of each."""

    recipe: Recipe
    work: Path
    progress: Progress

    def __post_init__(self) -> None:
        self.records: list[StageRecord] = []

    def seed(self) -> int:
        """Seed of the next stage."""
        return self.recipe.seed * 1000 + len(self.records)

    def __call__(self, stage: Stage, split: Split, schedule: Schedule) -> StageResult:
        result = fit(
            stage,
            split,
            schedule,
            seed=self.seed(),
            checkpoint=self.work / f"{stage.name}.pt",
            progress=self.progress,
        )
        self.records.append(StageRecord(stage.name, result.epochs, result.best_epoch, result.best_score))
        return result


def train_teacher(recipe: Recipe, data: Dataset, run_stage: _Runner) -> Model:
    """Train the large model on all classes, with labels alone."""
    torch.manual_seed(run_stage.seed())
    classes = tuple(range(len(recipe.data.classes)))
    teacher = Model(recipe.teacher.config(recipe.data, data.training.images.shape[1:], classes))

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = teacher(images)
        return functional.cross_entropy(logits.float(), labels, label_smoothing=recipe.train.label_smoothing)

    run_stage(Stage("teacher", teacher, loss, score_of(teacher, data.validation)), data.training, recipe.train)
    return teacher


def distil_submodel(
    recipe: Recipe, data: Dataset, run_stage: _Runner, teacher: Model, classes: tuple[int, ...], device: int
) -> Model:
    """Train a small model on the images of its own classes, from labels and the teacher's answers."""
    torch.manual_seed(run_stage.seed())
    student = Model(recipe.student.config(recipe.data, data.training.images.shape[1:], classes))
    distil = recipe.distil

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = student(images)
        return _answer_loss(logits.float(), _ask(teacher, images)[:, list(classes)], labels, distil)

    stage = Stage(f"submodel-{device}", student, loss, score_of(student, data.validation.of_classes(classes)))
    run_stage(stage, data.training.of_classes(classes), distil.schedule)
    return student


class Ensemble(nn.Module):
    """All submodels without their own heads, and the linear fusion of their features."""

    def __init__(self, submodels: list[Model], classes: int) -> None:
        """Join the submodels; the fusion starts fresh."""
        super().__init__()
        self.submodels = nn.ModuleList(submodels)
        self.dims = tuple(model.config.width for model in submodels)
        self.fusion = nn.Linear(sum(self.dims), classes)

    def features(self, images: Tensor) -> Tensor:
        """Map uint8 images ``(B, H, W, C)`` to all features side by side, ``(B, sum of dims)``."""
        return torch.cat([model.features(images).float() for model in self.models()], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images ``(B, H, W, C)`` to logits ``(B, K)``."""
        logits: Tensor = self.fusion(self.features(images))
        return logits

    def models(self) -> list[Model]:
        """List the submodels."""
        return [module for module in self.submodels if isinstance(module, Model)]


class Failout:
    """Leaves devices out of a batch and fills their place as the fusion node does, from running statistics."""

    def __init__(self, dims: tuple[int, ...], chance: float, seed: int) -> None:
        """Start without statistics; ``chance`` is each device's to be left out."""
        total = sum(dims)
        self.dims = dims
        self.chance = chance
        self.mean = torch.zeros(total)
        self.covariance = torch.zeros(total, total)
        self.steps = torch.zeros((), dtype=torch.int64)
        self._seed = seed

    def fill(self, features: Tensor) -> Tensor:
        """Replace the features of randomly chosen devices, ``(B, sum of dims)`` in and out."""
        self._note(features.detach())
        present, missing = columns_of(self.dims, self._draw())
        if len(missing) == 0:
            return features
        covariance = self.covariance.double().numpy()
        predict = torch.from_numpy(prediction(covariance, present, missing)).float()  # (missing, present)
        guess = self.mean[missing] + (features[:, present] - self.mean[present]) @ predict.T
        filled = features.clone()
        filled[:, missing] = guess
        return filled

    def state(self) -> dict[str, Tensor]:
        """Hand out what a resumed run needs."""
        return {"mean": self.mean, "covariance": self.covariance, "steps": self.steps}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` handed out."""
        self.mean, self.covariance, self.steps = state["mean"], state["covariance"], state["steps"]

    def _draw(self) -> int:
        # By the step's number, so that a resumed run leaves out the same devices.
        generator = np.random.default_rng((self._seed, int(self.steps)))
        is_kept = generator.random(len(self.dims)) >= self.chance
        if not is_kept.any():
            is_kept[generator.integers(len(self.dims))] = True
        return mask_of([int(device) for device in np.flatnonzero(is_kept)])

    def _note(self, features: Tensor) -> None:
        keep = min(0.99, float(self.steps) / (float(self.steps) + 1.0))
        self.mean = keep * self.mean + (1 - keep) * features.mean(dim=0)
        centred = features - self.mean
        self.covariance = keep * self.covariance + (1 - keep) * (centred.T @ centred / len(features))
        self.steps = self.steps + 1


def train_ensemble(
    recipe: Recipe, data: Dataset, run_stage: _Runner, teacher: Model, submodels: list[Model]
) -> Ensemble:
    """Train all submodels and the fusion together on all classes, now and then without some of the devices."""
    torch.manual_seed(run_stage.seed())
    ensemble = Ensemble(submodels, len(recipe.data.classes))
    settings = recipe.ensemble
    failout = Failout(ensemble.dims, settings.failout, run_stage.seed())

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            features = ensemble.features(images)
        answer = _ask(teacher, images)
        whole = _answer_loss(ensemble.fusion(features), answer, labels, settings)
        partial = _answer_loss(ensemble.fusion(failout.fill(features)), answer, labels, settings)
        return (1 - settings.failout_weight) * whole + settings.failout_weight * partial

    stage = Stage("ensemble", ensemble, loss, score_of(ensemble, data.validation), failout.state, failout.restore)
    run_stage(stage, data.training, settings.schedule)
    return ensemble


def write_models(
    out: Path,
    recipe: Recipe,
    data: Dataset,
    teacher: Model,
    ensemble: Ensemble,
    class_subsets: tuple[tuple[int, ...], ...],
    stages: tuple[StageRecord, ...],
    progress: Progress,
) -> Decomposition:
    """Measure the finished models on every split and write the folder."""
    submodels = ensemble.models()
    progress("measuring", 0, 3, "training split")
    head = FusionHead(
        dims=ensemble.dims,
        weight=ensemble.fusion.weight.detach().double().numpy(),
        bias=ensemble.fusion.bias.detach().double().numpy(),
        statistics=statistics_of(joined_features(submodels, data.training.images)),
    )
    fusion = Fusion(head)
    progress("measuring", 1, 3, "validation and test split")
    validation, test = (
        subset_accuracies(fusion, joined_features(submodels, split.images), split.labels)
        for split in (data.validation, data.test)
    )
    progress("measuring", 2, 3, "teacher")
    teacher_scores = [accuracy(run(teacher, split.images), split.labels) for split in (data.validation, data.test)]
    with new_folder(out) as draft:
        files = _write_files(draft, recipe, data, teacher, submodels, head)
        decomposition = Decomposition(
            schema=SCHEMA,
            name=recipe.name,
            code_version=version("devit"),
            recipe=recipe,
            data=_data_record(recipe, data),
            class_subsets=class_subsets,
            teacher=_model_record(teacher, with_head=True),
            submodels=tuple(_model_record(model, with_head=False) for model in submodels),
            stages=stages,
            teacher_validation_accuracy=teacher_scores[0],
            teacher_test_accuracy=teacher_scores[1],
            subsets=tuple(SubsetRecord(mask, validation[mask], test[mask]) for mask in sorted(test)),
            files=files,
        )
        write_json(draft / FILE_NAME, decomposition)
    return decomposition


def _ask(teacher: Model, images: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits: Tensor = teacher(images)
        return logits.float()


def _answer_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, settings: DistilRecipe | EnsembleRecipe
) -> Tensor:
    smoothing = settings.schedule.label_smoothing
    to_labels = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    to_teacher = distillation(logits, teacher_logits, settings.temperature)
    return settings.label_weight * to_labels + settings.teacher_weight * to_teacher


def _claim(work: Path, recipe: Recipe, *, resume: bool) -> None:
    note = work / "recipe.json"
    content = msgspec.json.format(msgspec.json.encode(recipe), indent=2)
    if not note.exists():
        write_bytes(note, content)
        return
    if not resume:
        raise TrainError(f"{work}: expected no unfinished run, found one: add --resume to continue it, or remove it")
    if note.read_bytes() != content:
        raise TrainError(f"{note}: the unfinished run has another recipe: remove {work} to start over")


def _write_files(
    folder: Path, recipe: Recipe, data: Dataset, teacher: Model, submodels: list[Model], head: FusionHead
) -> tuple[FileRecord, ...]:
    count, classes = recipe.data.sample_images, len(recipe.data.classes)
    chosen = balanced_indices(data.validation.labels, count, classes, recipe.seed)
    samples: Tensors = {"images": data.validation.images[chosen], "labels": data.validation.labels[chosen]}
    writers: list[tuple[str, int | None, str, Callable[[Path], None]]] = [
        ("teacher", None, "teacher.safetensors", lambda path: save_weights(path, teacher)),
        ("fusion", None, "fusion.safetensors", head.save),
        ("samples", None, "samples.safetensors", lambda path: write_tensors(path, samples)),
    ]
    for device, model in enumerate(submodels):
        name = f"submodel-{device}.safetensors"
        writers.append(("submodel", device, name, lambda path, model=model: save_weights(path, model)))  # type: ignore[misc]
    records = []
    for role, device_of_file, name, write in writers:
        write(folder / name)
        records.append(FileRecord(role, name, sha256_of_file(folder / name), device_of_file))
    return tuple(records)


def _data_record(recipe: Recipe, data: Dataset) -> DataRecord:
    return DataRecord(
        name=recipe.data.name,
        training_images=len(data.training.labels),
        validation_images=len(data.validation.labels),
        test_images=len(data.test.labels),
        training_sha256=data.training.digest(),
        validation_sha256=data.validation.digest(),
        test_sha256=data.test.digest(),
    )


def _model_record(model: Model, *, with_head: bool) -> ModelRecord:
    return ModelRecord(model.config, macs(model.config, with_head=with_head), parameters(model.config))
