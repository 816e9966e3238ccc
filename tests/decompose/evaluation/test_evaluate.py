"""``devit evaluate``: every figure against the files, the test that compares two cells against hand-counted coins."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.errors import InputError
from devit_contract.service.progress import no_progress
from devit_decompose.data.dataset import load_dataset
from devit_decompose.evaluation.evaluate import Evaluation, evaluate, load_cell, mcnemar
from devit_decompose.models.inference import run
from devit_decompose.models_folder.decomposition import FILE_NAME, load_decomposition
from devit_decompose.models_folder.subset_accuracy import joined_features
from devit_decompose.recipe.schema import Recipe

DEVIT = [sys.executable, "-c", "from devit_pipeline.cli import main; main()"]


@pytest.fixture(scope="module")
def figures(models: Path) -> Evaluation:
    return evaluate(models, data=None, against=None, progress=no_progress)


def devit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEVIT, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_the_figures_are_those_that_training_wrote_down(figures: Evaluation, models: Path) -> None:
    found = load_decomposition(models)
    assert figures.is_stored_test_set
    assert found.teacher_test_accuracy is not None
    assert figures.teacher_accuracy == pytest.approx(100 * found.teacher_test_accuracy, abs=1.1)
    assert list(figures.subsets)[:5] == ["0", "1", "0,1", "2", "0,2"]
    for subset, key in zip(found.subsets, figures.subsets, strict=True):
        # Two of 200 images may turn, since the file holds the fusion in float32.
        assert figures.subsets[key] == pytest.approx(100 * subset.test_accuracy, abs=1.1)
        assert figures.subsets_with_zeros[key] == pytest.approx(100 * subset.test_accuracy_with_zeros, abs=1.1)
        assert figures.subsets_with_mean[key] == pytest.approx(100 * subset.test_accuracy_with_mean, abs=1.1)
    assert figures.fused_accuracy == figures.subsets["0,1,2,3"] == figures.subsets_with_zeros["0,1,2,3"]
    assert figures.teacher_macs == found.teacher.macs if found.teacher else False
    assert figures.submodel_macs == tuple(record.macs for record in found.submodels)


def test_class_figures_count_the_images_of_their_classes_alone(
    figures: Evaluation, models: Path, small: Recipe
) -> None:
    cell, test = load_cell(models), load_dataset(small.data).test
    features = joined_features(cell.submodels, test.images)
    fusion = Fusion(FusionHead.load(models / "fusion.safetensors"))
    answers = fusion.batch_logits(features, 0b1111).argmax(axis=1)
    of_teacher = run(cell.teacher, test.images).argmax(axis=1)  # type: ignore[arg-type]
    for label, one in enumerate(figures.classes):
        own = test.labels == label
        assert (one.name, one.images) == ("abcdefghij"[label], 20)
        assert one.fused_accuracy == pytest.approx(100 * np.mean(answers[own] == label))
        assert one.teacher_accuracy == pytest.approx(100 * np.mean(of_teacher[own] == label))
    for device, subset in enumerate(figures.class_subsets):
        own = np.isin(test.labels, subset.classes)
        without = fusion.batch_logits(features, 0b1111 & ~(1 << device)).argmax(axis=1)
        assert (subset.device, subset.images) == (device, own.sum())
        assert subset.fused_accuracy == pytest.approx(100 * np.mean((answers == test.labels)[own]))
        assert subset.without_device == pytest.approx(100 * np.mean((without == test.labels)[own]))


def test_a_cell_is_as_good_as_itself(models: Path) -> None:
    found = evaluate(models, data=None, against=models, progress=no_progress).comparison
    assert found is not None
    assert (found.only_this_right, found.only_other_right, found.p_value) == (0, 0, 1.0)


def test_a_cell_whose_fusion_is_broken_is_worse(tmp_path: Path, models: Path, figures: Evaluation) -> None:
    """What one cell alone has right accounts for the whole difference in accuracy."""
    broken = shutil.copytree(models, tmp_path / "broken")
    head = FusionHead.load(broken / "fusion.safetensors")
    FusionHead(head.dims, np.roll(head.weight, 1, axis=0), head.bias, head.statistics).save(
        broken / "fusion.safetensors"
    )
    refresh_digest(broken, "fusion.safetensors")
    found = evaluate(models, data=None, against=broken, progress=no_progress).comparison
    assert found is not None
    gained = (found.only_this_right - found.only_other_right) / 200 * 100
    assert figures.fused_accuracy - found.other_fused_accuracy == pytest.approx(gained)
    assert found.p_value == mcnemar(found.only_this_right, found.only_other_right)


def refresh_digest(folder: Path, name: str) -> None:
    import hashlib

    raw = json.loads((folder / FILE_NAME).read_text())
    for record in raw["files"]:
        if record["name"] == name:
            record["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            record["size_bytes"] = (folder / name).stat().st_size
    (folder / FILE_NAME).write_text(json.dumps(raw))


def test_a_cell_of_other_test_images_is_no_comparison(tmp_path: Path, models: Path, idx_folder: Path) -> None:
    other = shutil.copytree(models, tmp_path / "other")
    folder = changed_images(idx_folder, tmp_path / "changed")
    raw = json.loads((other / FILE_NAME).read_text())
    raw["recipe"]["data"]["folder"] = str(folder)
    (other / FILE_NAME).write_text(json.dumps(raw))
    with pytest.raises(InputError, match="expected a cell with the same test images"):
        evaluate(models, data=None, against=other, progress=no_progress)


def changed_images(idx_folder: Path, to: Path) -> Path:
    shutil.copytree(idx_folder, to)
    path = to / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return to


def test_other_images_are_measured_with_a_warning(tmp_path: Path, models: Path, idx_folder: Path) -> None:
    folder = changed_images(idx_folder, tmp_path / "changed")
    done = devit("evaluate", models, "--data", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("warning: these are not the test images")
    assert json.loads(done.stdout)["is_stored_test_set"] is False


def test_the_calibration_of_a_models_folder_is_made_again(tmp_path: Path, models: Path, idx_folder: Path) -> None:
    """Its own images give what training wrote; others a warning, and a calibration of theirs."""
    again = shutil.copytree(models, tmp_path / "models")
    done = devit("evaluate", again, "--calibrate", "--data", idx_folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert (printed["file"], printed["validation_images"]) == ("calibration.safetensors", 100)
    assert printed["is_stored_validation_set"] is True
    found, trained = (Calibration.load(one / "calibration.safetensors", devices=4) for one in (again, models))
    assert found.flips.keys() == trained.flips.keys()
    for mask, scores in trained.flips.items():
        np.testing.assert_allclose(found.flips[mask], scores, rtol=1e-3, atol=1e-4)
    kept = "quantization.safetensors"
    assert (again / kept).read_bytes() == (models / kept).read_bytes()
    done = devit("evaluate", again, "--calibrate", "--against", models)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: give one of --against MODELS, --policy NAME and --calibrate\n"


@pytest.mark.system
def test_json_and_tables_say_the_same(models: Path, figures: Evaluation) -> None:
    printed = devit("evaluate", models, "--json")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert msgspec.json.decode(printed.stdout, type=Evaluation) == figures
    tables = devit("evaluate", models, "--against", models)
    assert tables.returncode == 0, tables.stderr
    assert max(len(line) for line in tables.stdout.splitlines() if not line.startswith("next: ")) <= 80
    for figure in (figures.teacher_accuracy, figures.fused_accuracy, figures.subsets["1,3"]):
        assert f"{figure:.2f}%" in tables.stdout
    assert "McNemar" in tables.stdout


def test_a_folder_without_models_is_one_line(tmp_path: Path) -> None:
    done = devit("evaluate", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "decomposition.json" in done.stderr


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        # Twice the share of all outcomes of b + c fair coins that have min(b, c) heads or fewer.
        (0, 0, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),
        (5, 15, 0.04138946533203125),
    ],
)
def test_the_exact_test_by_hand(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == mcnemar(c, b) == p


@given(b=st.integers(0, 6), c=st.integers(0, 6))
def test_the_exact_test_counts_coins(b: int, c: int) -> None:
    """Every outcome of all coins, listed."""
    heads = [sum(coins) for coins in itertools.product((0, 1), repeat=b + c)]
    uneven = sum(min(one, b + c - one) <= min(b, c) for one in heads)
    assert mcnemar(b, c) == pytest.approx(uneven / len(heads))


def test_the_exact_test_of_many_images_neither_overflows_nor_takes_long() -> None:
    assert mcnemar(20_000, 20_000) == 1.0
    # The normal approximation: 2 Phi(-(4100 - 3900 - 1) / sqrt(8000)) = 2 Phi(-2.225).
    assert mcnemar(3900, 4100) == pytest.approx(0.0261, rel=0.02)
    assert mcnemar(0, 3000) == 0.0
