from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from devit_contract.progress import no_progress
from devit_decompose.recipe import load_recipe
from devit_decompose.stages import decompose

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion-mnist.toml"


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four IDX files: 8 x 8 gray images of ten classes, a bright square whose place tells the class."""
    folder = tmp_path_factory.mktemp("idx")
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 600), ("t10k", 200)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = generator.integers(0, 60, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += 150
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 8, 8) + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())
    return folder


@pytest.fixture(scope="session")
def small_changes(idx_folder: Path) -> tuple[str, ...]:
    """Changes to the example's recipe that make it train in seconds."""
    stem = "[{width = 8}, {width = 16, stride = 2}]"
    return (
        f'data.folder="{idx_folder}"',
        "data.validation_images=100",
        "data.sample_images=20",
        f"teacher.stem={stem}",
        "teacher.depth=2",
        "teacher.heads=1",
        f"student.stem={stem}",
        "student.depth=1",
        "student.heads=1",
        "train.batch=50",
        "train.max_epochs=2",
        "train.decay_epochs=2",
        "train.flip=false",
        "distil.schedule.batch=50",
        "distil.schedule.max_epochs=1",
        "distil.schedule.decay_epochs=1",
        "ensemble.schedule.batch=50",
        "ensemble.schedule.max_epochs=2",
        "ensemble.schedule.decay_epochs=2",
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, small_changes: tuple[str, ...]) -> Path:
    """A small decomposition, made once; copy it before changing it."""
    out = tmp_path_factory.mktemp("decomposition") / "models"
    decompose(load_recipe(EXAMPLE, small_changes), out, resume=False, progress=no_progress)
    return out


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are then made in the same order every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
