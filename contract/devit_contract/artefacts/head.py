"""The fusion head: from the features of the devices that answered to logits, with the missing ones predicted.

Fusion is linear, ``logits = b + sum_i W_i f_i``. The features of a missing device are replaced by their linear
prediction from those present (the conditional mean of a joint Gaussian with the training split's mean and
covariance). That is linear again, so each of the ``2^N - 1`` subsets S of devices has one matrix and one bias::

    A   = C_mp (C_pp + r I)^-1              m: columns of missing devices, p: columns of present ones
    W_S = W_p + W_m A                       b_S = b + W_m (mu_m - A mu_p)
    U_S = W_m (C_mm - A C_pm) W_m^T         covariance of the logits' error, (K, K)

Training puts the same prediction into the place of a device that it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array, Float64Array
from devit_contract.artefacts.files import Tensors, read_tensors, write_tensors
from devit_contract.errors import ManifestError

RIDGE = 1e-4
"""r above, as a share of the mean feature variance: keeps the inverse defined where features are collinear."""

_MAX_PREPARED = 10
_MAX_KEPT = 1024
_HINT = "make the bundle again with devit export"


@dataclass(frozen=True)
class FusionStatistics:
    """Mean and covariance of the concatenated features over the training split."""

    mean: Float64Array
    """Shape ``(sum of dims,)``."""
    covariance: Float64Array
    """Shape ``(sum of dims, sum of dims)``."""


@dataclass(frozen=True)
class SubsetHead:
    """The fusion of one subset of devices."""

    weight: Float32Array
    """Shape ``(K, sum of the dims of the present devices)``, columns in device order."""
    bias: Float32Array
    """Shape ``(K,)``."""
    error_covariance: Float32Array
    """Shape ``(K, K)``: how uncertain the logits are for want of the missing features; zeros where none is missing."""


@dataclass(frozen=True)
class FusionHead:
    """The linear head over all devices, with what is needed to do without some of them."""

    dims: tuple[int, ...]
    """Feature dimension of each device, in device order."""
    weight: Float64Array
    """Shape ``(K, sum of dims)``."""
    bias: Float64Array
    """Shape ``(K,)``."""
    statistics: FusionStatistics

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit together."""
        total = sum(self.dims)
        classes = self.bias.shape[0] if self.bias.ndim == 1 else -1
        found = (self.weight.shape, self.bias.shape, self.statistics.mean.shape, self.statistics.covariance.shape)
        expected = ((classes, total), (classes,), (total,), (total, total))
        if found != expected or not self.dims:
            raise ManifestError(f"fusion head: expected shapes {expected} for dims {self.dims}, found {found}: {_HINT}")

    @property
    def everyone(self) -> int:
        """The mask of all devices: bit i stands for device i."""
        return (1 << len(self.dims)) - 1

    def subset(self, mask: int) -> SubsetHead:
        """Compute the head for the devices whose bits are set in ``mask`` (at least one)."""
        if mask == self.everyone:
            classes = len(self.bias)
            nothing = np.zeros((classes, classes), np.float32)
            return SubsetHead(self.weight.astype(np.float32), self.bias.astype(np.float32), nothing)
        present, missing = columns_of(self.dims, mask)
        weight_missing = self.weight[:, missing]
        predict = prediction(self.statistics.covariance, present, missing)
        mean = self.statistics.mean
        covariance = self.statistics.covariance
        left_over = covariance[np.ix_(missing, missing)] - predict @ covariance[np.ix_(present, missing)]
        return SubsetHead(
            weight=(self.weight[:, present] + weight_missing @ predict).astype(np.float32),
            bias=(self.bias + weight_missing @ (mean[missing] - predict @ mean[present])).astype(np.float32),
            error_covariance=(weight_missing @ left_over @ weight_missing.T).astype(np.float32),
        )

    def save(self, path: Path) -> None:
        """Write ``fusion.safetensors``: weight, bias, mean, covariance (float32) and dims."""
        tensors: Tensors = {
            "weight": self.weight.astype(np.float32),
            "bias": self.bias.astype(np.float32),
            "mean": self.statistics.mean.astype(np.float32),
            "covariance": self.statistics.covariance.astype(np.float32),
            "dims": np.asarray(self.dims, np.int64),
        }
        write_tensors(path, tensors)

    @classmethod
    def load(
        cls, path: Path, *, sha256: str = "", dims: tuple[int, ...] | None = None, classes: int | None = None
    ) -> FusionHead:
        """Read ``fusion.safetensors``.

        Args:
            path: The file.
            sha256: Digest that the bytes read must have; empty where none is known.
            dims: Feature dimensions that the head must have, if given.
            classes: Number of classes that it must have, if given.

        Raises:
            InputError: The file cannot be read.
            ManifestError: It has another digest, a tensor is missing or has another shape, or the head does not fit.
        """
        tensors = read_tensors(path, _HINT, sha256=sha256)
        try:
            head = cls(
                dims=tuple(int(dim) for dim in tensors["dims"]),
                weight=tensors["weight"].astype(np.float64),
                bias=tensors["bias"].astype(np.float64),
                statistics=FusionStatistics(
                    tensors["mean"].astype(np.float64), tensors["covariance"].astype(np.float64)
                ),
            )
        except KeyError as err:
            raise ManifestError(f"{path}: expected a tensor {err}, found {sorted(tensors)}: {_HINT}") from err
        except ManifestError as err:
            raise ManifestError(f"{path}: {err}") from err
        found = (head.dims, len(head.bias))
        expected = (head.dims if dims is None else dims, len(head.bias) if classes is None else classes)
        if found != expected:
            raise ManifestError(f"{path}: expected feature dims and classes {expected}, found {found}: {_HINT}")
        return head


class Fusion:
    """The heads of subsets, ready to be used frame by frame.

    Up to ten devices, all ``2^N - 1`` are computed at start. Larger cells compute the full one, and each other one when
    it is first needed, which holds that frame up; the latest thousand are kept.
    """

    def __init__(self, head: FusionHead) -> None:
        """Compute the matrices once."""
        self.head = head
        prepared = range(1, head.everyone + 1) if len(head.dims) <= _MAX_PREPARED else (head.everyone,)
        self._subsets = {mask: head.subset(mask) for mask in prepared}

    def logits(self, features: Mapping[int, Float32Array]) -> Float32Array:
        """Fuse one frame.

        Args:
            features: Device index to its feature, shape ``(dim,)``; at least one.

        Returns:
            Logits, shape ``(K,)``.
        """
        devices = sorted(features)
        subset = self._subset(mask_of(devices))
        joined = np.concatenate([features[device] for device in devices])
        return np.asarray(subset.weight @ joined + subset.bias, np.float32)

    def batch_logits(self, features: Float32Array, mask: int) -> Float32Array:
        """Fuse many frames of the same subset.

        Args:
            features: All devices' features side by side, shape ``(n, sum of dims)``; the missing ones are not read.
            mask: The devices present.

        Returns:
            Logits, shape ``(n, K)``.
        """
        present, _ = columns_of(self.head.dims, mask)
        subset = self._subset(mask)
        return np.asarray(features[:, present] @ subset.weight.T + subset.bias, np.float32)

    def _subset(self, mask: int) -> SubsetHead:
        found = self._subsets.get(mask)
        if found is None:
            if len(self._subsets) >= _MAX_KEPT:
                oldest = next(other for other in self._subsets if other != self.head.everyone)
                del self._subsets[oldest]
            found = self._subsets[mask] = self.head.subset(mask)
        return found


def mask_of(devices: list[int]) -> int:
    """Set bit i for each device i.

    >>> mask_of([0, 2])
    5
    """
    mask = 0
    for device in devices:
        mask |= 1 << device
    return mask


def devices_of(mask: int) -> list[int]:
    """List the devices of a mask, in order.

    >>> devices_of(5)
    [0, 2]
    """
    return [device for device in range(mask.bit_length()) if mask >> device & 1]


def columns_of(dims: tuple[int, ...], mask: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Split the columns of the concatenated features into those of present and of missing devices.

    >>> columns_of((2, 1), 0b01)
    (array([0, 1]), array([2]))
    """
    if not 0 < mask < 1 << len(dims):
        raise ValueError(f"mask {mask:#b} names no device, or more than the {len(dims)} there are")
    is_present = np.repeat([bool(mask >> device & 1) for device in range(len(dims))], dims)
    return np.flatnonzero(is_present), np.flatnonzero(~is_present)


def prediction(covariance: Float64Array, present: npt.NDArray[np.intp], missing: npt.NDArray[np.intp]) -> Float64Array:
    """Compute A, the matrix that predicts centred missing features from centred present ones.

    Returns:
        Shape ``(missing, present)``.
    """
    present_block = covariance[np.ix_(present, present)]
    ridge = max(RIDGE * float(np.trace(covariance)) / covariance.shape[0], np.finfo(np.float64).tiny)
    solved: Float64Array = np.linalg.solve(
        present_block + ridge * np.eye(len(present)), covariance[np.ix_(present, missing)]
    )
    return solved.T
