from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.errors import InputError, ManifestError
from devit_decompose.data import balanced_indices, load_dataset, read_idx
from devit_decompose.losses import distillation
from devit_decompose.partition import random_partition
from devit_decompose.recipe import load_recipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion-mnist.toml"


def test_a_change_reaches_the_field_it_names() -> None:
    assert load_recipe(EXAMPLE, ("train.decay_epochs=2", 'name="x"')).train.decay_epochs == 2


@pytest.mark.parametrize(
    "change",
    [
        "train.speed=2",
        "train",
        "train.batch=many",
        'seed="one"',
        "train.batch.x=1",
        "submodels=0",
        "submodels=20",
        "teacher.heads=0",
        "teacher.heads=3",
        "teacher.stem=[]",
        "data.mean=[0.1, 0.2]",
        "train.batch=0",
    ],
)
def test_a_change_that_fits_nothing_is_refused(change: str) -> None:
    with pytest.raises(InputError, match="--set"):
        load_recipe(EXAMPLE, (change,))


def test_an_unknown_field_in_a_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(EXAMPLE.read_text().replace("seed = 1", "seed = 1\nsede = 2", 1))
    with pytest.raises(ManifestError, match=r"recipe.toml: field .*sede"):
        load_recipe(path)


def test_the_parts_of_a_data_set_never_meet(idx_folder: Path, small_changes: tuple[str, ...]) -> None:
    recipe = load_recipe(EXAMPLE, small_changes)
    data = load_dataset(recipe.data, recipe.seed)
    parts = [{image.tobytes() for image in split.images} for split in (data.training, data.validation, data.test)]
    assert len(set.union(*parts)) == sum(len(part) for part in parts) == 800
    assert np.bincount(data.validation.labels).tolist() == [10] * 10


def test_labels_of_a_class_subset_count_from_zero(small_changes: tuple[str, ...]) -> None:
    recipe = load_recipe(EXAMPLE, small_changes)
    subset = load_dataset(recipe.data, recipe.seed).test.of_classes((7, 2))
    assert len(subset.labels) == 40
    assert np.bincount(subset.labels).tolist() == [20, 20]


def test_a_packed_idx_file_is_read_like_a_plain_one(tmp_path: Path) -> None:
    content = struct.pack(">2I", 0x801, 3) + bytes((5, 6, 7))
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(content))
    assert read_idx(tmp_path / "plain").tolist() == read_idx(tmp_path / "packed").tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\0\0\x0d\x01\0\0\0\1\0", "unsigned bytes"),
        (struct.pack(">2I", 0x801, 9) + b"\0", "expected 9 bytes"),
        (b"", "IDX"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        read_idx(tmp_path / "x")


def test_a_missing_data_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="apt install dataset-fashion-mnist"):
        read_idx(tmp_path / "train-images-idx3-ubyte")


@given(classes=st.integers(1, 200), parts=st.integers(1, 16), seed=st.integers(0, 2**32 - 1))
def test_a_partition_gives_each_class_to_one_part_and_sizes_differ_by_one_at_most(
    classes: int, parts: int, seed: int
) -> None:
    found = random_partition(classes, parts, seed)
    assert sorted(label for part in found for label in part) == list(range(classes))
    sizes = [len(part) for part in found]
    assert max(sizes) - min(sizes) <= 1
    assert found == random_partition(classes, parts, seed)


def test_too_few_images_of_a_class_are_refused() -> None:
    with pytest.raises(InputError, match="class 1: expected at least 2 images, found 1"):
        balanced_indices(np.array([0, 0, 1]), 4, 2, seed=0)


def test_distillation_is_the_divergence_written_out() -> None:
    """Two classes, temperature 2: p = softmax([1, 0]), q = softmax([0, 0]), 4 * sum p log(p / q)."""
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    p = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    expected = 4 * float((p * np.log(p / 0.5)).sum())
    assert distillation(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert distillation(logits, logits + 3.0, 2.0).item() == pytest.approx(0.0, abs=1e-6)
