"""A models folder has its calibration: from training, or added to an older folder, all or nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.calibration import Calibration, calibrate
from devit_contract.artefacts.files import read_tensors, write_json
from devit_contract.artefacts.head import FusionHead
from devit_decompose.data.dataset import Split, load_dataset
from devit_decompose.evaluation.evaluate import load_cell
from devit_decompose.models_folder.calibration import add_calibration
from devit_decompose.models_folder.decomposition import FILE_NAME, load_decomposition
from devit_decompose.models_folder.subset_accuracy import joined_features
from devit_decompose.recipe.schema import Recipe

NAME, IMAGES_NAME = "calibration.safetensors", "quantization.safetensors"
HINT = "make it again"


@pytest.fixture
def older(models: Path, tmp_path: Path) -> Path:
    """A models folder as an older version wrote it, with a folder of somebody's beside the files."""
    folder = Path(shutil.copytree(models, tmp_path / "models"))
    for name in (NAME, IMAGES_NAME):
        (folder / name).unlink()
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("keep")
    found = load_decomposition(models)
    files = tuple(file for file in found.files if file.role not in ("calibration", "quantization"))
    write_json(folder / FILE_NAME, msgspec.structs.replace(found, files=files))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_training_calibrates_the_head_that_the_node_will_read(models: Path, small: Recipe) -> None:
    validation = load_dataset(small.data).validation
    features = joined_features(load_cell(models).submodels, validation.images)
    expected = calibrate(FusionHead.load(models / "fusion.safetensors"), features, validation.labels)
    entry = load_decomposition(models).file("calibration")
    found = Calibration.load(models / entry.name, devices=4, sha256=entry.sha256)
    assert found.images == expected.images == 100
    assert found.flips.keys() == expected.flips.keys() == set(range(1, 15))
    for mask, scores in expected.flips.items():
        np.testing.assert_allclose(found.flips[mask], scores, rtol=1e-3, atol=1e-4)
    assert found.trial is not None
    assert expected.trial is not None
    np.testing.assert_array_equal(found.trial.marks, expected.trial.marks)


def validation_of(images: int = 50) -> Split:
    """Black images, no two of them alike."""
    pixels = np.zeros((images, 28, 28, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(images)
    return Split(pixels, np.zeros(images, np.int64))


def features_of(models: Path, images: int = 50) -> Float32Array:
    """Features of nothing, as many as the fusion head takes."""
    width = sum(FusionHead.load(models / "fusion.safetensors").dims)
    return np.random.default_rng(4).normal(size=(images, width)).astype(np.float32)


def test_an_older_folder_gets_a_calibration_and_keeps_everything_else(older: Path) -> None:
    before = contents(older)
    made = add_calibration(older, load_decomposition(older), features_of(older), validation_of())
    found = load_decomposition(older)  # checks every digest
    entry = found.file("calibration")
    read = Calibration.load(older / entry.name, devices=4, sha256=entry.sha256)
    assert (read.images, read.flips.keys()) == (made.images, made.flips.keys()) == (50, set(range(1, 15)))
    after = contents(older)
    assert after.keys() - before.keys() == {NAME, IMAGES_NAME}
    assert {name for name in before if before[name] != after[name]} == {FILE_NAME}
    assert [path.name for path in older.parent.iterdir()] == ["models"]


def test_a_second_calibration_takes_the_place_of_the_first(older: Path) -> None:
    for images in (50, 60):
        add_calibration(older, load_decomposition(older), features_of(older, images), validation_of(images))
    found = load_decomposition(older)
    assert [file.name for file in found.files].count(NAME) == 1
    assert [file.name for file in found.files].count(IMAGES_NAME) == 1
    assert Calibration.load(older / NAME, devices=4).images == 60
    assert len(read_tensors(older / IMAGES_NAME, HINT)["labels"]) == 60


def test_a_calibration_that_fails_leaves_the_folder_as_it_was(older: Path) -> None:
    before = contents(older)
    with pytest.raises(IndexError):
        add_calibration(older, load_decomposition(older), features_of(older)[:, :5], validation_of())
    assert contents(older) == before
    assert [path.name for path in older.parent.iterdir()] == ["models"]


def test_the_folder_behind_a_link_is_calibrated_and_the_link_stays(older: Path) -> None:
    link = older.with_name("latest")
    link.symlink_to(older)
    add_calibration(link, load_decomposition(link), features_of(link), validation_of())
    assert link.is_symlink()
    assert load_decomposition(older).file("calibration").name == NAME
