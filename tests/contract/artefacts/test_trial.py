"""The trial of a calibration: answers of subsets to validation images, kept for plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from devit_contract.artefacts.calibration import Calibration, Scores, answers, calibrate
from devit_contract.artefacts.files import Tensors, write_tensors
from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics
from devit_contract.artefacts.trial import FLIP, MAX_MARKS, RIGHT, Trial
from devit_contract.errors import ManifestError

DIMS, CLASSES, IMAGES = (3, 2), 4, 500


def _cell() -> tuple[FusionHead, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(sum(DIMS), sum(DIMS)))
    features = (rng.normal(size=(IMAGES, sum(DIMS))) @ mixing).astype(np.float32)
    head = FusionHead(
        DIMS,
        rng.normal(size=(CLASSES, sum(DIMS))),
        rng.normal(size=CLASSES),
        FusionStatistics(np.zeros(sum(DIMS)), mixing.T @ mixing),
    )
    return head, features, rng.integers(0, CLASSES, IMAGES)


def test_a_trial_holds_what_each_subset_answers_and_comes_back_from_its_file(tmp_path: Path) -> None:
    head, features, labels = _cell()
    path = tmp_path / "calibration.safetensors"
    calibrate(head, features, labels).save(path)
    trial = Calibration.load(path, devices=2).trial
    assert trial is not None
    assert trial.masks == (1, 2, 3)
    fusion = Fusion(head)
    full = answers(fusion, features, 3)
    for column, mask in enumerate(trial.masks):
        given = answers(fusion, features, mask)
        assert trial.accuracy(mask) == pytest.approx((given == labels).mean())
        np.testing.assert_array_equal(trial.marks[:, column] & RIGHT > 0, given == labels)
        np.testing.assert_array_equal(trial.marks[:, column] & FLIP > 0, given != full)
    scores = Scores(head, 2).of_batch(fusion.batch_logits(features, 2))
    np.testing.assert_allclose(trial.scores[:, 1], scores, rtol=1e-3)


def test_a_calibration_without_a_trial_has_none_and_keeps_its_thresholds(tmp_path: Path) -> None:
    """Files from before the trial are read as ever, and the trial changes no threshold."""
    head, features, labels = _cell()
    path = tmp_path / "calibration.safetensors"
    without = calibrate(head, features)
    without.save(path)
    assert Calibration.load(path, devices=2).trial is None
    with_trial = calibrate(head, features, labels)
    for mask in (1, 2):
        assert without.threshold(mask, flips=0.05) == with_trial.threshold(mask, flips=0.05)


def test_of_many_images_a_trial_keeps_some_from_everywhere() -> None:
    images = MAX_MARKS
    column = np.arange(images)
    trial = Trial.of({1: column.astype(np.float32)}, {1: column, 3: column}, column, 3)
    assert trial.images == images // 2
    assert trial.scores[-1, 0] == pytest.approx(60_000.0)
    assert trial.accuracy(1) == 1.0


def test_a_subset_that_was_not_calibrated_is_named() -> None:
    trial = Trial.of({1: np.ones(2, np.float32)}, {1: np.ones(2), 3: np.ones(2)}, np.ones(2), 3)
    with pytest.raises(ManifestError, match="0b10 of the devices was not calibrated"):
        trial.accuracy(2)


@pytest.mark.parametrize(
    "change",
    [
        {"trial.masks": np.asarray([1, 2], np.int64)},
        {"trial.masks": np.asarray([1, 1, 3], np.int64)},
        {"trial.masks": np.asarray([1, 2, 7], np.int64)},
        {"trial.scores": np.full((4, 3), np.nan, np.float16)},
        {"trial.scores": np.zeros((4, 3))},
        {"trial.marks": np.full((4, 3), 4, np.uint8)},
        {"trial.marks": np.zeros((0, 3), np.uint8)},
    ],
)
def test_a_trial_that_breaks_its_format_is_refused(tmp_path: Path, change: Tensors) -> None:
    good = {
        "images": np.asarray([4], np.int64),
        "trial.masks": np.asarray([1, 2, 3], np.int64),
        "trial.scores": np.zeros((4, 3), np.float16),
        "trial.marks": np.zeros((4, 3), np.uint8),
    }
    path = tmp_path / "calibration.safetensors"
    write_tensors(path, good)
    Calibration.load(path, devices=2)
    write_tensors(path, good | change)
    with pytest.raises(ManifestError, match="make the bundle again with devit export"):
        Calibration.load(path, devices=2)
    write_tensors(path, {name: tensor for name, tensor in good.items() if name != "trial.marks"})
    with pytest.raises(ManifestError, match=r"expected trial\.masks"):
        Calibration.load(path, devices=2)
