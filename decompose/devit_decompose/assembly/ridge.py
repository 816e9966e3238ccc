"""A linear head in closed form: ridge regression to one-hot targets, for any strength from one eigendecomposition.

The features are standardised and the targets centred, so that one strength means the same for every backbone::

    Z = (X - mean) / scale      W = (Z^T Z / n + strength I)^-1 Z^T (Y - prior) / n
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array, Float64Array, Int64Array

STRENGTHS = tuple(10.0**power for power in range(1, -7, -1))
"""Tried where none is given, from strong to weak."""
_CHUNK_ROWS = 8192

Parts = Sequence[Float32Array]
"""Features of each backbone, ``(n, dim)``, in memory or mapped from files; side by side they are ``(n, d)``."""


@dataclass(frozen=True)
class LinearHead:
    """Logits are ``weight @ features + bias``."""

    weight: Float64Array
    """Shape ``(K, d)``."""
    bias: Float64Array
    """Shape ``(K,)``."""

    def accuracy(self, parts: Parts, labels: Int64Array) -> float:
        """Share of rows, in 0 to 1, whose largest logit is the label's."""
        right = (
            int(np.sum((features @ self.weight.T + self.bias).argmax(axis=1) == labels[rows]))
            for rows, features in chunks(parts)
        )
        return sum(right) / len(labels)


@dataclass(frozen=True)
class Fitted:
    """A head, and how it was chosen."""

    head: LinearHead
    strength: float
    validation_accuracy: float
    """In 0 to 1."""


@dataclass(frozen=True)
class Moments:
    """All that ridge regression needs to know of the training features."""

    mean: Float64Array
    """Shape ``(d,)``."""
    scale: Float64Array
    """Standard deviations ``(d,)``; 1 for features that never change."""
    correlation: Float64Array
    """``Z^T Z / n``, shape ``(d, d)``."""
    cross: Float64Array
    """``Z^T (Y - prior) / n``, shape ``(d, K)``."""
    prior: Float64Array
    """Share of each class, ``(K,)``."""

    def columns(self, chosen: slice) -> Moments:
        """Keep neighbouring features only, e.g. those of one backbone."""
        square = self.correlation[chosen, chosen]
        return Moments(self.mean[chosen], self.scale[chosen], square, self.cross[chosen], self.prior)


class Ridge:
    """Ridge regression for any strength."""

    def __init__(self, moments: Moments) -> None:
        """Do the one eigendecomposition."""
        self.moments = moments
        values, self.axes = np.linalg.eigh(moments.correlation)
        self.values: Float64Array = np.maximum(values, 0.0)
        """Eigenvalues of the correlation, ``(d,)``; ``axes`` are the eigenvectors, ``(d, d)``, one a column."""
        self._cross = self.axes.T @ moments.cross

    def head(self, strength: float) -> LinearHead:
        """Solve for one strength, above 0."""
        of_standardised = self.axes @ (self._cross / (self.values + strength)[:, np.newaxis])  # (d, K)
        weight = (of_standardised / self.moments.scale[:, np.newaxis]).T
        return LinearHead(weight, self.moments.prior - weight @ self.moments.mean)

    def best(self, strengths: Sequence[float], score: Callable[[LinearHead], float]) -> Fitted:
        """Choose the strength whose head has the highest score; the first of equals."""
        heads = ((strength, self.head(strength)) for strength in strengths)
        fitted = (Fitted(head, strength, score(head)) for strength, head in heads)
        return max(fitted, key=lambda one: one.validation_accuracy)


def moments_of(parts: Parts, labels: Int64Array, classes: int) -> Moments:
    """Go once through the training features ``(n, d)`` with labels ``(n,)``, in float64."""
    width, count = sum(part.shape[1] for part in parts), len(labels)
    total, sum_of_targets = np.zeros(width), np.bincount(labels, minlength=classes).astype(np.float64)
    squares, products = np.zeros((width, width)), np.zeros((width, classes))
    shift: Float64Array | None = None
    for rows, features in chunks(parts):
        exact = features.astype(np.float64)
        if shift is None:
            shift = exact.mean(axis=0)  # near the mean, so that the differences below stay exact
        exact -= shift
        total += exact.sum(axis=0)
        squares += exact.T @ exact
        order = np.argsort(labels[rows], kind="stable")  # sums by class, without a matrix of one-hot rows
        present, starts = np.unique(labels[rows][order], return_index=True)
        products[:, present] += np.add.reduceat(exact[order], starts, axis=0).T
    if shift is None:
        raise ValueError("no images to learn from")
    prior, rest = sum_of_targets / count, total / count
    covariance = squares / count - np.outer(rest, rest)
    cross = products / count - np.outer(rest, prior)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    is_alive = deviation > 1e-6 * (np.abs(shift + rest) + deviation.max(initial=0.0))  # the rest is rounding
    scale = np.where(is_alive, deviation, 1.0)
    alive = is_alive.astype(np.float64)
    return Moments(
        mean=shift + rest,
        scale=scale,
        correlation=covariance * np.outer(alive / scale, alive / scale),
        cross=cross * (alive / scale)[:, np.newaxis],
        prior=prior,
    )


def chunks(parts: Parts) -> Iterator[tuple[slice, Float32Array]]:
    """Go through features some thousand rows at a time: the rows, and all backbones' features ``(rows, d)``."""
    count = len(parts[0])
    for start in range(0, count, _CHUNK_ROWS):
        rows = slice(start, min(start + _CHUNK_ROWS, count))
        yield rows, np.concatenate([np.asarray(part[rows]) for part in parts], axis=1)


def columns_of_parts(parts: Parts) -> list[slice]:
    """Columns of each backbone among those of all, side by side."""
    ends: npt.NDArray[np.int64] = np.cumsum([part.shape[1] for part in parts])
    return [slice(int(end) - part.shape[1], int(end)) for part, end in zip(parts, ends, strict=True)]
