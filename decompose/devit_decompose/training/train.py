"""The training loop of every stage: schedule, checkpoints after each epoch, early stop on validation."""

from __future__ import annotations

import csv
import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from devit_contract.errors import TrainError
from devit_contract.service.progress import Progress
from devit_decompose.data.batches import Batch, BatchSpec, batches
from devit_decompose.data.dataset import Split
from devit_decompose.models.inference import accuracy, run
from devit_decompose.recipe.schema import DataRecipe
from devit_decompose.recipe.training import Schedule
from devit_decompose.training.accelerator import Machine, Prepared
from devit_decompose.training.losses import total
from devit_decompose.training.objectives import Objective, TeacherAnswer


@dataclass(frozen=True)
class Stage:
    """What one stage trains, on which images, and how it is scored."""

    name: str
    objective: Objective
    """Everything that is trained; its state is what a checkpoint keeps."""
    split: Split
    schedule: Schedule
    score: Callable[[], float]
    """Validation accuracy in 0 to 1, of the modules as they are; the same in every process."""
    ask: Callable[[Batch], TeacherAnswer] | None = None
    """The teacher, if there is one."""
    classes: int = 0
    """K of the split's labels."""


class StageResult(NamedTuple):
    """How a stage went."""

    epochs: int
    best_epoch: int
    """Counted from 1."""
    best_score: float
    """Validation accuracy of the epoch that was kept, in 0 to 1."""


@dataclass(frozen=True)
class Context:
    """What all stages of one decomposition share."""

    machine: Machine
    data: DataRecipe
    work: Path
    """Folder of the checkpoints."""
    log: Path
    """CSV file: stage, epoch, measure, value."""
    progress: Progress


def fit(stage: Stage, context: Context, *, seed: int) -> StageResult:
    """Train until validation has not risen for ``patience`` epochs after the decay, and leave the best epoch's weights.

    After every epoch the state is saved to a checkpoint in ``context.work``. An existing checkpoint is continued; a
    finished one is only loaded. Batches and every random draw depend on seed and epoch alone, so a resumed run sees
    the same ones.

    Raises:
        TrainError: The checkpoint does not fit the model, or the loss is not a number any more.
    """
    machine, schedule = context.machine, stage.schedule
    checkpoint = context.work / f"{stage.name}.pt"
    machine.place(stage.objective)
    optimizer = torch.optim.AdamW(_decay_groups(stage.objective, schedule.weight_decay), lr=0.0, fused=True)
    state = _load(checkpoint, stage, optimizer)
    prepared = machine.prepare(stage.objective, optimizer, schedule.accumulate)
    while not _is_finished(state, schedule):
        started_s = time.perf_counter()
        means = _epoch(stage, context, prepared, state, seed)
        stage.objective.eval()
        _note_score(state, stage, stage.score())
        if machine.is_main:
            trained = {"objective": stage.objective.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(checkpoint, state | trained)
            _log(context.log, stage.name, state, means, time.perf_counter() - started_s)
        machine.wait()
        context.progress(stage.name, state["epoch"], schedule.max_epochs, _note(means, state))
    stage.objective.load_state_dict(state["best_objective"])
    stage.objective.eval()
    prepared.release()
    context.progress(stage.name, schedule.max_epochs, schedule.max_epochs, f"best {state['best']:.2%}")
    return StageResult(state["epoch"], state["best_epoch"], state["best"])


def score_of(module: nn.Module, split: Split, machine: Machine) -> Callable[[], float]:
    """Make the score of a stage: accuracy over a split that all processes share among themselves."""

    def score() -> float:
        mine = np.arange(machine.rank, len(split), machine.world)
        if not len(mine):
            return machine.sum(0) / len(split)
        answers = run(module, split.images[mine])
        return machine.sum(round(accuracy(answers, split.labels[mine]) * len(mine))) / len(split)

    return score


def learning_rate(schedule: Schedule, epoch: float) -> float:
    """Rate at a point in time counted in epochs from 0: linear up, down by a line or a cosine, then constant."""
    if epoch < schedule.warmup_epochs:
        return schedule.learning_rate * (epoch + 0.01) / (schedule.warmup_epochs + 0.01)
    span = max(schedule.decay_epochs - schedule.warmup_epochs, 1e-9)
    done = min(1.0, (epoch - schedule.warmup_epochs) / span)
    if schedule.decay == "cosine":
        share = schedule.final_share + (1 - schedule.final_share) * (1 + math.cos(math.pi * done)) / 2
    else:
        share = max(schedule.final_share, 1.0 - done)
    return schedule.learning_rate * share


@dataclass
class _Means:
    """Means of the loss terms over an epoch, without waiting for the device at every step."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(term)) + term.detach()
        self.count += 1

    def values(self) -> dict[str, float]:
        return {name: float(value) / self.count for name, value in self.sums.items()}


def _epoch(stage: Stage, context: Context, prepared: Prepared, state: dict[str, Any], seed: int) -> dict[str, float]:
    machine, schedule, epoch = context.machine, stage.schedule, state["epoch"]
    # Batches that fill no whole optimiser step are left out, as the last part of a batch is.
    steps = len(stage.split) // (schedule.batch * machine.world * schedule.accumulate) * schedule.accumulate
    means = _Means()
    stage.objective.train()
    torch.manual_seed(seed * 100_003 + epoch * 101 + machine.rank)  # for drop path
    spec = BatchSpec(seed, epoch, stage.classes, context.data.mean, context.data.std, machine.rank, machine.world)
    stream = batches(stage.split, schedule, spec, workers=context.data.workers)
    for step, batch in zip(range(steps), stream, strict=False):
        for group in prepared.optimizer.param_groups:
            group["lr"] = learning_rate(schedule, epoch + step // schedule.accumulate * schedule.accumulate / steps)
        answer = None if stage.ask is None else stage.ask(batch)
        with prepared.step():
            terms = prepared.objective(batch.images.to(machine.device), batch.labels.to(machine.device), answer)
            loss = total(terms)
            if not torch.isfinite(loss):
                raise TrainError(
                    f"{stage.name}: loss is {loss.item()} in epoch {epoch + 1}: "
                    f"lower learning_rate in the recipe, remove {context.work / stage.name}.pt and run again"
                )
            prepared.backward(loss, schedule.clip_norm)
        means.add(terms)
        if step % 10 == 0:
            context.progress(stage.name, epoch + step / steps, schedule.max_epochs, _note(means.values(), state))
    return means.values()


def _note(means: dict[str, float], state: dict[str, Any]) -> str:
    whole = f"loss {sum(means.values()):.3f}"
    return whole if state["best"] < 0 else f"{whole}, last {state['last']:.2%}, best {state['best']:.2%}"


def _decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _is_finished(state: dict[str, Any], schedule: Schedule) -> bool:
    if state["epoch"] >= schedule.max_epochs:
        return True
    is_decayed = state["epoch"] >= schedule.decay_epochs
    return bool(is_decayed and state["epoch"] - state["best_epoch"] >= schedule.patience)


def _note_score(state: dict[str, Any], stage: Stage, score: float) -> None:
    state["epoch"] += 1
    state["last"] = score
    if score > state["best"]:
        state["best"] = score
        state["best_epoch"] = state["epoch"]
        state["best_objective"] = {name: value.clone() for name, value in stage.objective.state_dict().items()}


def save_checkpoint(checkpoint: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader sees the old one or the new, never a part.

    Raises:
        TrainError: It cannot be written.
    """
    temporary = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        temporary.replace(checkpoint)
    except (OSError, RuntimeError) as err:
        reason = next(iter(str(err).splitlines()), type(err).__name__)
        raise TrainError(f"{checkpoint}: cannot be written ({reason}): make room, then continue with --resume") from err
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(checkpoint: Path) -> dict[str, Any] | None:
    """Read a checkpoint into the CPU's memory, wherever it was written, or find that there is none.

    Raises:
        TrainError: It cannot be read.
    """
    if not checkpoint.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as err:
        raise _unusable(checkpoint, err) from err
    return content


def _load(checkpoint: Path, stage: Stage, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = load_checkpoint(checkpoint)
    if state is None:
        return {"epoch": 0, "best_epoch": 0, "best": -1.0, "last": -1.0}
    try:
        stage.objective.load_state_dict(state.pop("objective"))
        optimizer.load_state_dict(state.pop("optimizer"))
    except (RuntimeError, KeyError, ValueError) as err:
        raise _unusable(checkpoint, err) from err
    return state


def _unusable(checkpoint: Path, err: Exception) -> TrainError:
    reason = next(iter(str(err).splitlines()), type(err).__name__)
    return TrainError(f"{checkpoint}: does not continue this recipe ({reason}): remove it to start over")


def _log(path: Path, stage: str, state: dict[str, Any], means: dict[str, float], duration_s: float) -> None:
    measures = {f"loss {name}": value for name, value in means.items()}
    measures |= {"validation accuracy": state["last"], "seconds": duration_s}
    is_new = not path.exists()
    try:
        with path.open("a", newline="") as file:
            rows = csv.writer(file)
            if is_new:
                rows.writerow(["stage", "epoch", "measure", "value"])
            rows.writerows([stage, state["epoch"], name, f"{value:.6g}"] for name, value in measures.items())
    except OSError as err:
        raise TrainError(f"{path}: cannot be written ({err.strerror}): make room, then continue with --resume") from err
