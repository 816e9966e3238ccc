"""When the answer of some devices is certain: scores, thresholds, and the promise on images that were not used."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.calibration import Calibration, Scores, answers, calibrate, calibrated_masks
from devit_contract.artefacts.files import write_tensors
from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics, error_covariance
from devit_contract.binomial import upper_bound
from devit_contract.errors import ManifestError

DIMS, CLASSES, IMAGES = (3, 2, 3), 5, 4000


@pytest.fixture(scope="module")
def cell() -> tuple[FusionHead, Float32Array, Float32Array]:
    """A head with Gaussian features that depend on each other, for calibration and for the test."""
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(sum(DIMS), sum(DIMS)))
    features = (rng.normal(size=(2 * IMAGES, sum(DIMS))) @ mixing).astype(np.float32)
    statistics = FusionStatistics(np.zeros(sum(DIMS)), mixing.T @ mixing)
    head = FusionHead(DIMS, rng.normal(size=(CLASSES, sum(DIMS))), rng.normal(size=CLASSES), statistics)
    return head, features[:IMAGES], features[IMAGES:]


def test_the_score_is_the_smallest_margin_over_its_deviation(
    cell: tuple[FusionHead, Float32Array, Float32Array],
) -> None:
    """Class by class, as the formula is written."""
    head, features, _ = cell
    logits = Fusion(head).batch_logits(features[:50], 0b011)
    uncertain = error_covariance(head, 0b011)
    scores = Scores(head, 0b011)
    for row, batch in zip(logits, scores.of_batch(logits), strict=True):
        top = int(row.argmax())
        ratios = []
        for rival in range(CLASSES):
            if rival != top:
                variance = uncertain[top, top] + uncertain[rival, rival] - 2 * uncertain[top, rival]
                ratios.append((row[top] - row[rival]) / math.sqrt(variance))
        assert scores.of(row) == pytest.approx(min(ratios), rel=1e-4)
        assert batch == pytest.approx(min(ratios), rel=1e-4)


@pytest.mark.parametrize("flips", [0.003, 0.01, 0.05])
def test_no_more_images_flip_than_promised_in_any_order(
    cell: tuple[FusionHead, Float32Array, Float32Array], flips: float
) -> None:
    """On the images of the calibration, by its own bound; on others, up to what chance may add."""
    head, used, fresh = cell
    calibration, fusion = calibrate(head, used), Fusion(head)
    for order in ((0b001, 0b011), (0b010, 0b110), (0b100, 0b101)):
        for features, confidence in ((used, 0.95), (fresh, 1e-4)):
            full = answers(fusion, features, 0b111)
            final, is_open = full.copy(), np.ones(IMAGES, bool)
            for mask in order:
                logits = fusion.batch_logits(features, mask)
                threshold = calibration.threshold(mask, flips=flips, tests=len(order))
                stops = is_open & (Scores(head, mask).of_batch(logits) >= threshold)
                final[stops] = logits.argmax(axis=1)[stops]
                is_open &= ~stops
            assert upper_bound(int((final != full).sum()), IMAGES, confidence) <= flips
            assert is_open.mean() < 1.0 or flips < 0.01, "no answer was ever certain"


def test_a_threshold_lets_just_the_allowed_flips_through() -> None:
    scores = np.linspace(9.0, 1.0, 100, dtype=np.float32)
    calibration = Calibration(1000, {1: scores})
    for flips in (0.004, 0.01, 0.02):
        through = int((scores >= calibration.threshold(1, flips=flips)).sum())
        assert upper_bound(through, 1000) <= flips < upper_bound(through + 1, 1000)


def test_without_flips_every_answer_is_certain_and_without_calibration_none() -> None:
    calibration = Calibration(5000, {1: np.empty(0, np.float32)})
    assert calibration.threshold(1, flips=0.01) == 0.0
    assert calibration.threshold(1, flips=0.0) == math.inf
    assert calibration.threshold(2, flips=0.5) == math.inf
    assert Calibration(10, {1: np.empty(0, np.float32)}).threshold(1, flips=0.01) == math.inf  # too few to promise


def test_large_cells_are_calibrated_for_runs_of_neighbours() -> None:
    assert len(calibrated_masks(6)) == 62
    masks = calibrated_masks(8)
    assert len(masks) == 8 * 7
    assert 0b10000001 in masks
    assert 0b00000101 not in masks


def test_a_calibration_comes_back_from_its_file(
    tmp_path: Path, cell: tuple[FusionHead, Float32Array, Float32Array]
) -> None:
    made = calibrate(cell[0], cell[1])
    made.save(tmp_path / "calibration.safetensors")
    read = Calibration.load(tmp_path / "calibration.safetensors", devices=3)
    assert read.images == made.images
    assert {mask: scores.tolist() for mask, scores in read.flips.items()} == {
        mask: scores.tolist() for mask, scores in made.flips.items()
    }
    assert made.usual is not None
    assert read.usual is not None
    np.testing.assert_array_equal(read.usual.agreements, made.usual.agreements)
    assert {mask: rank.tolist() for mask, rank in read.usual.closeness.items()} == {
        mask: rank.tolist() for mask, rank in made.usual.closeness.items()
    }


def test_a_calibration_of_an_older_version_does_not_tell_what_is_usual(tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    write_tensors(path, {"images": np.asarray([10], np.int64), "flips.1": np.asarray([2.0, 1.0], np.float32)})
    read = Calibration.load(path, devices=3)
    assert (read.usual, list(read.flips)) == (None, [1])


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.asarray([0], np.int64)},
        {"images": np.asarray([5.0])},
        {"flips.7": np.zeros(1, np.float32)},
        {"flips.x": np.zeros(1, np.float32)},
        {"flips.1": np.asarray([1.0, 2.0], np.float32)},
        {"flips.1": np.asarray([np.nan], np.float32)},
        {"flips.1": np.zeros((1, 1), np.float32)},
        {"usual.agreements": np.zeros((3, 10), np.float32)},
        {"usual.agreements": np.zeros((3, 10), np.float32), "usual.closeness": np.zeros((7, 9), np.float32)},
        {"usual.agreements": -np.ones((3, 10), np.float32).cumsum(1), "usual.closeness": np.zeros((7, 10), np.float32)},
        {"usual.agreements": np.zeros((3, 10), np.float32), "usual.closeness": np.full((7, 10), np.nan, np.float32)},
    ],
)
def test_a_calibration_that_breaks_its_format_is_refused(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    path = tmp_path / "calibration.safetensors"
    write_tensors(path, {"images": np.asarray([10], np.int64)} | change)
    with pytest.raises(ManifestError, match="make the bundle again with devit export"):
        Calibration.load(path, devices=3)
