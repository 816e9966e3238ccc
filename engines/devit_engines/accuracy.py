"""The accuracy check: does the engine on this very device still compute what was trained?

The golden images of the bundle go through the engine; its outputs are compared with the reference features, and the
answers after fusion with the reference answers. An engine that fails is never stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.files import Tensors
from devit_contract.artefacts.manifest import Bundle
from devit_contract.binomial import upper_bound
from devit_contract.errors import EngineError, ManifestError
from devit_engines.engine import CheckedEngine, Engine, ModelRef

BATCH = 16
"""Golden images per call."""
ENOUGH_IMAGES = 256
"""If none of these flips, at most 1.2 % do (95 %); fewer are noted in ``engine.json``, and told by ``devit build``."""
SPOT_IMAGES = 16
"""Golden images that an engine computes whenever it is loaded."""
_COSINE_MIN = 0.995
_COSINE_MEDIAN = 0.999
_RELATIVE_L2 = 0.03
_HINT = "make the bundle again with devit export"


class AccuracyResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures of one engine over the golden images; kept in ``engine.json``."""

    images: int
    non_finite: int
    """Output numbers that are NaN or infinite; where there are any, the other figures are NaN."""
    cosine_min: float
    """Smallest cosine between an image's output and its reference, the reference's mean removed from both."""
    cosine_median: float
    relative_l2: float
    """Norm of all differences over the norm of all references."""
    max_abs_error: float
    flips: int
    """Images whose answer changed when this engine's output took the place of the reference."""
    flips_above_margin: int
    """Those of them whose reference margin is above ``margin``."""
    margin: float
    """5th percentile over the images of the distance between the largest and second largest reference logit."""
    flip_rate_bound: float
    """Upper bound of the share of all images that flip, at 95 % confidence (Clopper-Pearson), in 0 to 1."""

    def failures(self) -> list[str]:
        """Name every figure that misses its threshold; a NaN misses it."""
        if self.non_finite:
            return [f"{self.non_finite} output numbers are NaN or infinite, expected none"]
        found = []
        if not self.cosine_min >= _COSINE_MIN:
            found.append(f"smallest cosine {self.cosine_min:.4f}, expected at least {_COSINE_MIN}")
        if not self.cosine_median >= _COSINE_MEDIAN:
            found.append(f"median cosine {self.cosine_median:.4f}, expected at least {_COSINE_MEDIAN}")
        if not self.relative_l2 <= _RELATIVE_L2:
            found.append(f"relative L2 error {self.relative_l2:.2%}, expected at most {_RELATIVE_L2:.0%}")
        if self.flips_above_margin:
            found.append(f"{self.flips_above_margin} of {self.images} answers flipped, expected none")
        return found

    def doubt(self) -> str:
        """Say what too few images leave open; empty where they were enough."""
        if self.images >= ENOUGH_IMAGES:
            return ""
        return (
            f"validated with {self.images} golden images, fewer than {ENOUGH_IMAGES}: up to "
            f"{self.flip_rate_bound:.1%} of all answers may be others unseen; raise data.sample_images in the recipe"
        )


@dataclass(frozen=True)
class Reference:
    """What the outputs of one engine are compared with."""

    images: UInt8Array
    """Shape ``(n, H, W, C)``."""
    outputs: Float32Array
    """Shape ``(n, dim)``."""
    logits: Float32Array
    """Shape ``(n, K)``."""
    answer: Callable[[Float32Array], Float32Array]
    """Maps outputs ``(n, dim)`` to logits ``(n, K)``: the fusion with all other features at their reference."""


def reference_of(bundle: Bundle, model: ModelRef) -> Reference:
    """Read what a model of the bundle has to compute.

    Raises:
        ManifestError: The golden set lacks the baseline's logits, or does not fit the fusion head.
    """
    golden = bundle.golden()
    if not len(golden["images"]):
        raise ManifestError(f"{bundle.path('golden')}: there are no images: {_HINT}")
    if model == "baseline":
        if "baseline.logits" not in golden:
            raise ManifestError(f"{bundle.path('golden')}: there is no baseline.logits: {_HINT}")
        logits = golden["baseline.logits"]
        return Reference(golden["images"], logits, logits, lambda outputs: outputs)
    outputs = golden[f"features.{model}"]
    return Reference(golden["images"], outputs, golden["logits"], _fused_with(bundle, golden, model))


def verdict_digest(bundle: Bundle, engine_sha256: str) -> str:
    """Name what a verdict is of, as 64 hex digits: the golden set, the fusion head, and the engine that was checked."""
    parts = (bundle.manifest.file("golden").sha256, bundle.manifest.file("fusion").sha256, engine_sha256)
    return hashlib.sha256("".join(parts).encode("ascii")).hexdigest()


def check_accuracy(
    run: Callable[[UInt8Array], Float32Array],
    reference: Reference,
    progress: Callable[[int], None] = lambda _done: None,
) -> AccuracyResult:
    """Send the golden images through an engine and compare its outputs, which need not be finite.

    ``progress`` is called with the number of images that are done.
    """
    parts = []
    for start in range(0, len(reference.images), BATCH):
        parts.append(run(reference.images[start : start + BATCH]))
        progress(min(start + BATCH, len(reference.images)))
    return compare(np.concatenate(parts), reference)


def require_accuracy(engine: Engine, bundle: Bundle, model: ModelRef, name: str) -> AccuracyResult:
    """Check a loaded engine, which may not be what it was when it was built; ``name`` is for messages.

    Raises:
        EngineError: The engine fails, or does not compute what was trained.
        ManifestError: The golden images are not usable.
    """
    result = check_accuracy(engine.features, reference_of(bundle, model))
    if failures := result.failures():
        raise EngineError(f"{name}: expected what was trained, found {'; '.join(failures)}")
    return result


def spot_check(engine: CheckedEngine, bundle: Bundle, model: ModelRef) -> list[str]:
    """Send a few golden images through a loaded engine, one by one as frames come; name what is wrong with it.

    The other images count as right, so that an engine that has passed with all of them passes with these.

    Raises:
        EngineError: The engine fails.
        ManifestError: The golden images are not usable.
    """
    reference = reference_of(bundle, model)
    outputs = reference.outputs.copy()
    count = len(outputs)
    for index in {round(place) for place in np.linspace(0, count - 1, min(count, SPOT_IMAGES))}:
        outputs[index] = engine.unchecked_features(reference.images[index : index + 1])[0]
    return compare(outputs, reference).failures()


def compare(outputs: Float32Array, reference: Reference) -> AccuracyResult:
    """Compare outputs ``(n, dim)`` with the reference."""
    count = len(outputs)
    ordered = np.sort(reference.logits, axis=1)  # (n, K)
    margins = ordered[:, -1] - ordered[:, -2]  # (n,)
    margin = _quantile(margins, 0.05)
    non_finite = outputs.size - int(np.count_nonzero(np.isfinite(outputs)))
    if non_finite:
        nan = float("nan")
        return AccuracyResult(count, non_finite, nan, nan, nan, nan, 0, 0, margin, 1.0)
    cosines = _cosines(outputs, reference.outputs)
    difference = outputs.astype(np.float64) - reference.outputs
    flipped = reference.answer(outputs).argmax(axis=1) != reference.logits.argmax(axis=1)  # (n,)
    flips = int(np.count_nonzero(flipped))
    return AccuracyResult(
        images=count,
        non_finite=0,
        cosine_min=float(cosines.min()),
        cosine_median=_quantile(cosines, 0.5),
        relative_l2=_ratio(float(np.linalg.norm(difference)), float(np.linalg.norm(reference.outputs))),
        max_abs_error=float(np.abs(difference).max()),
        flips=flips,
        flips_above_margin=int(np.count_nonzero(flipped & (margins > margin))),
        margin=margin,
        flip_rate_bound=upper_bound(flips, count),
    )


def _fused_with(bundle: Bundle, golden: Tensors, device: int) -> Callable[[Float32Array], Float32Array]:
    head = bundle.fusion_head()
    all_devices = head.subset(head.all_devices)
    features = [golden[f"features.{i}"] for i in range(len(bundle.manifest.submodels))]

    def answer(outputs: Float32Array) -> Float32Array:
        joined = np.concatenate([*features[:device], outputs, *features[device + 1 :]], axis=1)  # (n, sum of dims)
        return joined @ all_devices.weight.T + all_devices.bias

    return answer


def _cosines(outputs: Float32Array, references: Float32Array) -> npt.NDArray[np.float64]:
    """Cosine of each pair of rows, the references' mean removed from both; 1 where both rows are the mean itself.

    Without the removal, what all images have in common would hide what tells them apart.
    """
    mean = references.mean(axis=0, dtype=np.float64)
    left, right = outputs - mean, references - mean
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = np.einsum("nd,nd->n", left, right) / np.where(norms > 0.0, norms, 1.0)
    both_are_mean = (left == 0.0).all(axis=1) & (right == 0.0).all(axis=1)
    return np.where(both_are_mean, 1.0, cosines)


def _quantile(values: npt.NDArray[np.floating], share: float) -> float:
    """As ``np.quantile``, whose first call imports numpy.ma: 2 MB of every agent."""
    return float(np.interp(share * (len(values) - 1), np.arange(len(values)), np.sort(values)))


def _ratio(error: float, size: float) -> float:
    if size > 0.0:
        return error / size
    return 0.0 if error == 0.0 else float("inf")
