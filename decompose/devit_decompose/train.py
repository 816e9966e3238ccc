"""The training loop of every stage: schedule, checkpoints after each epoch, early stop on validation."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from devit_contract.errors import TrainError
from devit_contract.progress import Progress
from devit_decompose.data import Split
from devit_decompose.recipe import Schedule


@dataclass(frozen=True)
class Stage:
    """What one stage trains and how it is judged."""

    name: str
    modules: nn.Module
    """Everything that is trained; its state is what a checkpoint keeps."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """From augmented uint8 images ``(B, H, W, C)`` and labels ``(B,)`` to the scalar to minimise."""
    score: Callable[[], float]
    """Validation accuracy in 0 to 1, of the modules as they are."""
    extra_state: Callable[[], dict[str, Tensor]] = dict
    """Tensors beside the modules that a resumed run needs."""
    restore_extra: Callable[[dict[str, Tensor]], None] = lambda _state: None


@dataclass(frozen=True)
class StageResult:
    """How a stage went."""

    epochs: int
    best_epoch: int
    """Counted from 1."""
    best_score: float
    """Validation accuracy of the epoch that was kept, in 0 to 1."""


def fit(
    stage: Stage, split: Split, schedule: Schedule, *, seed: int, checkpoint: Path, progress: Progress
) -> StageResult:
    """Train until validation has not risen for ``schedule.patience`` epochs, and leave the best epoch's weights.

    After every epoch the state goes to ``checkpoint``; a file that is already there is continued, and a finished one
    is only loaded. Shuffling and augmentation depend on seed and epoch alone, so a resumed run sees the same batches.

    Raises:
        TrainError: The checkpoint does not fit the model, or the loss is not a number any more.
    """
    optimizer = torch.optim.AdamW(_decay_groups(stage.modules, schedule.weight_decay), lr=0.0, fused=True)
    state = _load(checkpoint, stage, optimizer)
    batches = len(split.labels) // schedule.batch
    while not _is_finished(state, schedule):
        epoch = state["epoch"]
        stage.modules.train()
        for step, (images, labels) in enumerate(_batches(split, schedule, seed, epoch)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, epoch + step / batches)
            loss = stage.loss(images, labels)
            if not torch.isfinite(loss):
                raise TrainError(
                    f"{stage.name}: loss is {loss.item()} in epoch {epoch + 1}: "
                    f"lower learning_rate in the recipe, remove {checkpoint} and run again"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % 10 == 0:
                progress(stage.name, epoch + step / batches, schedule.max_epochs, f"best {state['best']:.2%}")
        stage.modules.eval()
        _note_score(state, stage, stage.score())
        _save(checkpoint, stage, optimizer, state)
        progress(stage.name, state["epoch"], schedule.max_epochs, f"last {state['last']:.2%}, best {state['best']:.2%}")
    stage.modules.load_state_dict(state["best_modules"])
    stage.restore_extra(state["best_extra"])
    stage.modules.eval()
    return StageResult(state["epoch"], state["best_epoch"], state["best"])


def learning_rate(schedule: Schedule, epoch: float) -> float:
    """Rate at a point in time counted in epochs from 0: linear up, linear down, then constant."""
    if epoch < schedule.warmup_epochs:
        return schedule.learning_rate * (epoch + 0.01) / (schedule.warmup_epochs + 0.01)
    span = max(schedule.decay_epochs - schedule.warmup_epochs, 1e-9)
    share = max(schedule.final_share, 1.0 - (epoch - schedule.warmup_epochs) / span)
    return schedule.learning_rate * share


def augment(images: Tensor, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Flip and shift uint8 images ``(B, H, W, C)`` at random, each on its own; what a shift uncovers is black."""
    count, height, width, _ = images.shape
    if schedule.flip:
        is_flipped = torch.rand(count, generator=generator) < 0.5
        images = torch.where(is_flipped[:, None, None, None], images.flip(2), images)
    reach = schedule.shift_pixels
    if reach > 0:
        padded = nn.functional.pad(images, (0, 0, reach, reach, reach, reach))
        top, left = torch.randint(0, 2 * reach + 1, (2, count), generator=generator)
        rows = (top[:, None] + torch.arange(height))[:, :, None]  # (B, H, 1)
        columns = (left[:, None] + torch.arange(width))[:, None, :]  # (B, 1, W)
        images = padded[torch.arange(count)[:, None, None], rows, columns]
    return images


def _batches(split: Split, schedule: Schedule, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = np.random.default_rng((seed, epoch)).permutation(len(split.labels))
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    for start in range(0, len(order) - schedule.batch + 1, schedule.batch):
        chosen = order[start : start + schedule.batch]
        images = torch.from_numpy(split.images[chosen])
        yield augment(images, schedule, generator), torch.from_numpy(split.labels[chosen])


def _decay_groups(modules: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in modules.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in modules.parameters() if parameter.ndim <= 1]
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
        state["best_modules"] = {name: value.clone() for name, value in stage.modules.state_dict().items()}
        state["best_extra"] = {name: value.clone() for name, value in stage.extra_state().items()}


def _save(checkpoint: Path, stage: Stage, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    whole = state | {
        "modules": stage.modules.state_dict(),
        "extra": stage.extra_state(),
        "optimizer": optimizer.state_dict(),
    }
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    draft = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
    try:
        torch.save(whole, draft)
        draft.replace(checkpoint)
    finally:
        draft.unlink(missing_ok=True)


def _load(checkpoint: Path, stage: Stage, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    if not checkpoint.exists():
        return {"epoch": 0, "best_epoch": 0, "best": -1.0, "last": -1.0}
    try:
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        stage.modules.load_state_dict(state.pop("modules"))
        stage.restore_extra(state.pop("extra"))
        optimizer.load_state_dict(state.pop("optimizer"))
    except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as err:
        reason = next(iter(str(err).splitlines()), type(err).__name__)
        raise TrainError(f"{checkpoint}: does not continue this recipe ({reason}): remove it to start over") from err
    return state
