"""From a models folder to a bundle: every graph, the fusion head, the golden set, and the manifest last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import Tensor

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.file_list import FileEntry, describe_file
from devit_contract.artefacts.files import (
    Tensors,
    check_replaceable,
    new_folder,
    read_tensors,
    write_bytes,
    write_tensors,
)
from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.artefacts.manifest import (
    FILE_NAME,
    SCHEMA,
    GraphRecord,
    Manifest,
    Parity,
    SubsetAccuracy,
    write_manifest,
)
from devit_contract.choices import RUNGS, Role, Rung
from devit_contract.errors import ExportError, InputError, ManifestError
from devit_contract.service.progress import Progress, no_progress
from devit_decompose.models.inference import run
from devit_decompose.models.weights import load_model
from devit_decompose.models_folder.decomposition import Decomposition, ModelRecord, load_decomposition
from devit_export.graph import ExportedGraph, export_features, export_logits
from devit_export.parity import measure, measure_half
from devit_export.ranges import scan_ranges
from devit_export.rules import OPSET
from devit_export.variants import RungGraph, make_rung

FUSION_NAME = "fusion.safetensors"
GOLDEN_NAME = "golden.safetensors"
_HINT = "make the models again with devit decompose"


def export_bundle(models: Path, out: Path, *, serial: int = 1, progress: Progress = no_progress) -> Manifest:
    """Export every submodel and the undivided teacher, check each against PyTorch, and write the bundle.

    A cell of trained models that were assembled has no undivided teacher, and its bundle no baseline. The same models
    give the same bytes. An existing bundle at ``out`` is replaced only when the new one is whole.

    Args:
        models: A folder that devit decompose has written.
        out: The bundle's folder; it may be absent, empty, or hold an older bundle.
        serial: Number of this bundle, from 1; a device that asks for signatures takes none below one it took before.
        progress: Told after each file.

    Returns:
        The manifest as it was written.

    Raises:
        InputError: A file cannot be read or written, ``out`` holds something else, or ``serial`` is below 1.
        ManifestError: The models folder breaks its format or a digest.
        ExportError: A graph breaks a rule, differs from the trained model, or a tool is missing.
    """
    _check_request(out, serial)
    decomposition = load_decomposition(models)
    work = _Work(models, decomposition, progress)
    with new_folder(out) as draft:
        for device in range(len(decomposition.submodels)):
            work.add_graph(draft, "submodel", device)
        if decomposition.teacher is not None:
            work.add_graph(draft, "baseline", None)
        work.add_fusion(draft)
        manifest = work.manifest(serial)
        write_manifest(draft, manifest)
    progress("exporting", work.steps, work.steps, FILE_NAME)
    return manifest


@dataclass(frozen=True)
class _Source:
    """What a graph is made from."""

    record: ModelRecord
    class_subset: tuple[int, ...]
    weights: str
    """File name in the models folder."""
    stem: str
    """File name in the bundle, up to the rung."""
    output: str
    """Its output's name in the golden set."""


class _Work:
    """One export: what has been written so far, and what the manifest will say about it."""

    def __init__(self, models: Path, decomposition: Decomposition, progress: Progress) -> None:
        self.models = models
        self.decomposition = decomposition
        self.progress = progress
        graphs = len(decomposition.submodels) + (decomposition.teacher is not None)
        self.steps = graphs * len(RUNGS) + 2  # fusion with golden set, manifest
        _check_image_sizes(models, decomposition)
        self.golden = _samples(models, decomposition)
        self.head = _fusion_head(models, decomposition)
        self.records: dict[int | None, GraphRecord] = {}
        self.files: list[FileEntry] = []

    def add_graph(self, folder: Path, role: Role, device: int | None) -> None:
        """Export one model in every rung, measure each against PyTorch over the golden images, and write it."""
        source = self._source(device)
        plain = f"{source.stem}.fp32.onnx"
        self._tell(f"{source.stem}.{RUNGS[0]}.onnx")
        model = load_model(self.models / source.weights, source.record.config)
        images: UInt8Array = self.golden["images"]
        reference = _answers(source.weights, model if device is None else model.features, images)
        graph = export_logits(model, plain) if device is None else export_features(model, plain)
        ranges = scan_ranges(plain, graph.content, images)
        parity = []
        fp32_nodes: dict[str, tuple[str, ...]] = {}
        for rung in RUNGS:
            name = f"{source.stem}.{rung}.onnx"
            self._tell(name)
            made = make_rung(graph, rung, ranges.overflows, name)
            parity.append(_parity(name, rung, graph, made, images, reference))
            write_bytes(folder / name, made.content)
            self.files.append(describe_file(folder, name, role, device=device, rung=rung))
            if rung != "fp32":
                fp32_nodes[rung] = made.fp32_nodes
        self.golden[source.output] = reference
        self.records[device] = GraphRecord(
            output_dim=reference.shape[1],
            macs=source.record.macs,
            rungs=RUNGS,
            parity=tuple(parity),
            class_subset=source.class_subset,
            # Four digits, since another thread count rounds otherwise.
            ranges={tensor: float(f"{largest:.4g}") for tensor, largest in ranges.maxima.items()},
            overflows=ranges.overflows,
            attentions=graph.expected.attentions,
            fp32_nodes=fp32_nodes,
        )

    def add_fusion(self, folder: Path) -> None:
        """Write the fusion head, and the golden set with the answers of all submodels fused."""
        self._tell(FUSION_NAME)
        joined = np.concatenate([self.golden[f"features.{device}"] for device in range(len(self.head.dims))], axis=1)
        self.golden["logits"] = Fusion(self.head).batch_logits(joined, self.head.everyone)
        self.head.save(folder / FUSION_NAME)
        write_tensors(folder / GOLDEN_NAME, self.golden)
        self.files.append(describe_file(folder, FUSION_NAME, "fusion"))
        self.files.append(describe_file(folder, GOLDEN_NAME, "golden"))

    def manifest(self, serial: int) -> Manifest:
        """Describe all that was written."""
        whole = self.decomposition
        return Manifest(
            schema=SCHEMA,
            serial=serial,
            name=whole.name,
            code_version=version("devit"),
            opset=OPSET,
            labels=whole.class_names,
            preprocess=whole.preprocess,
            missing="conditional-mean",
            submodels=tuple(self.records[device] for device in range(len(whole.submodels))),
            subsets=tuple(
                SubsetAccuracy(subset.mask, subset.validation_accuracy, subset.test_accuracy)
                for subset in whole.subsets
            ),
            test_data=f"{whole.data.name}, {whole.data.test_images:,} test images",
            files=tuple(self.files),
            baseline=self.records.get(None),
            baseline_accuracy=_baseline_accuracy(whole),
        )

    def _source(self, device: int | None) -> _Source:
        whole = self.decomposition
        if device is not None:
            weights, classes = whole.file("submodel", device).name, whole.class_subsets[device]
            return _Source(whole.submodels[device], classes, weights, f"submodel-{device}", f"features.{device}")
        if whole.teacher is None:
            raise AssertionError("without an undivided teacher no baseline is asked for")
        weights, classes = whole.file("teacher").name, whole.teacher.config.classes
        return _Source(whole.teacher, classes, weights, "baseline", "baseline.logits")

    def _tell(self, name: str) -> None:
        self.progress("exporting", len(self.files), self.steps, name)


def _parity(
    name: str, rung: Rung, graph: ExportedGraph, made: RungGraph, images: UInt8Array, reference: Float32Array
) -> Parity:
    """Measure one rung against PyTorch."""
    compare = measure if rung == "fp32" else measure_half
    difference = compare(name, made.content, images, reference)
    return Parity(
        rung=rung,
        max_abs_error=difference.max_abs,
        mean_abs_error=difference.mean_abs,
        nodes_before=graph.nodes_before,
        nodes_after=made.nodes,
        casts=made.casts,
        simplify_max_abs_error=graph.simplify_max_abs_error,
    )


def _check_request(out: Path, serial: int) -> None:
    if serial < 1:
        raise InputError(f"serial: expected 1 or more, found {serial}")
    check_replaceable(out, FILE_NAME)


def _check_image_sizes(models: Path, decomposition: Decomposition) -> None:
    """Hold every model's input against the one preprocessing that all of them share."""
    expected = decomposition.preprocess.shape
    for record in (*decomposition.submodels, decomposition.teacher):
        if record is not None and record.config.image_size != expected:
            raise ManifestError(
                f"{models}: expected models of images {expected} as in preprocess, "
                f"found one of {record.config.image_size}: {_HINT}"
            )


def _baseline_accuracy(whole: Decomposition) -> SubsetAccuracy | None:
    if whole.teacher_validation_accuracy is None or whole.teacher_test_accuracy is None:
        return None
    return SubsetAccuracy(0, whole.teacher_validation_accuracy, whole.teacher_test_accuracy)


def _samples(models: Path, decomposition: Decomposition) -> Tensors:
    """Read the golden images and their labels."""
    path = models / decomposition.file("samples").name
    tensors = read_tensors(path, _HINT)
    shapes = {name: (str(tensor.dtype), *tensor.shape) for name, tensor in tensors.items()}
    count = len(tensors["images"]) if tensors.get("images", np.empty(())).ndim > 0 else 0
    expected = {"images": ("uint8", count, *decomposition.preprocess.shape), "labels": ("int64", count)}
    if shapes != expected or count == 0:
        raise ManifestError(f"{path}: expected tensors {expected} of at least one image, found {shapes}: {_HINT}")
    return tensors


def _fusion_head(models: Path, decomposition: Decomposition) -> FusionHead:
    """Read the fusion head and hold it against the submodels."""
    return FusionHead.load(
        models / decomposition.file("fusion").name,
        dims=tuple(record.config.feature_dim for record in decomposition.submodels),
        classes=len(decomposition.class_names),
    )


def _answers(weights: str, function: Callable[[Tensor], Tensor], images: UInt8Array) -> Float32Array:
    """Ask PyTorch for the reference, shape ``(n, dim)``."""
    reference = run(function, images)
    if not np.isfinite(reference).all():
        raise ExportError(f"{weights}: expected finite outputs for every golden image, found others: {_HINT}")
    return reference
