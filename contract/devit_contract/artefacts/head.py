"""The fusion head: from the features of the devices that answered to logits, with the missing ones predicted.

Fusion is linear, ``logits = b + sum_i W_i f_i``. The features of a missing device are replaced by their linear
prediction from those present (the conditional mean of a joint Gaussian with the training split's mean and
covariance). That is linear again, so each of the ``2^N - 1`` subsets S of devices has one matrix and one bias::

    A   = C_mp (C_pp + r I)^-1              m: columns of missing devices, p: columns of present ones
        = -(M_mm)^-1 M_mp                   M = (C + r I)^-1, cheaper where few are missing
    W_S = W_p + W_m A                       b_S = b + W_m (mu_m - A mu_p)
    U_S = W_m (C_mm - A C_pm) W_m^T         covariance of the logits' error, (K, K)

Training puts the same prediction in the place of a device that it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array, Float64Array
from devit_contract.artefacts.files import Tensors, read_tensors, write_tensors
from devit_contract.errors import ManifestError

if TYPE_CHECKING:
    from concurrent.futures import Future

Columns = npt.NDArray[np.intp]
RIDGE = 1e-4
"""r above, as a share of the mean feature variance: keeps the inverse defined where features are collinear."""

_MAX_INVERTED = 4096
"""Features of the largest cell whose covariance is inverted: about 5 s of one core."""
_MAX_KEPT_BYTES, _MAX_ADDED_BYTES = 160 << 20, 48 << 20
"""Of all heads but the full one, and of those beyond what is prepared: clients choose them. At four devices of 384
features and 1,000 classes, all 14 take 43 MB."""
_QUICK_MACS = 70_000_000
"""Multiply-accumulates of a head that is computed while its first frame waits: less than 20 ms of one core."""
_LARGEST = float(np.finfo(np.float32).max)
_ROOM = 4.0
"""How much longer than in the validation part a right feature may be: images differ more in use than in a data set."""
_ROOM_ABOVE_MEAN = 10.0
"""The same for the root mean square, which says nothing about single images."""
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
    norms: tuple[float, ...] | None = None
    """Of each device, the largest Euclidean norm of a validation image's feature; absent in older bundles."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit together, and numbers that no answer could be made from."""
        total = sum(self.dims)
        classes = self.bias.shape[0] if self.bias.ndim == 1 else -1
        found = (self.weight.shape, self.bias.shape, self.statistics.mean.shape, self.statistics.covariance.shape)
        expected = ((classes, total), (classes,), (total,), (total, total))
        if found != expected or classes < 1 or min(self.dims, default=0) < 1:
            raise ManifestError(f"fusion head: expected shapes {expected} for dims {self.dims}, found {found}: {_HINT}")
        tensors = {"weight": self.weight, "bias": self.bias, "mean": self.statistics.mean}
        for name, tensor in (tensors | {"covariance": self.statistics.covariance}).items():
            if not -_LARGEST <= tensor.min() <= tensor.max() <= _LARGEST:  # nor is NaN
                raise ManifestError(f"fusion head: expected finite numbers in {name}, found others: {_HINT}")
        if self.norms is not None and not (
            len(self.norms) == len(self.dims) and all(0.0 <= norm < math.inf for norm in self.norms)
        ):
            raise ManifestError(
                f"fusion head: expected a norm for each of dims {self.dims}, found {self.norms}: {_HINT}"
            )

    @property
    def all_devices(self) -> int:
        """The mask of all devices: bit i stands for device i."""
        return (1 << len(self.dims)) - 1

    def plausible_norms(self) -> tuple[float, ...]:
        """Tell for each device up to which Euclidean norm its features may be right.

        It is a multiple of the largest norm in the validation part; without that, of the root mean square norm in the
        training part, which some images exceed.
        """
        if self.norms is not None:
            return tuple(_ROOM * norm for norm in self.norms)
        squares = self.statistics.mean**2 + np.diag(self.statistics.covariance)
        ends = np.cumsum(self.dims)[:-1]
        return tuple(_ROOM_ABOVE_MEAN * math.sqrt(max(0.0, part.sum())) for part in np.split(squares, ends))

    def subset(self, mask: int, inverse: Float64Array | None = None) -> SubsetHead:
        """Compute the head for the devices whose bits are set in ``mask`` (at least one).

        ``inverse`` is M above, used where fewer features are missing than present; the result is the same.
        """
        if mask == self.all_devices:
            return SubsetHead(self.weight.astype(np.float32), self.bias.astype(np.float32))
        present, missing = columns_of(self.dims, mask)
        if inverse is not None and len(missing) < len(present):
            predict = -np.linalg.solve(inverse[np.ix_(missing, missing)], inverse[np.ix_(missing, present)])
        else:
            predict = prediction(self.statistics.covariance, present, missing)
        mean, weight_missing = self.statistics.mean, self.weight[:, missing]
        return SubsetHead(
            weight=(self.weight[:, present] + weight_missing @ predict).astype(np.float32),
            bias=(self.bias + weight_missing @ (mean[missing] - predict @ mean[present])).astype(np.float32),
        )

    def save(self, path: Path) -> None:
        """Write ``fusion.safetensors``: weight, bias, mean, covariance, norms (float32) and dims."""
        tensors: Tensors = {
            "weight": self.weight.astype(np.float32),
            "bias": self.bias.astype(np.float32),
            "mean": self.statistics.mean.astype(np.float32),
            "covariance": self.statistics.covariance.astype(np.float32),
            "dims": np.asarray(self.dims, np.int64),
        }
        if self.norms is not None:
            tensors["norms"] = np.asarray(self.norms, np.float32)
        write_tensors(path, tensors)

    @classmethod
    def load(
        cls, path: Path, *, sha256: str = "", dims: tuple[int, ...] | None = None, classes: int | None = None
    ) -> FusionHead:
        """Read ``fusion.safetensors``; digest, feature dimensions and number of classes must be those given, if any.

        Raises:
            InputError: The file cannot be read.
            ManifestError: It has another digest, a tensor is missing or has another shape, or the head does not fit.
        """
        tensors = read_tensors(path, _HINT, sha256=sha256)
        try:
            head = cls(
                dims=_listed(tensors, "dims", "iu"),
                weight=tensors["weight"].astype(np.float64),
                bias=tensors["bias"].astype(np.float64),
                statistics=FusionStatistics(
                    tensors["mean"].astype(np.float64), tensors["covariance"].astype(np.float64)
                ),
                norms=_listed(tensors, "norms", "f") if "norms" in tensors else None,
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

    The full head and that of each single missing device are computed at start, those of other subsets when they are
    first needed. Where that takes long, a thread computes the head, and frames are fused by predicting the missing
    features of each until it is there. A cell whose heads would not fit in memory prepares the full head only.
    """

    def __init__(self, head: FusionHead) -> None:
        """Compute the heads that a cell needs most.

        Raises:
            ManifestError: They cannot be computed from these statistics.
        """
        self.head = head
        self._inverse: Float64Array | None = None
        self._kept: dict[int, SubsetHead] = {}  # least recently used first
        from concurrent.futures import ThreadPoolExecutor  # devices have no use for it

        self._worker = ThreadPoolExecutor(1, "fusion-head")  # its thread starts with its first task
        self._coming: tuple[int, Future[SubsetHead]] | None = None
        self._limit_bytes = _MAX_KEPT_BYTES
        self.computed = 0
        """Heads of subsets that were computed since start, of which :attr:`kept` are kept."""
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # told below, in one line
                self._full = head.subset(head.all_devices)
                self._prepare()
        except np.linalg.LinAlgError as err:
            raise ManifestError(
                f"fusion head: expected a covariance matrix, found another one ({err}): {_HINT}"
            ) from err
        for subset in (self._full, *self._kept.values()):
            if not (np.isfinite(subset.weight).all() and np.isfinite(subset.bias).all()):
                raise ManifestError(f"fusion head: expected finite heads of all subsets, found others: {_HINT}")
        self._limit_bytes = min(_MAX_KEPT_BYTES, self.kept_bytes + _MAX_ADDED_BYTES)

    @property
    def kept(self) -> int:
        """How many heads of subsets are kept."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """What they take of memory."""
        return sum(head.weight.nbytes for head in self._kept.values())

    @property
    def coming(self) -> int:
        """The subset whose head the thread computes, or has computed last; 0 for none."""
        return 0 if self._coming is None else self._coming[0]

    def prepare(self, mask: int) -> bool:
        """Tell whether :meth:`logits` takes 20 ms at most; if not, have the thread compute the head when it is free."""
        if self._find(mask) is not None or min(self._macs(mask), self._fill_macs(mask)) <= _QUICK_MACS:
            return True
        self._begin(mask)
        return False

    def logits(self, features: Mapping[int, Float32Array]) -> Float32Array:
        """Fuse one frame, at least one feature ``(dim,)`` by device index, into logits ``(K,)``."""
        devices = sorted(features)
        mask = mask_of(devices)
        joined = np.concatenate([features[device] for device in devices])
        subset = self._find(mask)
        if subset is None and self._macs(mask) <= _QUICK_MACS:
            subset = self._keep(mask)
        if subset is None:
            self._begin(mask)
            subset, joined = self._full, self._filled(joined, mask)
        logits: Float32Array = subset.weight.dot(joined)  # sooner than @ for a single vector
        logits += subset.bias
        return logits

    def batch_logits(self, features: Float32Array, mask: int) -> Float32Array:
        """Fuse many frames of the same subset of devices into logits ``(n, K)``.

        ``features`` has all devices' side by side, shape ``(n, sum of dims)``; the missing ones are not read.
        """
        present, _ = columns_of(self.head.dims, mask)
        subset = self._find(mask) or self._keep(mask)
        return np.asarray(features[:, present] @ subset.weight.T + subset.bias, np.float32)

    def _prepare(self) -> None:
        head, count = self.head, len(self.head.dims)
        if count > 1 and sum(head.dims) <= _MAX_INVERTED and count * self._full.weight.nbytes <= _MAX_KEPT_BYTES:
            every = np.arange(sum(head.dims))
            self._inverse = np.asarray(np.linalg.inv(_regular(head.statistics.covariance, every)), np.float64)
            for device in range(count):
                self._keep(head.all_devices ^ 1 << device)

    def _begin(self, mask: int) -> None:
        if self._coming is None:
            self._coming = mask, self._worker.submit(self.head.subset, mask, self._inverse)

    def _find(self, mask: int) -> SubsetHead | None:
        if mask == self.head.all_devices:
            return self._full
        if self._coming is not None and self._coming[1].done():
            (done, future), self._coming = self._coming, None
            self._keep(done, future.result())
        if mask in self._kept:
            self._kept[mask] = self._kept.pop(mask)
        return self._kept.get(mask)

    def _keep(self, mask: int, computed: SubsetHead | None = None) -> SubsetHead:
        subset = self._kept[mask] = computed or self.head.subset(mask, self._inverse)
        self.computed += 1
        kept_bytes = self.kept_bytes
        while kept_bytes > self._limit_bytes and len(self._kept) > 1:
            kept_bytes -= self._kept.pop(next(iter(self._kept))).weight.nbytes
        return subset

    def _macs(self, mask: int) -> int:
        """Estimate what computing a head costs: a linear system, and the product with the weights."""
        present, missing = map(len, columns_of(self.head.dims, mask))
        solved = present if self._inverse is None else min(present, missing)
        return (solved + len(self.head.bias)) * present * missing

    def _fill_macs(self, mask: int) -> int:
        """Estimate what predicting the missing features of a frame costs."""
        present, missing = map(len, columns_of(self.head.dims, mask))
        solved = present if self._inverse is None else min(present, missing)
        return solved**3 // 3 + present * missing

    def _filled(self, joined: Float32Array, mask: int) -> Float32Array:
        """Predict the missing features of one frame, shape ``(sum of dims,)``, by one small linear system."""
        present, missing = columns_of(self.head.dims, mask)
        mean, covariance, inverse = self.head.statistics.mean, self.head.statistics.covariance, self._inverse
        whole, centred = mean.copy(), joined - mean[present]
        whole[present] = joined
        if inverse is not None and len(missing) < len(present):
            pull = inverse[np.ix_(missing, present)] @ centred
            whole[missing] -= np.linalg.solve(inverse[np.ix_(missing, missing)], pull)
        else:
            solved = np.linalg.solve(_regular(covariance, present), centred)
            whole[missing] += covariance[np.ix_(missing, present)] @ solved
        return whole.astype(np.float32)


def error_covariance(head: FusionHead, mask: int) -> Float64Array:
    """Compute how uncertain the logits of a subset are, shape ``(K, K)``; zeros where no device is missing."""
    present, missing = columns_of(head.dims, mask)
    covariance, weight_missing = head.statistics.covariance, head.weight[:, missing]
    predict = prediction(covariance, present, missing)
    left_over = covariance[np.ix_(missing, missing)] - predict @ covariance[np.ix_(present, missing)]
    uncertain: Float64Array = weight_missing @ left_over @ weight_missing.T
    return uncertain


def mask_of(devices: Iterable[int]) -> int:
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


def columns_of(dims: tuple[int, ...], mask: int) -> tuple[Columns, Columns]:
    """Split the columns of the concatenated features into those of present and of missing devices.

    >>> columns_of((2, 1), 0b01)
    (array([0, 1]), array([2]))
    """
    if not 0 < mask < 1 << len(dims):
        raise ValueError(f"mask {mask:#b} names no device, or more than the {len(dims)} there are")
    is_present = np.repeat([bool(mask >> device & 1) for device in range(len(dims))], dims)
    return np.flatnonzero(is_present), np.flatnonzero(~is_present)


def prediction(covariance: Float64Array, present: Columns, missing: Columns) -> Float64Array:
    """Compute A, ``(missing, present)``, which predicts centred missing features from centred present ones."""
    solved = np.linalg.solve(_regular(covariance, present), covariance[np.ix_(present, missing)])
    return np.asarray(solved.T, np.float64)


def _listed(tensors: Tensors, name: str, kinds: str) -> tuple[Any, ...]:
    """Take a tensor as plain numbers; ``kinds`` are numpy's letters for the types that it may have."""
    tensor = tensors[name]
    if tensor.ndim != 1 or tensor.dtype.kind not in kinds:
        raise ManifestError(f"fusion head: expected {name} as a list, found {tensor.dtype} {tensor.shape}: {_HINT}")
    return tuple(tensor.tolist())


def _regular(covariance: Float64Array, columns: Columns) -> Float64Array:
    """Copy a block of the covariance, with r on its diagonal."""
    block = covariance[np.ix_(columns, columns)]
    ridge = max(RIDGE * float(np.trace(covariance)) / covariance.shape[0], np.finfo(np.float64).tiny)
    block.flat[:: len(columns) + 1] += ridge
    return block
