"""Linear heads on stored features: ridge regression against least squares, logistic regression against its gradient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.arrays import Int64Array
from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.service.progress import no_progress
from devit_decompose.assembly import logistic
from devit_decompose.assembly import ridge as ridge_module
from devit_decompose.assembly.logistic import fit_logistic
from devit_decompose.assembly.ridge import STRENGTHS, LinearHead, Parts, Ridge, columns_of_parts, moments_of
from devit_decompose.models_folder.subset_accuracy import statistics_of


def made_up(
    seed: int, count: int, dims: tuple[int, ...], classes: int
) -> tuple[list[npt.NDArray[np.float32]], Int64Array]:
    """Correlated features whose mean depends on the class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    labels[:classes] = np.arange(classes)
    whole = generator.normal(size=(count, sum(dims))) @ generator.normal(size=(sum(dims), sum(dims)))
    whole += 2 * generator.normal(size=(classes, sum(dims)))[labels] + 5
    return [part.astype(np.float32) for part in np.split(whole, np.cumsum(dims)[:-1], axis=1)], labels


def least_squares(parts: Parts, labels: Int64Array, classes: int, strength: float) -> LinearHead:
    """Ridge regression as ordinary least squares: the penalty as further rows, the bias as a further column."""
    features = np.concatenate(parts, axis=1).astype(np.float64)
    count, width = features.shape
    mean, scale = features.mean(axis=0), features.std(axis=0)
    targets = np.eye(classes)[labels]
    rows = np.concatenate([(features - mean) / scale, np.sqrt(strength * count) * np.eye(width)])
    ones = np.concatenate([np.ones(count), np.zeros(width)])[:, np.newaxis]
    wanted = np.concatenate([targets, np.zeros((width, classes))])
    found = np.linalg.lstsq(np.concatenate([rows, ones], axis=1), wanted, rcond=None)[0]
    weight = (found[:-1] / scale[:, np.newaxis]).T
    return LinearHead(weight, found[-1] - weight @ mean)


@examples(0.25)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(6, 60),
    dims=st.sampled_from([(1,), (3,), (2, 4)]),
    classes=st.integers(2, 5),
    strength=st.sampled_from([1e-4, 1e-2, 1.0]),
)
def test_ridge_is_least_squares_with_the_penalty_as_further_rows(
    seed: int, count: int, dims: tuple[int, ...], classes: int, strength: float
) -> None:
    parts, labels = made_up(seed, count, dims, classes)
    found = Ridge(moments_of(parts, labels, classes)).head(strength)
    expected = least_squares(parts, labels, classes, strength)
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.bias, expected.bias, rtol=1e-6, atol=1e-6)


def test_one_feature_and_two_classes_by_hand() -> None:
    """Z = (-1, -1, 1, 1), Y - 1/2 = -+1/2: the weight of class 1 is 1/2 / (1 + strength), here 1/4, over scale 2."""
    parts = [np.array([[1.0], [1.0], [5.0], [5.0]], np.float32)]
    head = Ridge(moments_of(parts, np.array([0, 0, 1, 1]), 2)).head(1.0)
    np.testing.assert_allclose(head.weight, [[-0.125], [0.125]])
    np.testing.assert_allclose(head.bias, [0.5 + 3 / 8, 0.5 - 3 / 8])
    assert head.accuracy(parts, np.array([0, 0, 1, 0])) == 0.75


def test_features_far_from_zero_lose_no_digits() -> None:
    parts, labels = made_up(1, 500, (6,), 3)
    moved = [part.astype(np.float64) + 1e6 for part in parts]
    near, far = (moments_of(some, labels, 3) for some in (parts, moved))  # type: ignore[arg-type]
    np.testing.assert_allclose(far.correlation, near.correlation, atol=1e-6)
    np.testing.assert_allclose(far.cross, near.cross, atol=1e-6)


def test_a_feature_that_never_changes_has_no_weight() -> None:
    parts, labels = made_up(2, 80, (3,), 2)
    parts.append(np.full((80, 1), 7.3, np.float32))
    head = Ridge(moments_of(parts, labels, 2)).head(1e-6)
    assert (head.weight[:, 3] == 0).all()
    assert np.isfinite(head.weight).all()


def test_the_same_backbone_twice_shares_its_weight() -> None:
    parts, labels = made_up(3, 100, (4,), 3)
    twice = Ridge(moments_of(parts * 2, labels, 3)).head(1e-2)
    np.testing.assert_allclose(twice.weight[:, :4], twice.weight[:, 4:], rtol=1e-6)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, labels = made_up(4, 100, (3, 2), 4)
    whole = moments_of(parts, labels, 4)
    monkeypatch.setattr(ridge_module, "_CHUNK_ROWS", 7)
    pieces = moments_of(parts, labels, 4)
    for name in ("mean", "scale", "correlation", "cross", "prior"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-9, atol=1e-12)
    head = Ridge(whole).head(0.1)
    features = np.concatenate(parts, axis=1)
    expected = np.mean((features @ head.weight.T + head.bias).argmax(axis=1) == labels)
    assert head.accuracy(parts, labels) == expected


def test_the_head_of_one_backbone_needs_no_second_pass() -> None:
    parts, labels = made_up(5, 90, (3, 5), 3)
    both = moments_of(parts, labels, 3)
    for columns, part in zip(columns_of_parts(parts), parts, strict=True):
        alone = Ridge(moments_of([part], labels, 3)).head(0.01)
        np.testing.assert_allclose(Ridge(both.columns(columns)).head(0.01).weight, alone.weight, rtol=1e-9, atol=1e-12)


def test_of_equal_strengths_the_strongest_is_kept() -> None:
    parts, labels = made_up(6, 50, (2,), 2)
    assert Ridge(moments_of(parts, labels, 2)).best(STRENGTHS, lambda head: 0.5).strength == STRENGTHS[0]


def test_without_a_device_the_node_does_what_least_squares_on_the_others_would() -> None:
    """The conditional mean in a weak ridge's head is the regression on the devices that are there."""
    parts, labels = made_up(7, 4000, (3, 4), 3)
    head = Ridge(moments_of(parts, labels, 3)).head(1e-9)
    joined = np.concatenate(parts, axis=1)
    fusion = Fusion(FusionHead((3, 4), head.weight, head.bias, statistics_of(joined)))
    alone = least_squares(parts[:1], labels, 3, 1e-9)
    expected = parts[0] @ alone.weight.T + alone.bias
    np.testing.assert_allclose(fusion.batch_logits(joined, 0b01), expected, atol=2e-3)  # the node's own small ridge


def on_a_line() -> tuple[list[npt.NDArray[np.float32]], Int64Array]:
    """Three classes beside each other, in two features that say the same."""
    places = np.linspace(-3, 3, 300, dtype=np.float32)[:, np.newaxis]
    return [places, 2 * places], np.repeat(np.arange(3), 100)


def test_logistic_regression_finds_the_middle_class_that_ridge_cannot() -> None:
    """Of a linear fit to 0 and 1 the middle class is nowhere the largest (Hastie et al., ESL, section 4.2)."""
    parts, labels = on_a_line()
    ridge = Ridge(moments_of(parts, labels, 3))
    begin = ridge.best(STRENGTHS, lambda head: head.accuracy(parts, labels))
    assert begin.validation_accuracy < 0.7
    found = fit_logistic(ridge, begin.head, (parts, labels), (parts, labels), torch.device("cpu"), no_progress)
    assert found.validation_accuracy > 0.97
    assert found.head.accuracy(parts, labels) == found.validation_accuracy


def test_logistic_regression_ends_where_the_slope_of_its_loss_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slope by hand, in float64: features times (p - y), plus the penalty's."""
    monkeypatch.setattr(logistic, "STRENGTHS", (0.01,))
    monkeypatch.setattr(logistic, "_STEPS", 60)
    monkeypatch.setattr(ridge_module, "_CHUNK_ROWS", 64)
    parts, labels = made_up(8, 300, (4, 3), 3)
    moments = moments_of(parts, labels, 3)
    ridge = Ridge(moments)
    head = fit_logistic(ridge, ridge.head(0.1), (parts, labels), (parts, labels), torch.device("cpu"), no_progress).head
    features = np.concatenate(parts, axis=1).astype(np.float64)
    logits = features @ head.weight.T + head.bias
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    error = (chances - np.eye(3)[labels]) / len(labels)
    standardised = (features - moments.mean) / moments.scale
    slope = standardised.T @ error + 0.01 * (head.weight * moments.scale).T
    assert np.abs(slope).max() < 1e-4
    assert np.abs(error.sum(axis=0)).max() < 1e-4


def test_logistic_regression_stops_trying_when_validation_falls() -> None:
    told = []
    parts, labels = on_a_line()
    ridge = Ridge(moments_of(parts, labels, 3))
    everything_wrong = (labels + 1) % 3
    fit_logistic(
        ridge,
        ridge.head(0.1),
        (parts, labels),
        (parts, everything_wrong),
        torch.device("cpu"),
        lambda stage, done, total, note="": told.append((done, total)),
    )
    assert told[-1] == (len(logistic.STRENGTHS), len(logistic.STRENGTHS))
    assert len(told) < len(logistic.STRENGTHS)
