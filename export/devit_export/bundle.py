"""Exports a models folder to a bundle: graphs, fusion head, golden set, and the manifest last."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path

from devit_contract.artefacts.file_list import FileEntry, describe_file
from devit_contract.artefacts.files import (
    check_replaceable,
    new_folder,
    read_bytes,
    write_bytes,
    write_tensors,
)
from devit_contract.artefacts.manifest import (
    FILE_NAME,
    SCHEMA,
    GraphRecord,
    Manifest,
    SubsetAccuracy,
    write_manifest,
)
from devit_contract.choices import VARIANTS, Role, Variant
from devit_contract.errors import InputError, ManifestError
from devit_contract.service.progress import Progress, no_progress
from devit_decompose.models_folder.decomposition import Decomposition, load_decomposition
from devit_export import HEADROOM
from devit_export.checked import CheckedVariants, rounded
from devit_export.graph import export_features, export_logits
from devit_export.ranges import scan_ranges
from devit_export.rules import OPSET
from devit_export.trained import TrainedCell

FUSION_NAME = "fusion.safetensors"
GOLDEN_NAME = "golden.safetensors"
_HINT = "make the models again with devit decompose"


def export_bundle(
    models: Path,
    out: Path,
    *,
    serial: int = 1,
    headroom: float = HEADROOM,
    fp8: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Export every submodel and the baseline model, check each against PyTorch, and write the bundle.

    The bundle of an assembled cell has no baseline, since the cell has no teacher. An existing bundle at ``out`` is
    replaced only when the new one is whole. A variant that is not what was trained is left out, and the manifest says
    why.

    The same models give the same bytes, whatever the machine, but for measured figures in the manifest. Which products
    stay out of INT8 is decided by such figures, and may differ where one of them is at its very limit.

    Args:
        models: A folder that devit decompose has written.
        out: The bundle's folder; it may be absent, empty, or hold an older bundle.
        serial: Number of this bundle, from 1; a device that requires signatures refuses a lower one than before.
        headroom: A number of a golden image, times this, must fit into FP16, or it stays in FP32; 1 or more.
        fp8: Whether there is a variant in FP8 too, which of the Jetsons only Thor can run.
        progress: Called after each file.

    Raises:
        InputError: A file cannot be read or written, ``out`` holds something else, or a number is below 1.
        ManifestError: The models folder breaks its format or a digest.
        ExportError: A graph breaks a rule, an FP32 graph differs from the trained model, or a tool is missing.
    """
    for name, number in (("serial", serial), ("headroom", headroom)):
        if not 1 <= number < math.inf:
            raise InputError(f"{name}: expected 1 or more, found {number:g}")
    check_replaceable(out, FILE_NAME)
    decomposition = load_decomposition(models)
    variants = tuple(variant for variant in VARIANTS if fp8 or "fp8" not in variant)
    work = _Work(models, decomposition, headroom, variants, progress)
    with new_folder(out) as folder:
        for device in work.cell.devices:
            work.add_graph(folder, device)
        work.add_fusion(folder)
        work.add_calibration(folder)
        manifest = work.manifest(serial)
        write_manifest(folder, manifest)
    progress("exporting", work.steps, work.steps, FILE_NAME)
    return manifest


class _Work:
    """One export: the files written so far, and their records for the manifest."""

    def __init__(
        self,
        models: Path,
        decomposition: Decomposition,
        headroom: float,
        variants: tuple[Variant, ...],
        progress: Progress,
    ) -> None:
        self.models = models
        self.decomposition = decomposition
        self.headroom = headroom
        self.variants = variants
        self.progress = progress
        graphs = len(decomposition.submodels) + (decomposition.teacher is not None)
        self.steps = graphs * len(variants) + 2  # fusion with golden set, manifest
        self.step = 0
        _check_image_sizes(models, decomposition)
        progress("exporting", 0, self.steps, "asking the trained models")
        self.cell = TrainedCell(models, decomposition)
        self.records: dict[int | None, GraphRecord] = {}
        self.files: list[FileEntry] = []

    def add_graph(self, folder: Path, device: int | None) -> None:
        """Export a submodel, or the baseline (None), in every variant, and hold each against PyTorch."""
        role: Role = "baseline" if device is None else "submodel"
        stem = role if device is None else f"{role}-{device}"
        plain = f"{stem}.fp32.onnx"
        self._report(plain)
        model, (record, _) = self.cell.model(device), self.cell.record(device)
        graph = export_logits(model, plain) if device is None else export_features(model, plain)
        ranges = scan_ranges(plain, graph.content, self.cell.reference(device).images, self.headroom)
        made = CheckedVariants(graph, self.cell, device, ranges.overflows)
        for variant in reversed(self.variants):  # FP32 first: if it is not what was trained, nothing is
            name = f"{stem}.{variant}.onnx"
            self._report(name)
            content = made.add(name, variant)
            self.step += 1
            if content is not None:
                write_bytes(folder / name, content)
                self.files.append(describe_file(folder, name, role, device=device, variant=variant))
        self.records[device] = GraphRecord(
            output_dim=graph.expected.output_dim,
            macs=record.macs,
            variants=tuple(parity.variant for parity in made.parity),
            parity=made.parity,
            class_subset=record.config.classes if device is None else self.decomposition.class_subsets[device],
            ranges={tensor: rounded(largest, digits=3) for tensor, largest in ranges.maxima.items()},
            overflows=ranges.overflows,
            attentions=graph.expected.attentions,
            fp32_nodes=made.fp32_nodes,
            left_out=made.left_out,
            kept_products=made.kept_products,
            view=self.decomposition.view_of(device),
        )

    def add_fusion(self, folder: Path) -> None:
        """Write the fusion head, and the golden set with the answers of all submodels fused."""
        self._report(FUSION_NAME)
        self.cell.head.save(folder / FUSION_NAME)
        write_tensors(folder / GOLDEN_NAME, self.cell.golden)
        self.files.append(describe_file(folder, FUSION_NAME, "fusion"))
        self.files.append(describe_file(folder, GOLDEN_NAME, "golden"))

    def add_calibration(self, folder: Path) -> None:
        """Copy the calibration, which models folders of older versions do not have."""
        for file in self.decomposition.files:
            if file.role == "calibration":
                write_bytes(folder / file.name, read_bytes(self.models / file.name, _HINT, sha256=file.sha256))
                self.files.append(describe_file(folder, file.name, "calibration"))

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
            fp16_headroom=self.headroom,
            baseline=self.records.get(None),
            baseline_accuracy=_baseline_accuracy(whole),
            int8_accuracy=self.cell.int8_accuracy(),
            views=whole.views,
        )

    def _report(self, name: str) -> None:
        self.progress("exporting", self.step, self.steps, name)


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
