"""Bundles for measuring: right in form, with random heads, and graphs that only :mod:`tiny` ever runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.file_list import FileEntry, describe_file
from devit_contract.artefacts.files import Tensors, new_folder, write_bytes, write_tensors
from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics
from devit_contract.artefacts.manifest import (
    SCHEMA,
    GraphRecord,
    Manifest,
    Parity,
    Preprocess,
    SubsetAccuracy,
    write_manifest,
)
from devit_contract.choices import Variant

OPSET = 17
PLAIN: Variant = "fp32"


@dataclass(frozen=True)
class Submodel:
    """A graph that agents build their engine from."""

    graph: bytes
    """ONNX; null and paced engines never open it."""
    features: Float32Array
    """What it answers to the golden images, shape ``(n, dim)``."""
    macs: int = 0
    int8: bytes | None = None
    """The same graph as variant ``int8``."""

    @property
    def variants(self) -> dict[Variant, bytes]:
        """Its graphs by variant, in the order in which an engine build tries them."""
        return {PLAIN: self.graph} if self.int8 is None else {"int8": self.int8, PLAIN: self.graph}


def random_head(dims: Sequence[int], classes: int) -> FusionHead:
    """Draw a head whose devices know something of each other."""
    total = sum(dims)
    rng = np.random.default_rng(5)
    mixed = rng.normal(size=(total, total)) / np.sqrt(total)
    statistics = FusionStatistics(rng.normal(size=total), mixed @ mixed.T + np.eye(total))
    return FusionHead(tuple(dims), rng.normal(size=(classes, total)), rng.normal(size=classes), statistics)


def light_head(dims: Sequence[int], classes: int) -> FusionHead:
    """Draw a head whose covariance is zero and takes no memory: for so many devices that a real one would take GBs."""
    total = sum(dims)
    rng = np.random.default_rng(5)
    nothing = np.broadcast_to(np.float64(0.0), (total, total))
    statistics = FusionStatistics(np.zeros(total), nothing)
    norms = tuple(float(np.sqrt(dim)) for dim in dims)  # about those of normal features
    return FusionHead(tuple(dims), rng.normal(size=(classes, total)), rng.normal(size=classes), statistics, norms)


def write_null_bundle(folder: Path, dims: Sequence[int], classes: int, shape: tuple[int, int, int]) -> None:
    """Write a bundle for null and paced engines.

    Args:
        folder: Absent or empty.
        dims: Feature dimension of each device.
        classes: Number of logits.
        shape: The image's, ``(H, W, C)``.
    """
    submodels = [Submodel(f"submodel {i}".encode(), np.zeros((1, dim), np.float32)) for i, dim in enumerate(dims)]
    head = random_head(dims, classes) if len(dims) <= 8 else None
    write_bundle(folder, submodels, head, classes, np.zeros((1, *shape), np.uint8))


def write_bundle(
    folder: Path, submodels: Sequence[Submodel], head: FusionHead | None, classes: int, golden: Float32Array
) -> None:
    """Write a bundle.

    Args:
        folder: Absent or empty.
        submodels: One for each device.
        head: ``None`` leaves it out: whoever uses the bundle has to bring one.
        classes: Number of logits.
        golden: Images, shape ``(n, H, W, C)``, uint8.
    """
    with new_folder(folder) as draft:
        files: list[FileEntry] = []
        for device, submodel in enumerate(submodels):
            for variant, graph in submodel.variants.items():
                name = f"submodel-{device}.{variant}.onnx"
                write_bytes(draft / name, graph)
                files.append(describe_file(draft, name, "submodel", device=device, variant=variant))
        if head is not None:
            head.save(draft / "fusion.safetensors")
            files.append(describe_file(draft, "fusion.safetensors", "fusion"))
            tensors: Tensors = {"images": golden, "labels": np.zeros(len(golden), np.int64)}
            tensors |= {f"features.{device}": submodel.features for device, submodel in enumerate(submodels)}
            joined = np.concatenate([submodel.features for submodel in submodels], axis=1)
            tensors["logits"] = Fusion(head).batch_logits(joined, head.all_devices)
            write_tensors(draft / "golden.safetensors", tensors)
            files.append(describe_file(draft, "golden.safetensors", "golden"))
        write_manifest(draft, _manifest(submodels, classes, golden.shape[1:], tuple(files)))


def _manifest(
    submodels: Sequence[Submodel], classes: int, shape: tuple[int, ...], files: tuple[FileEntry, ...]
) -> Manifest:
    height, width, channels = shape
    return Manifest(
        schema=SCHEMA,
        serial=1,
        name="benchmark",
        code_version=version("devit"),
        opset=OPSET,
        labels=tuple(f"class{number}" for number in range(classes)),
        preprocess=Preprocess(height, width, "rgb" if channels == 3 else "gray"),
        missing="conditional-mean",
        submodels=tuple(_record(submodel) for submodel in submodels),
        subsets=(SubsetAccuracy((1 << len(submodels)) - 1, 0.0, 0.0),),
        test_data="none: weights are random",
        files=files,
    )


def _record(submodel: Submodel) -> GraphRecord:
    variants = tuple(submodel.variants)
    return GraphRecord(
        output_dim=submodel.features.shape[1],
        macs=submodel.macs,
        variants=variants,
        parity=tuple(Parity(variant, 0.0, 0.0, 0, 0, casts=0, simplify_max_abs_error=0.0) for variant in variants),
        class_subset=(0,),
        ranges={},
        overflows=(),
        attentions=0,
        fp32_nodes={},
    )
