"""``devit evaluate --policy``: figures against the subsets' own, and what a cell without a calibration is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from devit_contract.artefacts.calibration import Calibration, Scores
from devit_contract.artefacts.files import write_json
from devit_contract.artefacts.head import Fusion
from devit_contract.errors import InputError
from devit_contract.service.progress import no_progress
from devit_decompose.data.dataset import load_dataset
from devit_decompose.evaluation.evaluate import load_cell
from devit_decompose.evaluation.policy_figures import Choice, PolicyFigures, evaluate_policies
from devit_decompose.models_folder.decomposition import FILE_NAME, load_decomposition
from devit_decompose.models_folder.subset_accuracy import joined_features
from devit_decompose.recipe.schema import Recipe

DEVIT = [sys.executable, "-c", "from devit_pipeline.cli import main; main()"]
PROMISE = 0.3
"""100 validation images hold no promise much below."""
CHOICES = [Choice("all"), Choice("single"), Choice("replica"), Choice("certain", flips=PROMISE, order="best")]


@pytest.fixture(scope="module")
def played(models: Path) -> list[PolicyFigures]:
    return evaluate_policies(models, CHOICES, data=None, progress=no_progress)


def devit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEVIT, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_policies_of_one_subset_have_its_accuracy_and_cost(played: list[PolicyFigures], models: Path) -> None:
    found = load_decomposition(models)
    by_mask = {subset.mask: subset for subset in found.subsets}
    alone = [by_mask[1 << device] for device in range(4)]
    expected = [by_mask[15].test_accuracy, max(alone, key=lambda one: one.validation_accuracy).test_accuracy]
    expected.append(float(np.mean([one.test_accuracy for one in alone])))
    for figures, accuracy in zip(played, expected, strict=False):
        assert figures.accuracy == pytest.approx(100 * accuracy, abs=1.1)  # two of 200 may turn by rounding
        assert figures.certain is None
    macs = [record.macs / 1e6 for record in found.submodels]
    assert [figures.devices_asked for figures in played[:3]] == [4.0, 1.0, 1.0]
    assert [figures.million_macs for figures in played[:3]] == pytest.approx([sum(macs), macs[0], np.mean(macs)])
    assert (played[0].flips, played[0].p_value) == (0.0, 1.0)
    assert {figures.accuracy_all for figures in played} == {played[0].accuracy}


def test_certain_answers_are_those_above_the_thresholds_of_the_calibration(
    played: list[PolicyFigures], models: Path, small: Recipe
) -> None:
    """The mean over images that are asked one by one, in the order of the devices' validation accuracy."""
    cell, test = load_cell(models), load_dataset(small.data).test
    features, fusion = joined_features(cell.submodels, test.images), Fusion(cell.head)
    calibration = Calibration.load(models / "calibration.safetensors", devices=4)
    alone = {subset.mask: subset.validation_accuracy for subset in cell.decomposition.subsets}
    order = sorted(range(4), key=lambda device: -alone[1 << device])
    asked, flips, right = [], [], []
    for row, label in zip(features, test.labels, strict=True):
        for count in (1, 2, 4):
            mask = sum(1 << device for device in order[:count])
            logits = fusion.batch_logits(row[None], mask)[0]
            threshold = 0.0 if count == 4 else calibration.threshold(mask, flips=PROMISE, tests=2)
            if count == 4 or Scores(cell.head, mask).of(logits) >= threshold:
                break
        asked.append(count)
        flips.append(logits.argmax() != fusion.batch_logits(row[None], 15)[0].argmax())
        right.append(logits.argmax() == label)
    figures = played[3]
    assert figures.devices_asked == pytest.approx(np.mean(asked), abs=0.02)
    assert 1.0 < figures.devices_asked < 4.0
    assert figures.flips == pytest.approx(np.mean(flips), abs=0.011)
    assert figures.accuracy == pytest.approx(100 * np.mean(right), abs=1.1)
    assert figures.shares_asked.keys() <= {1, 2, 4}
    assert sum(count * share for count, share in figures.shares_asked.items()) == pytest.approx(figures.devices_asked)
    difference = (figures.only_policy_right - figures.only_all_right) / 2  # of 200 images, in percent
    assert figures.accuracy - figures.accuracy_all == pytest.approx(difference)


@pytest.mark.system
def test_json_and_table_say_the_same(models: Path) -> None:
    words = ["evaluate", models, "--policy", "certain", "--flips", "0.3", "--stages", "1-3", "--order", "cost"]
    printed = devit(*words, "--json")
    assert (printed.returncode, printed.stderr) == (0, "")
    raw = json.loads(printed.stdout)
    assert {"devices_asked", "flips", "accuracy", "accuracy_all", "stages"} <= raw.keys()
    found = msgspec.convert(raw, PolicyFigures, str_keys=True)
    assert found.certain is not None
    assert (found.certain.stages, found.certain.order, list(found.certain.thresholds)) == ("1-3", "cost", ["0"])
    shown = devit(*words)
    assert shown.returncode == 0, shown.stderr
    for figure in (f"{found.devices_asked:.2f}", f"{found.flips:.2%}", f"{found.accuracy:.2f}%"):
        assert figure in shown.stdout
    hopeless = devit("evaluate", models, "--policy", "certain", "--flips", "0.0001", "--json")
    assert hopeless.stderr.startswith("warning: no answer of some devices is certain")
    assert json.loads(hopeless.stdout)["devices_asked"] == 4.0


def test_models_without_a_calibration_say_how_to_make_one(models: Path, tmp_path: Path) -> None:
    older = shutil.copytree(models, tmp_path / "models")
    found = load_decomposition(older)
    files = tuple(file for file in found.files if file.role != "calibration")
    write_json(older / FILE_NAME, msgspec.structs.replace(found, files=files))
    with pytest.raises(InputError, match=f"run devit evaluate {older} --calibrate"):
        evaluate_policies(older, CHOICES, data=None, progress=no_progress)
    assert evaluate_policies(older, CHOICES[:1], data=None, progress=no_progress)[0].flips == 0.0


def test_what_is_wrong_is_said_before_any_model_runs(models: Path) -> None:
    for words, error in (
        (("--policy", "certain", "--flips", "1"), "flips: expected a share between 0 and 1, e.g. 0.01, found 1"),
        (("--stages", "1-3"), "--flips, --confidence, --stages and --order belong to --policy certain: add it"),
        (("--policy", "all", "--calibrate"), "give one of --against MODELS, --policy NAME and --calibrate"),
    ):
        done = devit("evaluate", models, *words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {error}\n")
