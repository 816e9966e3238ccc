"""A teacher that answers: live, or from answers stored once for all variants of all training images.

If images are varied by flips and shifts alone, there are few variants (18 for a flip and one pixel each
way), and a teacher's answer to each can be kept: students of a small teacher then train several times faster, and
further runs with the same teacher find the answers made.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch

from devit_contract.artefacts.files import exclusive_lock, make_folder, write_bytes
from devit_contract.errors import InputError
from devit_contract.service.progress import Progress
from devit_decompose.data.batches import Batch, apply_variant, variant_count
from devit_decompose.data.dataset import Split
from devit_decompose.models.model import Model
from devit_decompose.recipe.training import AugmentRecipe
from devit_decompose.training.accelerator import Machine
from devit_decompose.training.objectives import TeacherAnswer, answer_of

Answers = np.memmap[tuple[int, ...], np.dtype[np.float16]]

_BATCH = 250


class LiveTeacher:
    """Computes every answer on demand."""

    def __init__(self, model: Model, machine: Machine, *, block: int | None = None) -> None:
        """Answer by ``model``; with ``block``, with the query, key and value of that block too."""
        machine.place(model)
        model.eval()
        self._model = model
        self._machine = machine
        self._block = block

    def __call__(self, batch: Batch) -> TeacherAnswer:
        """Answer a batch, without gradients."""
        return answer_of(self._model, batch.images.to(self._machine.device), self._block, self._machine.autocast())


class StoredTeacher:
    """Looks every answer up; computes missing ones first."""

    def __init__(
        self, folder: Path, model: Model, split: Split, augment: AugmentRecipe, machine: Machine, progress: Progress
    ) -> None:
        """Find or make the answers of ``model`` to every variant of every image of ``split``.

        Raises:
            InputError: The images are varied in endlessly many ways, or the folder cannot be written.
        """
        count = variant_count(augment)
        if count is None:
            raise InputError(
                "--teacher-cache: expected images varied by flip and shift_pixels alone, found more in augment: "
                "leave the option out"
            )
        place = folder / _key(model, split, augment, machine.precision)
        with machine.main_first():
            if machine.is_main:
                make_folder(place)
                with exclusive_lock(place / "lock"):  # another run may make the same answers
                    _fill(place, model, split, augment, count, machine, progress)
        self._machine = machine
        self._logits = _open(place / "logits.npy", (count, len(split), len(model.config.classes)), "r")
        self._features = _open(place / "features.npy", (count, len(split), model.config.feature_dim), "r")

    def __call__(self, batch: Batch) -> TeacherAnswer:
        """Look a batch up."""
        if batch.variants is None:
            raise ValueError("stored answers need the number of each image's variant")
        variants, indices = batch.variants.numpy(), batch.indices.numpy()
        device = self._machine.device
        logits, features = (
            torch.from_numpy(stored[variants, indices].astype(np.float32)).to(device)
            for stored in (self._logits, self._features)
        )
        return TeacherAnswer(logits, features)


def _key(model: Model, split: Split, augment: AugmentRecipe, precision: str) -> str:
    whole = hashlib.sha256(msgspec.json.encode([model.config, augment, precision]))
    for name, value in sorted(model.state_dict().items()):
        whole.update(name.encode() + value.detach().cpu().numpy().tobytes())
    whole.update(split.digest().encode())
    return whole.hexdigest()[:16]


def _open(path: Path, shape: tuple[int, int, int], mode: Literal["r", "r+", "w+"]) -> Answers:
    """Map a file of answers; a new one reserves its whole space on the disk.

    Raises:
        InputError: It is damaged, or there is no room.
    """
    try:
        if mode != "w+":
            stored: Answers = np.load(path, mmap_mode=mode)
        else:
            stored = np.lib.format.open_memmap(path, mode=mode, dtype=np.float16, shape=shape)
            with path.open("r+b") as file:  # a full disk would kill the process later, in the middle of a store
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except (OSError, ValueError, EOFError) as err:
        raise InputError(
            f"{path}: expected the teacher's answers, or room for them ({err}): remove its folder"
        ) from err
    if stored.shape != shape or stored.dtype != np.float16:
        raise InputError(f"{path}: expected answers of shape {shape}, found {stored.shape}: remove its folder")
    return stored


def _fill(
    place: Path, model: Model, split: Split, augment: AugmentRecipe, count: int, machine: Machine, progress: Progress
) -> None:
    """Write the variants one by one, always in the same batches; those that are done already stay."""
    note = place / "variants-done"
    done = int(note.read_text()) if note.exists() else 0
    if done == count:
        return
    dims = {"logits": len(model.config.classes), "features": model.config.feature_dim}
    logits, features = (
        _open(place / f"{name}.npy", (count, len(split), dim), "r+" if done else "w+") for name, dim in dims.items()
    )
    teacher = LiveTeacher(model, machine)
    for variant in range(done, count):
        for start in range(0, len(split), _BATCH):
            chosen = slice(start, min(start + _BATCH, len(split)))
            images = apply_variant(torch.from_numpy(split.images[chosen].copy()), variant, augment)
            answer = teacher(Batch(images, torch.empty(0), torch.empty(0), None))
            logits[variant, chosen] = answer.logits.cpu().numpy()
            features[variant, chosen] = answer.features.cpu().numpy()
            progress("teacher", variant + start / len(split), count, "storing its answers")
        logits.flush()
        features.flush()
        write_bytes(note, str(variant + 1).encode())
    progress("teacher", count, count, "answers stored")
