"""How well the features of two devices agree, against the formula written out, and at what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.agreement import Comparison, ranks, rarities
from devit_contract.artefacts.head import FusionHead, FusionStatistics

DIMS = (5, 3, 4)
TOTAL = sum(DIMS)


@pytest.fixture(scope="module")
def head() -> FusionHead:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(6, TOTAL))
    statistics = FusionStatistics(rng.normal(size=TOTAL), mixing.T @ mixing + 0.2 * np.eye(TOTAL))
    return FusionHead(DIMS, np.ones((2, TOTAL)), np.zeros(2), statistics)


@pytest.fixture(scope="module")
def features(head: FusionHead) -> Float32Array:
    drawn = np.random.default_rng(2).multivariate_normal(head.statistics.mean, head.statistics.covariance, 400)
    return drawn.astype(np.float32)


def parts(features: Float32Array) -> dict[int, Float32Array]:
    return dict(enumerate(np.split(features, np.cumsum(DIMS)[:-1], axis=1)))


def test_the_agreement_is_the_cosine_of_the_formula(head: FusionHead, features: Float32Array) -> None:
    """By matrix square roots instead of Cholesky factors: whitening turns, which no cosine depends on."""
    covariance = head.statistics.covariance + np.eye(TOTAL) * 0.01 * np.trace(head.statistics.covariance) / TOTAL
    first, second = slice(0, 5), slice(5, 8)

    def whitener(own: slice) -> np.ndarray:  # type: ignore[type-arg]
        values, vectors = np.linalg.eigh(covariance[own, own])
        return np.asarray(vectors / np.sqrt(values) @ vectors.T)

    a, b = whitener(first), whitener(second)
    u, s, v = np.linalg.svd(a @ covariance[first, second] @ b, full_matrices=False)
    centred = features - head.statistics.mean
    left, right = s * (centred[:, first] @ a @ u), s * (centred[:, second] @ b @ v.T)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found = Comparison(head).of(parts(features))
    np.testing.assert_allclose(found.agreements[:, 0, 1], (left * right).sum(axis=1) / norms, atol=1e-4)
    distances = ((centred[:, first] @ a) ** 2).sum(axis=1) + ((centred[:, second] @ b) ** 2).sum(axis=1)
    only_two = Comparison(head).of({0: features[:, first], 1: features[:, second]})
    np.testing.assert_allclose(only_two.closeness, -distances, rtol=1e-3)


def test_some_devices_agree_as_they_do_among_all(head: FusionHead, features: Float32Array) -> None:
    comparison, given = Comparison(head), parts(features)
    among_all = comparison.of(given)
    pair = comparison.of({2: given[2], 0: given[0]})
    np.testing.assert_allclose(pair.agreements[:, 0, 1], among_all.agreements[:, 0, 2], atol=1e-5)
    np.testing.assert_allclose(among_all.agreements, among_all.agreements.swapaxes(1, 2), atol=1e-6)


def test_the_agreement_does_not_depend_on_how_long_features_are(head: FusionHead, features: Float32Array) -> None:
    mean = head.statistics.mean.astype(np.float32)
    comparison = Comparison(head)
    longer = comparison.of(parts(mean + 3 * (features - mean)))
    np.testing.assert_allclose(longer.agreements, comparison.of(parts(features)).agreements, atol=1e-3)


def test_features_of_another_image_agree_less(head: FusionHead, features: Float32Array) -> None:
    comparison, given = Comparison(head), parts(features)
    right = comparison.of(given).agreements[:, 0, 1]
    other = comparison.of(given | {1: np.roll(given[1], 1, axis=0)}).agreements[:, 0, 1]
    assert np.median(right) > 0.7 > 0.3 > np.median(other)


def test_a_feature_that_says_nothing_agrees_with_nobody(head: FusionHead, features: Float32Array) -> None:
    mean = head.statistics.mean[:5].astype(np.float32)
    found = Comparison(head).of(parts(features) | {0: np.broadcast_to(mean, (len(features), 5)).copy()})
    assert np.isfinite(found.agreements).all()


def test_a_rarity_is_never_below_the_share_that_ranks_as_low() -> None:
    values = np.sort(np.random.default_rng(3).normal(size=1000))
    kept, p = values[ranks(1000) - 1], rarities(1000)
    for found in np.random.default_rng(4).normal(size=500):
        assert p[np.searchsorted(kept, found, "right")] >= (np.count_nonzero(values <= found) + 1) / 1001 - 1e-12
    assert p[-1] == 1.0
