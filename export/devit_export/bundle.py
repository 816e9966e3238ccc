"""Exports a models folder to a bundle: graphs, fusion head, golden set, and the manifest last."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np

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
from devit_contract.choices import VARIANTS, Role, Variant
from devit_contract.errors import ExportError, InputError, ManifestError
from devit_contract.service.progress import Progress, no_progress
from devit_decompose.models.inference import run
from devit_decompose.models.weights import load_model
from devit_decompose.models_folder.decomposition import Decomposition, load_decomposition
from devit_export.graph import ExportedGraph, export_features, export_logits
from devit_export.parity import measure, measure_half
from devit_export.ranges import scan_ranges
from devit_export.rules import OPSET
from devit_export.variants import VariantGraph, make_variant

FUSION_NAME = "fusion.safetensors"
GOLDEN_NAME = "golden.safetensors"
_HINT = "make the models again with devit decompose"


def export_bundle(models: Path, out: Path, *, serial: int = 1, progress: Progress = no_progress) -> Manifest:
    """Export every submodel and the baseline model, check each against PyTorch, and write the bundle.

    The bundle of an assembled cell has no baseline, since the cell has no teacher. The same models give the same bytes.
    An existing bundle at ``out`` is replaced only when the new one is whole.

    Args:
        models: A folder that devit decompose has written.
        out: The bundle's folder; it may be absent, empty, or hold an older bundle.
        serial: Number of this bundle, from 1; a device that requires signatures refuses a lower one than before.
        progress: Called after each file.

    Raises:
        InputError: A file cannot be read or written, ``out`` holds something else, or ``serial`` is below 1.
        ManifestError: The models folder breaks its format or a digest.
        ExportError: A graph breaks a rule, differs from the trained model, or a tool is missing.
    """
    if serial < 1:
        raise InputError(f"serial: expected 1 or more, found {serial}")
    check_replaceable(out, FILE_NAME)
    decomposition = load_decomposition(models)
    work = _Work(models, decomposition, progress)
    with new_folder(out) as folder:
        for device in range(len(decomposition.submodels)):
            work.add_graph(folder, device)
        if decomposition.teacher is not None:
            work.add_graph(folder, None)
        work.add_fusion(folder)
        manifest = work.manifest(serial)
        write_manifest(folder, manifest)
    progress("exporting", work.steps, work.steps, FILE_NAME)
    return manifest


class _Work:
    """One export: the files written so far, and their records for the manifest."""

    def __init__(self, models: Path, decomposition: Decomposition, progress: Progress) -> None:
        self.models = models
        self.decomposition = decomposition
        self.progress = progress
        graphs = len(decomposition.submodels) + (decomposition.teacher is not None)
        self.steps = graphs * len(VARIANTS) + 2  # fusion with golden set, manifest
        _check_image_sizes(models, decomposition)
        self.golden = _samples(models, decomposition)
        self.head = FusionHead.load(
            models / decomposition.file("fusion").name,
            dims=tuple(record.config.feature_dim for record in decomposition.submodels),
            classes=len(decomposition.class_names),
        )
        self.records: dict[int | None, GraphRecord] = {}
        self.files: list[FileEntry] = []

    def add_graph(self, folder: Path, device: int | None) -> None:
        """Export a submodel, or the baseline (None), in every variant, and measure each against PyTorch."""
        whole = self.decomposition
        role: Role
        if device is None:
            record, weights, role, output = whole.teacher, whole.file("teacher").name, "baseline", "baseline.logits"
        else:
            weights, role, output = whole.file("submodel", device).name, "submodel", f"features.{device}"
            record = whole.submodels[device]
        if record is None:
            raise AssertionError("a cell without a teacher has no baseline")
        stem = role if device is None else f"{role}-{device}"
        plain = f"{stem}.fp32.onnx"
        self._report(f"{stem}.{VARIANTS[0]}.onnx")
        model = load_model(self.models / weights, record.config)
        images: UInt8Array = self.golden["images"]
        reference = run(model if device is None else model.features, images)
        if not np.isfinite(reference).all():
            raise ExportError(f"{weights}: expected finite outputs for every golden image, found others: {_HINT}")
        graph = export_logits(model, plain) if device is None else export_features(model, plain)
        ranges = scan_ranges(plain, graph.content, images)
        parity = []
        fp32_nodes: dict[str, tuple[str, ...]] = {}
        for variant in VARIANTS:
            name = f"{stem}.{variant}.onnx"
            self._report(name)
            made = make_variant(graph, variant, ranges.overflows, name)
            parity.append(_parity(name, variant, graph, made, images, reference))
            write_bytes(folder / name, made.content)
            self.files.append(describe_file(folder, name, role, device=device, variant=variant))
            if variant != "fp32":
                fp32_nodes[variant] = made.fp32_nodes
        self.golden[output] = reference
        self.records[device] = GraphRecord(
            output_dim=reference.shape[1],
            macs=record.macs,
            variants=VARIANTS,
            parity=tuple(parity),
            class_subset=record.config.classes if device is None else whole.class_subsets[device],
            # Four digits, since another thread count rounds otherwise.
            ranges={tensor: float(f"{largest:.4g}") for tensor, largest in ranges.maxima.items()},
            overflows=ranges.overflows,
            attentions=graph.expected.attentions,
            fp32_nodes=fp32_nodes,
        )

    def add_fusion(self, folder: Path) -> None:
        """Write the fusion head, and the golden set with the answers of all submodels fused."""
        self._report(FUSION_NAME)
        joined = np.concatenate([self.golden[f"features.{device}"] for device in range(len(self.head.dims))], axis=1)
        self.golden["logits"] = Fusion(self.head).batch_logits(joined, self.head.all_devices)
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

    def _report(self, name: str) -> None:
        self.progress("exporting", len(self.files), self.steps, name)


def _parity(
    name: str, variant: Variant, graph: ExportedGraph, made: VariantGraph, images: UInt8Array, reference: Float32Array
) -> Parity:
    """Measure one variant against PyTorch."""
    compare = measure if variant == "fp32" else measure_half
    difference = compare(name, made.content, images, reference)
    return Parity(
        variant=variant,
        max_abs_error=difference.max_abs,
        mean_abs_error=difference.mean_abs,
        nodes_before=graph.nodes_before,
        nodes_after=made.nodes,
        casts=made.casts,
        simplify_max_abs_error=graph.simplify_max_abs_error,
    )


def _check_image_sizes(models: Path, decomposition: Decomposition) -> None:
    """Check that the shared preprocessing gives the images of every model."""
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
