"""The accuracy check: does the engine on this very device still compute what was trained?

The golden images of the bundle go through the engine; its outputs are compared with the reference features, and the
answers after fusion with the reference answers. An engine that fails is never stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.gate import AccuracyResult, Reference, compare, fused_with
from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Variant
from devit_contract.errors import EngineError, ManifestError
from devit_engines.engine import CheckedEngine, Engine, ModelRef

BATCH = 16
"""Golden images per call."""
SPOT_IMAGES = 16
"""Golden images that an engine computes whenever it is loaded."""
_HINT = "make the bundle again with devit export"


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
    features = [golden[f"features.{device}"] for device in range(len(bundle.manifest.submodels))]
    answer = fused_with(bundle.fusion_head(), features, model)
    images = bundle.manifest.submodels[model].seen(golden["images"])
    return Reference(images, features[model], golden["logits"], answer)


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


def require_accuracy(engine: Engine, bundle: Bundle, model: ModelRef, variant: Variant, name: str) -> AccuracyResult:
    """Check a loaded engine, which may not be what it was when it was built; ``name`` is for messages.

    Raises:
        EngineError: The engine fails, or does not compute what was trained.
        ManifestError: The golden images are not usable.
    """
    result = check_accuracy(engine.features, reference_of(bundle, model))
    if failures := result.failures(variant):
        raise EngineError(f"{name}: expected what was trained, found {'; '.join(failures)}")
    return result


def spot_check(engine: CheckedEngine, bundle: Bundle, model: ModelRef, variant: Variant) -> list[str]:
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
    return compare(outputs, reference).failures(variant)
