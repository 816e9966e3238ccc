"""The stages of a decomposition in their order: teacher, partition, shrinking, sub-task distillation, ensemble."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.files import check_replaceable, exclusive_lock, write_bytes
from devit_contract.errors import TrainError
from devit_contract.service.progress import Progress
from devit_decompose.data.dataset import Dataset, Split, load_dataset
from devit_decompose.models.initial_weights import initial_weights
from devit_decompose.models.model import Model, ModelConfig
from devit_decompose.models_folder.decomposition import FILE_NAME, Decomposition, StageRecord
from devit_decompose.models_folder.write import Made, write_models
from devit_decompose.partition import partition_of
from devit_decompose.pruning.search import ReadoutAccuracy, SearchRecord, search_submodel
from devit_decompose.pruning.shrink import of_classes
from devit_decompose.recipe.checks import check_recipe
from devit_decompose.recipe.schema import Recipe, ShapeRecipe, ShrinkRecipe
from devit_decompose.recipe.training import Schedule
from devit_decompose.training.accelerator import Machine
from devit_decompose.training.objectives import DistilObjective, Ensemble, EnsembleObjective, LabelObjective
from devit_decompose.training.teachers import LiveTeacher, StoredTeacher
from devit_decompose.training.train import Context, Stage, fit, load_checkpoint, save_checkpoint, score_of

Classes = tuple[int, ...]


def decompose(
    recipe: Recipe, out: Path, *, resume: bool, progress: Progress, teacher_cache: Path | None = None
) -> Decomposition | None:
    """Run every stage and write the models folder.

    Checkpoints are kept in ``<out>.work`` until the folder is whole; with ``resume`` those of the same recipe are
    continued. Losses and validation accuracies of every epoch go to ``<out>.log.csv``. ``teacher_cache`` keeps the
    teacher's answers to all variants of the training images. None is returned in all processes but the main one.

    Raises:
        InputError: The recipe does not fit together, or the data are missing or do not fit.
        TrainError: An unfinished run is in the way, belongs to another recipe, or training diverged.
    """
    check_replaceable(out, FILE_NAME)
    check_recipe(recipe)
    machine = Machine(recipe.precision, recipe.threads)
    progress = machine.progress(progress)
    data = load_dataset(recipe.data)
    work, log = out.with_name(out.name + ".work"), out.with_name(out.name + ".log.csv")
    with machine.main_first():
        _claim(work, log, recipe, resume=resume or not machine.is_main)
    busy = TrainError(f"{work}: another run is at work in this folder: wait for it or stop it")
    with exclusive_lock(work / "lock", busy=busy) if machine.is_main else nullcontext():
        stages = Stages(recipe, data, Context(machine, recipe.data, work, log, progress), teacher_cache)
        made = stages.run_all()
        result = None
        if machine.is_main:
            result = write_models(out, made, data, recipe.data.sample_images, progress)
            shutil.rmtree(work)
    machine.wait()
    progress("done", 1, 1)
    return result


@dataclass
class Stages:
    """Runs the stages one by one, each with its own seed, and keeps a record of each."""

    recipe: Recipe
    data: Dataset
    context: Context
    teacher_cache: Path | None = None
    records: list[StageRecord] = field(default_factory=list)
    searches: list[SearchRecord] = field(default_factory=list)

    def run_all(self) -> Made:
        """Run every stage, one after the other."""
        teacher = self.teacher()
        subsets = partition_of(self.recipe, self.data.training, teacher, self.data.validation)
        submodels = [self.submodel(teacher, classes, device) for device, classes in enumerate(subsets)]
        ensemble = self.ensemble(teacher, submodels)
        return Made(
            name=self.recipe.name,
            submodels=tuple(ensemble.models()),
            fusion=ensemble.linear(),
            class_subsets=subsets,
            recipe=self.recipe,
            teacher=teacher,
            stages=tuple(self.records),
            searches=tuple(self.searches),
        )

    def teacher(self) -> Model:
        """Train the large model on all classes, with labels alone, or use its weights as they are."""
        recipe = self.recipe
        everything = tuple(range(recipe.data.class_count))
        self._seed_torch()
        config = recipe.teacher.config(recipe.data, everything)
        teacher = _started(recipe.teacher, config, fresh_head=recipe.train is not None)
        self.context.machine.place(teacher)
        if recipe.train is not None:
            self._learn_labels("teacher", teacher, recipe.train, self.data.training, self.data.validation)
        return teacher

    def submodel(self, teacher: Model, classes: Classes, device: int) -> Model:
        """Make a small model and teach it its own classes."""
        recipe, machine = self.recipe, self.context.machine
        training, validation = (split.of_classes(classes) for split in (self.data.training, self.data.validation))
        own_teacher = None
        if recipe.sub_teacher is not None and len(classes) < recipe.data.class_count:
            own_teacher = of_classes(teacher, classes)
            machine.place(own_teacher)
            self._learn_labels(f"sub-teacher-{device}", own_teacher, recipe.sub_teacher, training, validation)
        source = own_teacher or of_classes(teacher, classes)
        self._seed_torch()
        student = self._student(source, classes, device, training, validation)
        student.see(recipe.view_of(device))
        distil = recipe.distil_of(device)
        objective, schedule = DistilObjective(student, source, distil, recipe.class_weights(device)), distil.schedule
        if recipe.members:
            count = max(1, round(len(training) * recipe.members[device].images_share))
            training = _some(training, count, (self._seed(), device))
        ask = None
        if distil.asks_teacher:
            ask = self._teacher_for(source, training, schedule, objective.teacher_block)
        score = score_of(student, validation, machine)
        self._fit(Stage(f"submodel-{device}", objective, training, schedule, score, ask, len(classes)))
        return student

    def ensemble(self, teacher: Model, submodels: list[Model]) -> Ensemble:
        """Train all submodels and the fusion together on all classes, with failout."""
        recipe, machine, training = self.recipe, self.context.machine, self.data.training
        self._seed_torch()
        ensemble = Ensemble(submodels, recipe.data.class_count)
        if recipe.partition.has_generalists:
            ensemble.start_at_heads()
        for model in submodels:
            model.set_drop_path(recipe.ensemble.schedule.drop_path)
        objective = EnsembleObjective(ensemble, teacher.config.feature_dim, recipe.ensemble, self._seed())
        schedule = recipe.ensemble.schedule
        ask = self._teacher_for(teacher, training, schedule, None) if recipe.ensemble.asks_teacher else None
        score = score_of(ensemble, self.data.validation, machine)
        self._fit(Stage("ensemble", objective, training, schedule, score, ask, recipe.data.class_count))
        return ensemble

    def _teacher_for(
        self, teacher: Model, split: Split, schedule: Schedule, block: int | None
    ) -> LiveTeacher | StoredTeacher:
        """Use stored answers where they can be: to all training images, without query, key and value."""
        machine, is_whole = self.context.machine, len(split) == len(self.data.training)
        if self.teacher_cache is None or block is not None or not is_whole:
            return LiveTeacher(teacher, machine, block=block)
        return StoredTeacher(self.teacher_cache, teacher, split, schedule.augment, machine, self.context.progress)

    def _student(self, source: Model, classes: Classes, device: int, training: Split, validation: Split) -> Model:
        """Build a fresh submodel, or prune one."""
        recipe = self.recipe
        if recipe.students:
            shape = recipe.student(device)
            student = _started(shape, shape.config(recipe.data, classes), fresh_head=True)
        if recipe.shrink is not None:
            student = self._shrunk(student if recipe.students else source, recipe.shrink, device, training, validation)
        self.context.machine.place(student)
        student.set_drop_path(recipe.distil.schedule.drop_path)
        return student

    def _shrunk(self, source: Model, shrink: ShrinkRecipe, device: int, training: Split, validation: Split) -> Model:
        """Prune a submodel to its budget, or take it from the checkpoint of an earlier start."""
        checkpoint = self.context.work / f"shrink-{device}.pt"
        found = load_checkpoint(checkpoint)
        self.context.machine.wait()  # no process may find what another one is just about to write
        if found is None:
            seed = (self.recipe.seed, device)
            scored = _some(validation, shrink.images, seed)
            score = ReadoutAccuracy(self._seen(device, scored), scored.labels)
            images = self._seen(device, _some(training, shrink.images, seed))
            pruned, record = search_submodel(self.recipe, source, shrink, device, images, score, self.context.progress)
            content = {
                "config": msgspec.json.encode(pruned.config).decode(),
                "record": msgspec.json.encode(record).decode(),
                "weights": pruned.state_dict(),
            }
            if self.context.machine.is_main:
                save_checkpoint(checkpoint, content)
        else:
            pruned = Model(msgspec.json.decode(found["config"], type=type(source.config)))
            pruned.load_state_dict(found["weights"])
            record = msgspec.json.decode(found["record"], type=SearchRecord)
        self.searches.append(record)
        return pruned

    def _seen(self, device: int, split: Split) -> UInt8Array:
        """Give a few images as a device sees them, ``(n, H, W, C)``."""
        view = self.recipe.view_of(device)
        return split.images[:] if view is None else view.of(split.images[:])

    def _learn_labels(self, name: str, model: Model, schedule: Schedule, training: Split, validation: Split) -> None:
        model.set_drop_path(schedule.drop_path)
        objective = LabelObjective(model, schedule.label_smoothing)
        score = score_of(model, validation, self.context.machine)
        self._fit(Stage(name, objective, training, schedule, score, None, len(model.config.classes)))

    def _fit(self, stage: Stage) -> None:
        self.records.append(StageRecord(stage.name, *fit(stage, self.context, seed=self._seed())))

    def _seed(self) -> int:
        return self.recipe.seed * 1000 + len(self.records)

    def _seed_torch(self) -> None:
        torch.manual_seed(self._seed())


def _started(shape: ShapeRecipe, config: ModelConfig, *, fresh_head: bool) -> Model:
    return initial_weights(shape.weights, config, fresh_head=fresh_head) if shape.weights else Model(config)


def _some(split: Split, count: int, seed: tuple[int, ...]) -> Split:
    chosen = np.random.default_rng(seed).permutation(len(split))[:count]
    return split.select(np.sort(chosen))


def _claim(work: Path, log: Path, recipe: Recipe, *, resume: bool) -> None:
    note = work / "recipe.json"
    content = msgspec.json.format(msgspec.json.encode(recipe), indent=2)
    if not note.exists():
        write_bytes(note, content)
        log.unlink(missing_ok=True)
        return
    if not resume:
        raise TrainError(f"{work}: an unfinished run is there: add --resume to continue it, or remove it")
    if note.read_bytes() != content:
        raise TrainError(f"{note}: the unfinished run has another recipe: remove {work} to start over")
