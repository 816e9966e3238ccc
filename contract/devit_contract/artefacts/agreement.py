"""How well the features of two devices agree on the image they saw, and how usual each of them is.

The training part's covariance tells which directions of two devices' features go together. With whitened features
``w = L^-1 (f - mean)``, ``C = L L^T`` (ridged), a singular value decomposition of ``L_i^-1 C_ij L_j^-T`` gives the
canonical directions ``u, v`` and their correlations ``s``. The agreement is the cosine of what both devices say in
those directions, each counted by its correlation::

    a = s (u^T w_i)    b = s (v^T w_j)    agreement = a.b / |a| |b|

It is near 1 for features of the same image and near 0 for others, whatever their length: a change of light or a
recompressed image, which all devices see, moves both. Its rank among validation images says how rare it is. So does
the rank of the features' squared distance from the mean, the sum of ``|w_i|^2``: how unlike the training images it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from devit_contract.arrays import Float32Array, Float64Array, Int64Array
from devit_contract.artefacts.head import FusionHead, columns_of, devices_of

_MOST_DIRECTIONS = 32
"""Of a pair of devices: more carry little that both see, ten for ten classes."""
_RIDGE = 0.01
"""Of the mean feature variance: directions of smaller variance are noise."""
_RANKS = 128
"""Values kept of a distribution, from the rarest on."""
_LEAST_SQUARE = 1e-12


@dataclass(frozen=True)
class Usual:
    """What is usual: the quantiles of the validation images, at the ranks of :func:`ranks`."""

    images: int
    """In the validation part."""
    agreements: Float32Array
    """Of each pair of devices, in order of ``itertools.combinations``; ``(pairs, ranks)``, rising."""
    closeness: Mapping[int, Float32Array]
    """By mask of devices, the closeness of their features to the training part's mean; each ``(ranks,)``, rising."""


class Compared(NamedTuple):
    """Frames of the same devices, compared."""

    closeness: Float32Array
    """Minus the squared distances of all features from their means, ``(n,)``."""
    agreements: Float32Array
    """Of each device with each other, ``(n, devices, devices)``."""
    whitened: Sequence[Float32Array]
    """Of each device, ``(n, dim)``."""
    shared: Float32Array
    """What each device says to each other, of length 1 or 0: ``(n, devices, devices, directions)``."""

    def frame(self, number: int) -> Compared:
        """Give one of the frames, as if it had been compared alone."""
        one = slice(number, number + 1)
        whitened = [own[one] for own in self.whitened]
        return Compared(self.closeness[one], self.agreements[one], whitened, self.shared[one])


class Comparison:
    """Compares the features of the devices of one cell."""

    def __init__(self, head: FusionHead) -> None:
        """Compute the directions of all pairs."""
        self._dims, count = head.dims, len(head.dims)
        self.macs = 0
        """Multiply-accumulates of a frame with all devices."""
        directions = min(_MOST_DIRECTIONS, *head.dims)
        columns = [columns_of(head.dims, 1 << device)[0] for device in range(count)]
        covariance = head.statistics.covariance
        ridged = covariance + np.eye(len(covariance)) * max(_RIDGE * np.trace(covariance) / len(covariance), 1e-30)
        whiten = [np.linalg.inv(np.linalg.cholesky(ridged[np.ix_(own, own)])) for own in columns]
        shared = np.zeros((count, count, directions, max(head.dims)))  # (of, with, direction, feature)
        for i, j in combinations(range(count), 2):
            between = whiten[i] @ covariance[np.ix_(columns[i], columns[j])] @ whiten[j].T
            left, correlations, right = np.linalg.svd(between, full_matrices=False)
            scale = correlations[:directions, None]
            shared[i, j, :, : head.dims[i]] = scale * left.T[:directions] @ whiten[i]
            shared[j, i, :, : head.dims[j]] = scale * right[:directions] @ whiten[j]
        self._shape = count, directions
        self._means: list[Float32Array] = []  # of each device, mapped
        self._maps: list[Float32Array] = []  # of each device, (dim, dim + devices * directions)
        self._whiten = [np.ascontiguousarray(own, np.float32) for own in whiten]  # of each device, (dim, dim)
        for device, (dim, own) in enumerate(zip(head.dims, whiten, strict=True)):
            rows = np.concatenate([own, shared[device, :, :, :dim].reshape(-1, dim)])
            self._maps.append(np.ascontiguousarray(rows.T, np.float32))
            self._means.append((rows @ head.statistics.mean[columns[device]]).astype(np.float32))
            self.macs += rows.size

    def closeness(self, features: Mapping[int, Float32Array]) -> float:
        """Give the closeness of one frame's features ``(dim,)``, by device index: far quicker than :meth:`of`."""
        squares = 0.0
        for device, feature in features.items():
            whitened = self._whiten[device].dot(feature) - self._means[device][: self._dims[device]]
            squares += float(whitened.dot(whitened))
        return -squares

    def of(self, features: Mapping[int, Float32Array]) -> Compared:
        """Compare features, each ``(n, dim)``, by device index; those of the result are in device order."""
        devices = sorted(features)
        whitened: list[Float32Array] = []
        said: list[Float32Array] = []
        for device in devices:
            mapped = np.asarray(features[device] @ self._maps[device] - self._means[device], np.float32)
            whitened.append(mapped[:, : self._dims[device]])
            said.append(mapped[:, self._dims[device] :].reshape(len(mapped), *self._shape))
        shared = np.stack(said, axis=1)  # (n, of, with, direction)
        if len(devices) < len(self._dims):
            shared = shared[:, :, devices]
        squares = np.einsum("nijr,nijr->nij", shared, shared)
        shared /= np.sqrt(np.maximum(squares, _LEAST_SQUARE))[..., None]
        return Compared(
            -self._distances(whitened).sum(axis=0),
            np.einsum("nijr,njir->nij", shared, shared),
            whitened,
            shared,
        )

    def usual(self, features: Float32Array, masks: Sequence[int]) -> Usual:
        """Measure what is usual, of these subsets, from the validation part's features ``(n, sum of dims)``."""
        parts = np.split(features, np.cumsum(self._dims)[:-1], axis=1)
        compared = self.of(dict(enumerate(parts)))
        first, second = np.triu_indices(len(self._dims), 1)
        kept = ranks(len(features)) - 1
        distances = self._distances(compared.whitened)
        return Usual(
            len(features),
            np.sort(compared.agreements[:, first, second], axis=0)[kept].T.copy(),
            {mask: np.sort(-distances[devices_of(mask)].sum(axis=0))[kept] for mask in masks},
        )

    @staticmethod
    def _distances(whitened: Sequence[Float32Array]) -> Float32Array:
        """Square the distances from the mean, ``(devices, n)``."""
        return np.stack([(own * own).sum(axis=1) for own in whitened])


def ranks(images: int) -> Int64Array:
    """List the ranks at which a distribution over so many images is kept: the lowest all, then fewer and fewer.

    >>> ranks(5).tolist()
    [1, 2, 3, 5]
    """
    return np.unique(np.geomspace(1, images, min(_RANKS, images)).round().astype(np.int64))


def rarities(images: int) -> Float64Array:
    """Give the p value of a value that is not below ``m`` of the kept ones, for each ``m``.

    It is at least the share of values that rank as low, that value included: never too small.

    >>> rarities(4).tolist()
    [0.2, 0.4, 0.6, 0.8, 1.0]
    """
    return np.append(ranks(images), images + 1) / (images + 1)
