"""Which outputs pass the accuracy check, and which fail it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devit_contract.artefacts.gate import Reference, compare
from devit_contract.artefacts.manifest import Bundle
from devit_engines.accuracy import check_accuracy, reference_of

TINY = Bundle(Path(__file__).parents[1] / "data" / "tiny-bundle")
SUBMODEL = reference_of(TINY, 0)
BASELINE = reference_of(TINY, "baseline")


def test_the_reference_itself_passes() -> None:
    result = compare(SUBMODEL.outputs, SUBMODEL)
    assert result.failures("fp16") == []
    assert (result.images, result.flips, result.non_finite, result.max_abs_error) == (64, 0, 0, 0.0)
    assert result.cosine_min == pytest.approx(1.0)
    assert result.flip_rate_bound == pytest.approx(1 - 0.05 ** (1 / 64))


def test_fewer_images_than_wanted_are_a_doubt_with_its_figure() -> None:
    assert (
        "validated with 64 golden images, fewer than 256: up to 4.6% of" in compare(SUBMODEL.outputs, SUBMODEL).doubt()
    )
    four = [np.concatenate([part] * 4) for part in (SUBMODEL.images, SUBMODEL.outputs, SUBMODEL.logits)]
    assert compare(four[1], Reference(four[0], four[1], four[2], lambda _: four[2])).doubt() == ""


@settings(deadline=None)
@given(st.integers(0, 63), st.integers(0, 5), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_one_number_that_is_not_finite_fails_the_check(row: int, column: int, value: float) -> None:
    outputs = SUBMODEL.outputs.copy()
    outputs[row, column] = value
    assert compare(outputs, SUBMODEL).failures("fp16") == ["1 output numbers are NaN or infinite, expected none"]


@settings(deadline=None)
@given(st.floats(0.05, 10.0), st.integers(0, 2**32 - 1))
def test_noise_above_the_threshold_fails_the_check(size: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0.0, size * float(SUBMODEL.outputs.std()), SUBMODEL.outputs.shape)
    found = compare((SUBMODEL.outputs + noise).astype(np.float32), SUBMODEL).failures("fp16")
    assert any("expected at least" in text or "expected at most" in text for text in found)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rounding_to_half_precision_passes(seed: int) -> None:
    """The check has to tell FP16's rounding from a fault; order and sign of the images do not matter to it."""
    order = np.random.default_rng(seed).permutation(64)
    reference = Reference(SUBMODEL.images, SUBMODEL.outputs[order], SUBMODEL.logits, lambda _: SUBMODEL.logits)
    rounded = reference.outputs.astype(np.float16).astype(np.float32)
    assert compare(rounded, reference).failures("fp16") == []


def test_a_constant_feature_does_not_hide_a_lost_image() -> None:
    """With a large common part a plain cosine is near 1 whatever the image; without the mean it is not."""
    rng = np.random.default_rng(0)
    common = np.full(8, 100.0, np.float32)
    outputs = (common + rng.normal(0.0, 1.0, (32, 8))).astype(np.float32)
    logits = rng.normal(0.0, 1.0, (32, 3)).astype(np.float32)
    reference = Reference(np.zeros((32, 1, 1, 1), np.uint8), outputs, logits, lambda _: logits)
    result = compare(np.tile(common, (32, 1)), reference)
    assert result.relative_l2 < 0.03
    assert result.failures("fp16")[0].startswith("smallest cosine")


def test_two_swapped_submodels_are_found_by_their_answers() -> None:
    result = compare(np.roll(SUBMODEL.outputs, 1, axis=0), SUBMODEL)
    assert result.flips > 0
    assert result.flip_rate_bound > result.flips / 64
    assert any("answers flipped" in text for text in result.failures("fp16"))


def test_a_flip_within_the_smallest_margins_is_counted_and_allowed() -> None:
    logits = np.tile(np.array([1.0, 0.0], np.float32), (100, 1))
    logits[0] = [0.500, 0.499]
    changed = logits.copy()
    changed[0] = [0.499, 0.500]
    outputs = np.arange(200, dtype=np.float32).reshape(100, 2)
    result = compare(outputs, Reference(np.zeros((100, 1, 1, 1), np.uint8), outputs, logits, lambda _: changed))
    assert (result.flips, result.flips_above_margin) == (1, 0)
    assert result.failures("fp16") == []


def test_a_flip_of_a_certain_answer_fails_the_check() -> None:
    logits = np.tile(np.array([1.0, 0.0], np.float32), (100, 1))
    logits[:50, 0] = 0.5
    changed = logits.copy()
    changed[99] = [0.0, 1.0]
    outputs = np.arange(200, dtype=np.float32).reshape(100, 2)
    result = compare(outputs, Reference(np.zeros((100, 1, 1, 1), np.uint8), outputs, logits, lambda _: changed))
    assert result.failures("fp16") == ["1 of 100 answers flipped, expected none"]


def test_the_baseline_is_compared_with_its_own_answers() -> None:
    assert compare(BASELINE.outputs, BASELINE).failures("fp16") == []
    assert any("flipped" in text for text in compare(-BASELINE.outputs, BASELINE).failures("fp16"))


def test_all_golden_images_go_through_the_engine_and_progress_ends_at_the_last() -> None:
    seen: list[int] = []
    done: list[int] = []
    outputs = iter(np.array_split(SUBMODEL.outputs, 4))

    def run(images: np.typing.NDArray[np.uint8]) -> np.typing.NDArray[np.float32]:
        seen.append(len(images))
        return next(outputs)

    assert check_accuracy(run, SUBMODEL, done.append).failures("fp16") == []
    assert (seen, done) == ([16] * 4, [16, 32, 48, 64])
