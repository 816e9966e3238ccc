"""The dry run: builds every model of a recipe and runs one step of each stage on random data."""

from __future__ import annotations

import os
from contextlib import nullcontext

import msgspec
import numpy as np
import torch

from devit_contract.service.progress import Progress, no_progress
from devit_decompose.data.dataset import Split
from devit_decompose.models.model import Model
from devit_decompose.partition import partition_of
from devit_decompose.pruning.cost import macs, parameters
from devit_decompose.pruning.search import search_submodel
from devit_decompose.pruning.shrink import of_classes
from devit_decompose.recipe.checks import check_recipe
from devit_decompose.recipe.schema import Recipe
from devit_decompose.recipe.training import Schedule
from devit_decompose.training.losses import total
from devit_decompose.training.objectives import (
    DistilObjective,
    Ensemble,
    EnsembleObjective,
    LabelObjective,
    Objective,
    TeacherAnswer,
    answer_of,
)

_IMAGES = 2


def dry_run(recipe: Recipe, progress: Progress) -> tuple[list[str], list[list[str]]]:
    """Run one step of each stage, and count what each model costs: a table's header and rows.

    Weights that the recipe would load are random here, so it needs neither network nor data.

    Raises:
        InputError: The recipe does not fit together.
    """
    check_recipe(recipe)
    torch.set_num_threads(min(recipe.threads, len(os.sched_getaffinity(0))))  # more than there are cores only wait
    torch.manual_seed(recipe.seed)
    count = recipe.data.class_count
    split = _noise(recipe, count)
    steps = recipe.submodels + 2
    progress("dry run", 0, steps, "teacher")
    teacher = Model(recipe.teacher.config(recipe.data, tuple(range(count))))
    rows = [_row("teacher", teacher, with_head=True)]
    if recipe.train is not None:
        _step(LabelObjective(teacher, recipe.train.label_smoothing), split, recipe.train, None)
    one_of_each = _noise(recipe, count, images=count)  # a confusion needs all classes
    subsets = partition_of(recipe, one_of_each, teacher, one_of_each)
    submodels = []
    for device, classes in enumerate(subsets):
        progress("dry run", device + 1, steps, f"submodel {device}")
        student = _dry_run_submodel(recipe, teacher, classes, device)
        rows.append(_row(f"submodel {device}", student, with_head=False))
        submodels.append(student)
    progress("dry run", steps - 1, steps, "ensemble")
    ensemble = Ensemble(submodels, count)
    if recipe.partition.has_generalists:
        ensemble.start_at_heads()
    objective = EnsembleObjective(ensemble, teacher.config.feature_dim, recipe.ensemble, seed=0)
    _step(objective, split, recipe.ensemble.schedule, _answer(teacher, split, None))
    progress("dry run", steps, steps)
    whole = float(rows[0][1])
    shared = [[name, cost, f"{float(cost) / whole:.1%}", *rest] for name, cost, *rest in rows]
    return ["model", "MMACs", "share", "parameters", "classes"], shared


def _dry_run_submodel(recipe: Recipe, teacher: Model, classes: tuple[int, ...], device: int) -> Model:
    source = of_classes(teacher, classes)
    split = _noise(recipe, len(classes))
    if recipe.sub_teacher is not None and len(classes) < recipe.data.class_count:
        _step(LabelObjective(source, recipe.sub_teacher.label_smoothing), split, recipe.sub_teacher, None)
    student = Model(recipe.student(device).config(recipe.data, classes)) if recipe.students else source
    if recipe.shrink is not None:
        quick = msgspec.structs.replace(recipe.shrink, candidates=1)
        student, _ = search_submodel(recipe, student, quick, device, split.images[:], lambda _model: 0.0, no_progress)
    student.see(recipe.view_of(device))
    distil = recipe.distil_of(device)
    objective = DistilObjective(student, source, distil, recipe.class_weights(device))
    _step(objective, split, distil.schedule, _answer(source, split, objective.teacher_block))
    return student


def _step(objective: Objective, split: Split, schedule: Schedule, answer: TeacherAnswer | None) -> None:
    """Do one optimiser step; the optimiser's memory is freed."""
    objective.train()
    optimizer = torch.optim.AdamW(
        [parameter for parameter in objective.parameters() if parameter.requires_grad], lr=schedule.learning_rate * 1e-6
    )
    loss = total(objective(torch.from_numpy(split.images[:]), torch.from_numpy(split.labels), answer))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    objective.eval()


def _answer(teacher: Model, split: Split, block: int | None) -> TeacherAnswer:
    return answer_of(teacher, torch.from_numpy(split.images[:]), block, nullcontext())


def _noise(recipe: Recipe, classes: int, images: int = _IMAGES) -> Split:
    generator = np.random.default_rng(recipe.seed)
    pixels = generator.integers(0, 256, (images, *recipe.data.image_size), dtype=np.uint8)
    return Split(pixels, np.arange(images, dtype=np.int64) % classes)


def _row(name: str, model: Model, *, with_head: bool) -> list[str]:
    config = model.config
    return [name, f"{macs(config, with_head=with_head) / 1e6:.2f}", f"{parameters(config):,}", str(len(config.classes))]
