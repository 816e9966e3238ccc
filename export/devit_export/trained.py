"""What the trained cell answers, to the golden images and to those kept for INT8: every variant is held against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.files import Tensors, read_tensors
from devit_contract.artefacts.gate import Reference, fused_with
from devit_contract.artefacts.head import FusionHead
from devit_contract.artefacts.manifest import Int8Accuracy
from devit_contract.choices import EIGHT_BIT_VARIANTS, Role, Variant
from devit_contract.errors import ExportError, ManifestError
from devit_decompose.models.inference import run
from devit_decompose.models.model import Model
from devit_decompose.models.weights import load_model
from devit_decompose.models_folder.decomposition import Decomposition, ModelRecord
from devit_export.parity import Difference, ParityError, measure, measure_variant, run_graph

MOST_LOST = 0.003
"""Share of the images kept for INT8 that a cell may answer rightly in FP32 and no more with all devices in INT8."""
_DOUBLE_BATCH = 32
_HINT = "make the models again with devit decompose"


class TrainedCell:
    """The trained models' own answers; a device is the index of a submodel, or ``None`` for the baseline."""

    def __init__(self, models: Path, decomposition: Decomposition) -> None:
        """Read the images and ask every model.

        Raises:
            InputError: A file cannot be read.
            ManifestError: A file is of another format.
            ExportError: An answer is not finite.
        """
        self.models, self.decomposition = models, decomposition
        self.devices: tuple[int | None, ...] = tuple(range(len(decomposition.submodels)))
        if decomposition.teacher is not None:
            self.devices += (None,)
        self.head = FusionHead.load(
            models / decomposition.file("fusion").name,
            dims=tuple(record.config.feature_dim for record in decomposition.submodels),
            classes=len(decomposition.class_names),
        )
        self.golden = self._images("samples")
        """As :meth:`devit_contract.artefacts.manifest.Bundle.golden` reads it."""
        roles = [file.role for file in decomposition.files]
        self.kept = self._images("quantization") if "quantization" in roles else None
        """Images for INT8 and their labels."""
        self._kept_outputs: dict[int | None, Float32Array] = {}
        self._int8_outputs: dict[tuple[Variant, int | None], Float32Array] = {}
        for device in self.devices:
            self._ask(device)
        features = [self.golden[f"features.{device}"] for device in range(len(self.head.dims))]
        self.golden["logits"] = self._fused(features)

    def record(self, device: int | None) -> tuple[ModelRecord, str]:
        """Give a model's record and the name of its weights."""
        whole = self.decomposition
        record = whole.teacher if device is None else whole.submodels[device]
        if record is None:
            raise AssertionError("a cell without a teacher has no baseline")
        return record, whole.file("teacher" if device is None else "submodel", device).name

    def model(self, device: int | None) -> Model:
        """Load a model."""
        record, weights = self.record(device)
        return load_model(self.models / weights, record.config)

    def reference(self, device: int | None) -> Reference:
        """Give what a graph has to compute for the golden images, as its device sees them."""
        golden = self.golden
        if device is None:
            logits = golden["baseline.logits"]
            return Reference(golden["images"], logits, logits, lambda outputs: outputs)
        features = [golden[f"features.{other}"] for other in range(len(self.head.dims))]
        answer = fused_with(self.head, features, device)
        return Reference(self._seen(device, golden), features[device], golden["logits"], answer)

    def kept_images(self, device: int | None) -> UInt8Array | None:
        """Give the images for INT8 as a device sees them; ``None`` if there are none."""
        return None if self.kept is None else self._seen(device, self.kept)

    def check(self, name: str, variant: Variant, device: int | None, graph: bytes) -> Difference:
        """Hold a graph against the model that it came from, and remember what it answers if it is in INT8.

        Raises:
            ExportError: It cannot be run, or its output has another shape.
            ParityError: It is not what was trained.
        """
        reference = self.reference(device)
        self._int8_outputs.pop((variant, device), None)
        if variant == "fp32":
            return measure(name, graph, reference.images, reference.outputs)
        difference = measure_variant(name, variant, graph, reference)
        if variant in EIGHT_BIT_VARIANTS and self.kept is not None:
            self._check_answers(name, variant, device, run_graph(name, graph, self._seen(device, self.kept)))
        return difference

    def int8_accuracy(self) -> Int8Accuracy | None:
        """Give the accuracy of the fused cell on the images for INT8; ``None`` if there are none."""
        if self.kept is None:
            return None
        variants = sorted({variant for variant, device in self._int8_outputs if device is not None})
        accuracies = {variant: self._accuracy(self._answers(variant, 0)) for variant in variants}
        return Int8Accuracy(len(self.kept["labels"]), self._accuracy(self._answers("fp32", 0)), accuracies)

    def _ask(self, device: int | None) -> None:
        """Ask a trained model, in double precision for the golden images.

        What is then rounded once is the same on every kind of CPU; sums in single precision are not.
        """
        model = self.model(device)
        function = model if device is None else model.features
        if self.kept is not None:
            self._kept_outputs[device] = run(function, self._seen(device, self.kept))
        model.double()
        reference = run(function, self._seen(device, self.golden), batch=_DOUBLE_BATCH)
        if not np.isfinite(reference).all():
            weights = self.record(device)[1]
            raise ExportError(f"{weights}: expected finite outputs for every golden image, found others: {_HINT}")
        self.golden["baseline.logits" if device is None else f"features.{device}"] = reference

    def _seen(self, device: int | None, tensors: Tensors) -> UInt8Array:
        """Give images of whole scenes, ``(n, H, W, C)``, as a device sees them."""
        view, images = self.decomposition.view_of(device), tensors["images"]
        return images if view is None else view.of(images)

    def _check_answers(self, name: str, variant: Variant, device: int | None, outputs: Float32Array) -> None:
        """Count the right answers with this device, and those before it, in INT8."""
        key = (variant, device)
        self._int8_outputs[key] = outputs
        before, now = (self._accuracy(self._answers(each, device)) for each in ("fp32", variant))
        if not before - now <= MOST_LOST + 1e-9:
            del self._int8_outputs[key]
            raise ParityError(
                f"{name}: expected at most {MOST_LOST:.1%} fewer right answers on {len(outputs)} validation images, "
                f"found {before - now:.1%}: the variant is left out, and devices build the next one"
            )

    def _answers(self, variant: Variant, device: int | None) -> Float32Array:
        """Give the logits of the baseline, or of the fused cell, with whatever has this variant in it."""
        known = self._kept_outputs | {at: found for (kind, at), found in self._int8_outputs.items() if kind == variant}
        return known[None] if device is None else self._fused([known[at] for at in range(len(self.head.dims))])

    def _fused(self, features: list[Float32Array]) -> Float32Array:
        joined = np.concatenate(features, axis=1).astype(np.float64)
        logits: Float32Array = (joined @ self.head.weight.T + self.head.bias).astype(np.float32)
        return logits

    def _accuracy(self, logits: Float32Array) -> float:
        if self.kept is None:
            raise AssertionError("nothing is measured without images")
        return float((logits.argmax(axis=1) == self.kept["labels"]).mean())

    def _images(self, role: Role) -> Tensors:
        """Read labelled images."""
        path = self.models / self.decomposition.file(role).name
        tensors = read_tensors(path, _HINT)
        shapes = {name: (str(tensor.dtype), *tensor.shape) for name, tensor in tensors.items()}
        count = len(tensors["images"]) if tensors.get("images", np.empty(())).ndim > 0 else 0
        expected = {
            "images": ("uint8", count, *self.decomposition.preprocess.shape),
            "labels": ("int64", count),
        }
        if shapes != expected or count == 0:
            raise ManifestError(f"{path}: expected tensors {expected} of at least one image, found {shapes}: {_HINT}")
        return tensors
