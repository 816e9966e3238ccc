from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from devit_contract.service.progress import no_progress
from devit_decompose.recipe.reader import load_recipe
from devit_decompose.recipe.schema import Recipe
from devit_decompose.stages import decompose

SCHEDULE = """
learning_rate = 2e-3
batch = 50
max_epochs = 2
decay_epochs = 2
patience = 0
augment = { flip = false }
"""
SMALL = """
schema = 2
name = "small"
seed = 1
submodels = 4
threads = 1
[data]
name = "Squares"
folder = "{folder}"
size = [8, 8]
classes = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
mean = [0.2]
std = [0.2]
validation_images = 100
sample_images = 20
[teacher]
stem = [{{ width = 8 }}, {{ width = 16, stride = 2 }}]
depth = 2
heads = 1
mlp_ratio = 2.0
[[students]]
stem = [{{ width = 8 }}, {{ width = 16, stride = 2 }}]
depth = 1
heads = 1
mlp_ratio = 2.0
[train]
learning_rate = 2e-3
batch = 50
max_epochs = 2
decay_epochs = 2
patience = 3
augment = {{ flip = false }}
[sub_teacher]
learning_rate = 1e-3
batch = 50
max_epochs = 1
decay_epochs = 1
patience = 0
augment = {{ flip = false }}
[distil]
answer = {{ label_weight = 0.5, teacher_weight = 0.5, temperature = 2.0 }}
relation = {{ form = "devit", query_weight = 0.02, key_weight = 0.01, value_weight = 0.03 }}
[distil.schedule]
{schedule}[ensemble]
answer = {{ label_weight = 0.3, teacher_weight = 0.7, temperature = 2.0 }}
token_weight = 0.1
failout = 0.25
failout_weight = 0.4
[ensemble.schedule]
{schedule}"""


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
def small_path(tmp_path_factory: pytest.TempPathFactory, idx_folder: Path) -> Path:
    """A recipe with every stage, which trains in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(SMALL.format(folder=idx_folder, schedule=SCHEDULE))
    return path


@pytest.fixture(scope="session")
def small(small_path: Path) -> Recipe:
    return load_recipe(small_path)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, small: Recipe) -> Path:
    """A small decomposition, made once; copy it before changing it."""
    out = tmp_path_factory.mktemp("decomposition") / "models"
    decompose(small, out, resume=False, progress=no_progress)
    return out


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are then made in the same order every time; the next machine may have another precision."""
    AcceleratorState._reset_state()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
