"""``manifest.json``: what a bundle holds. The bundle is the only thing that travels to devices.

Files are listed by role, so that a new kind of file is a new entry and not a new schema:

=========== ========= ======= ===============================================================
role        device    variant content
=========== ========= ======= ===============================================================
submodel    0 to N-1  yes     ONNX graph, uint8 images ``(batch, H, W, C)`` to features
                              ``(batch, dim)``
baseline    absent    yes     ONNX graph of the baseline model, the same images to logits
                              ``(batch, K)``
fusion      absent    absent  safetensors: the linear head, the statistics for missing devices,
                              the largest norms of right features
golden      absent    absent  safetensors: images, labels, features of every submodel, logits
calibration absent    absent  safetensors: how often the answers of some devices alone flip;
                              older bundles have none
=========== ========= ======= ===============================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.file_list import FileEntry, check_listing, find_entry
from devit_contract.artefacts.files import Tensors, decode_json, read_bytes, read_json, read_tensors, write_json
from devit_contract.artefacts.head import FusionHead
from devit_contract.choices import Colour, Interpolation, Role, Variant, Views
from devit_contract.errors import InputError, ManifestError
from devit_contract.views import View

if TYPE_CHECKING:
    from devit_contract.artefacts.calibration import Calibration

SCHEMA = 3
FILE_NAME = "manifest.json"
MAX_SUBMODELS = 64
"""As many devices as a message's mask has bits."""
PART_NAME = "part.json"
"""Beside a manifest in a folder that holds only what one device needs."""
_PART_SCHEMA = 1
_HINT = "make the bundle again with devit export"
_COPY_HINT = "copy the bundle again"


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes the uint8 input; normalisation is inside the graph."""

    height: int
    width: int
    colour: Colour
    """``gray`` has one channel, ``rgb`` three."""
    interpolation: Interpolation = "bicubic"
    """As Pillow names it."""
    antialias: bool = True
    resize_to: int = 0
    """Shorter side in pixels before the centre crop; 0 resizes straight to height x width."""

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        if not (0 < self.height <= 4096 and 0 < self.width <= 4096):
            raise ValueError(f"height and width: expected 1 to 4096, found {self.height} x {self.width}")
        if self.resize_to != 0 and not max(self.height, self.width) <= self.resize_to <= 8192:
            raise ValueError(f"resize_to: expected 0, or from the crop's longer side to 8192, found {self.resize_to}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels of one image."""
        return self.height, self.width, 1 if self.colour == "gray" else 3


def check_image(image: npt.NDArray[np.uint8], spec: Preprocess) -> None:
    """Check that an image is what the graph takes; an :class:`InputError` says which type and shape that is."""
    if image.dtype != np.uint8 or image.shape != spec.shape:
        raise InputError(f"image: expected uint8 {spec.shape}, found {image.dtype} {image.shape}")


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far an exported graph is from the trained model, over the golden images."""

    variant: Variant
    max_abs_error: float
    """Largest absolute difference of any output number."""
    mean_abs_error: float
    nodes_before: int
    """Graph nodes before onnxsim."""
    nodes_after: int
    """Graph nodes of this variant, its Casts included."""
    casts: int
    """Cast nodes: that of the uint8 input, and one wherever numbers go from one float type to the other."""
    simplify_max_abs_error: float
    """Largest change of any output number by onnxsim, in FP32, over a few images of noise."""


class GraphRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model of the bundle, whatever its variants."""

    output_dim: int
    """Feature dimension of a submodel, number of classes of the baseline."""
    macs: int
    """Multiply-accumulates of one image."""
    variants: tuple[Variant, ...]
    """In the order in which an engine build tries them."""
    parity: tuple[Parity, ...]
    class_subset: tuple[int, ...]
    """Global labels it was first trained on; information only, its features serve all classes."""
    ranges: dict[str, float]
    """Of each float tensor of the FP32 graph, its largest absolute number over the golden images."""
    overflows: tuple[str, ...]
    """Those of them that, times ``fp16_headroom``, may leave the range of FP16, by themselves or where they are squared
    or summed up."""
    attentions: int
    """Attention blocks, each of which TensorRT may fuse into one kernel."""
    fp32_nodes: dict[str, tuple[str, ...]]
    """Of each variant with FP16, the nodes of the FP32 graph that it computes in FP32."""
    left_out: dict[Variant, str] = {}
    """Of each variant that is not there, what was wrong with it."""
    kept_products: dict[Variant, tuple[str, ...]] = {}
    """Of each variant in INT8 or FP8, the products of the FP32 graph that stay as they are, for the answers' sake."""
    view: View | None = None
    """Of a submodel with an own view: what it was trained to see of the scene that the golden images show whole."""

    def seen(self, images: UInt8Array) -> UInt8Array:
        """Give images of whole scenes, ``(n, H, W, C)``, as this model takes them."""
        return images if self.view is None else self.view.of(images)

    def __post_init__(self) -> None:
        """Refuse a model without outputs, and FP32 nodes of variants that are not there."""
        if self.output_dim < 1:
            raise ValueError(f"output_dim: expected 1 or more, found {self.output_dim}")
        if unknown := [variant for variant in self.fp32_nodes if variant not in self.variants]:
            raise ValueError(f"fp32_nodes: expected variants {', '.join(self.variants)}, found {unknown[0]!r}")


class SubsetAccuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How good the answer of one subset of devices is; accuracies are in 0 to 1."""

    mask: int
    """Bit i is set where device i is present."""
    validation_accuracy: float
    """With the missing features predicted from those present (conditional mean); so is the next."""
    test_accuracy: float


class Int8Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How good the cell is in INT8 and FP8, on validation images that are not golden; accuracies are in 0 to 1."""

    images: int
    fp32: float
    """Of the trained models."""
    fused: dict[Variant, float]
    """With every device at this variant that has it, the others as trained."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole file."""

    schema: int
    serial: int
    """Rises with every bundle of the same name: a device that takes signed ones alone takes no older one."""
    name: str
    code_version: str
    opset: int
    """Of all graphs but those in FP8, which are of 19."""
    labels: tuple[str, ...]
    """Class names in the order of the logits."""
    preprocess: Preprocess
    missing: Literal["conditional-mean"]
    """What takes the place of a missing device's features."""
    submodels: tuple[GraphRecord, ...]
    subsets: tuple[SubsetAccuracy, ...]
    test_data: str
    """Name and size of the test set behind the accuracies."""
    files: tuple[FileEntry, ...]
    fp16_headroom: float = 1.0
    """What times the largest number of the golden images had to fit into FP16, for a node to compute in it."""
    baseline: GraphRecord | None = None
    baseline_accuracy: SubsetAccuracy | None = None
    """The baseline model's; its mask is 0."""
    int8_accuracy: Int8Accuracy | None = None
    """Absent where the models folder held no images for INT8."""
    views: Views = "same"
    """``own``: each device uses its own camera, and requests hold no image."""

    def __post_init__(self) -> None:
        """Refuse what later code could not use."""
        if len(self.labels) < 2:
            raise ValueError(f"labels: expected at least 2 classes, found {len(self.labels)}")
        if not 1 <= len(self.submodels) <= MAX_SUBMODELS:
            raise ValueError(f"submodels: expected 1 to {MAX_SUBMODELS}, found {len(self.submodels)}")
        if {graph.view is not None for graph in self.submodels} != {self.views == "own"}:
            raise ValueError(
                f'views: expected a view of every submodel with "own", and else none, found {self.views!r}'
            )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Say of each variant that is not there what was wrong with it, over all graphs, and what they share once."""
        graphs = self.submodels if self.baseline is None else (*self.submodels, self.baseline)
        return tuple(dict.fromkeys(reason for graph in graphs for reason in graph.left_out.values()))

    def file(self, role: Role, *, device: int | None = None, variant: Variant | None = None) -> FileEntry:
        """Find a file by what it is for; a :class:`ManifestError` says that there is none."""
        return find_entry(self.files, role, device, variant, list_name=FILE_NAME, hint=_HINT)

    def graph(self, role: Role, device: int | None) -> GraphRecord:
        """Find the record of a submodel or of the baseline; a :class:`ManifestError` says that there is none."""
        if role == "baseline" and self.baseline is not None:
            return self.baseline
        if role == "submodel" and device is not None and 0 <= device < len(self.submodels):
            return self.submodels[device]
        raise ManifestError(
            f"{FILE_NAME}: expected a {role} {'' if device is None else device}, "
            f"found submodels 0 to {len(self.submodels) - 1}: {_HINT}"
        )


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``part.json``: of which submodels a folder holds the graphs; it lacks what other devices and the node need.

    It is not signed: it can leave out files, and what is left out cannot be read.
    """

    schema: int
    submodels: tuple[int, ...]

    def takes(self, file: FileEntry) -> bool:
        """Whether a file of the manifest is there."""
        return file.role not in ("submodel", "baseline", "calibration") or file.device in self.submodels


class Bundle:
    """A bundle folder. Each file's digest is checked when the file is read, in the very bytes that are returned."""

    def __init__(self, folder: Path, manifest: bytes | None = None) -> None:
        """Read the manifest, and check that the folder holds the files it lists; none of them is read.

        In a folder with :class:`Part`, those are the files that it takes.

        ``manifest`` may be the content of ``manifest.json``, e.g. the bytes whose signature was verified.

        Raises:
            InputError: The manifest cannot be read, or a file is missing.
            ManifestError: The format is broken, or a file has another size.
        """
        path = folder / FILE_NAME
        self.folder = folder
        content = read_bytes(path, _HINT) if manifest is None else manifest
        self.manifest = decode_json(path, content, Manifest, schema=SCHEMA, hint=_HINT)
        part = _read_part(folder)
        self.files = tuple(filter(part.takes, self.manifest.files)) if part is not None else self.manifest.files
        """Those that the folder holds."""
        check_listing(folder, self.files, _COPY_HINT)

    def path(self, role: Role, *, device: int | None = None, variant: Variant | None = None) -> Path:
        """Name a file by what it is for; to use its content, :meth:`read` it."""
        return self.folder / self.manifest.file(role, device=device, variant=variant).name

    def read(self, role: Role, *, device: int | None = None, variant: Variant | None = None) -> bytes:
        """Read a file by what it is for.

        Raises:
            InputError: It cannot be read.
            ManifestError: It is not listed, or has another digest.
        """
        file = self.manifest.file(role, device=device, variant=variant)
        return read_bytes(self.folder / file.name, _COPY_HINT, sha256=file.sha256)

    def verify(self) -> None:
        """Check the digest of every file, before a bundle is signed or handed on.

        Raises:
            InputError: A file cannot be read.
            ManifestError: A file has another digest.
        """
        check_listing(self.folder, self.files, _COPY_HINT, with_digests=True)

    def fusion_head(self) -> FusionHead:
        """Read the fusion head.

        Raises:
            InputError: It cannot be read.
            ManifestError: It has another digest, or does not fit the submodels and classes.
        """
        return FusionHead.load(
            self.path("fusion"),
            sha256=self.manifest.file("fusion").sha256,
            dims=tuple(graph.output_dim for graph in self.manifest.submodels),
            classes=len(self.manifest.labels),
        )

    def calibration(self) -> Calibration | None:
        """Read from which score on an answer of some devices is certain; ``None`` if the bundle does not hold it.

        Raises:
            InputError: It cannot be read.
            ManifestError: It has another digest, or holds something else.
        """
        if not any(file.role == "calibration" for file in self.files):
            return None
        from devit_contract.artefacts.calibration import Calibration  # a device has no use for it

        return Calibration.load(
            self.path("calibration"),
            devices=len(self.manifest.submodels),
            sha256=self.manifest.file("calibration").sha256,
        )

    def golden(self) -> Tensors:
        """Read the golden set.

        It holds ``images`` uint8 ``(n, H, W, C)``, ``labels`` int64 ``(n,)``, ``features.<i>`` float32 ``(n, dim)`` of
        every submodel, ``logits`` float32 ``(n, K)`` of all of them fused, and, where there is a baseline,
        ``baseline.logits`` float32 ``(n, K)``.

        Raises:
            InputError: It cannot be read.
            ManifestError: It has another digest, other tensors, or numbers that are not finite.
        """
        path, manifest = self.path("golden"), self.manifest
        tensors = read_tensors(path, _HINT, sha256=manifest.file("golden").sha256)
        count = len(tensors["images"]) if tensors.get("images", np.empty(())).ndim else 0
        wide = {f"features.{device}": graph.output_dim for device, graph in enumerate(manifest.submodels)}
        wide |= {name: len(manifest.labels) for name in ("logits", "baseline.logits")}
        expected: dict[str, tuple[object, ...]] = {
            "images": ("uint8", count, *manifest.preprocess.shape),
            "labels": ("int64", count),
            **{name: ("float32", count, width) for name, width in wide.items()},
        }
        if "baseline.logits" not in tensors:
            del expected["baseline.logits"]
        for name, shape in expected.items():
            found = (str(tensors[name].dtype), *tensors[name].shape) if name in tensors else "none"
            if found != shape:
                raise ManifestError(f"{path}: expected {name} {shape}, found {found}: {_HINT}")
            if not np.isfinite(tensors[name]).all():
                raise ManifestError(f"{path}: expected finite numbers in {name}, found others: {_HINT}")
        return tensors


def write_part(folder: Path, submodels: tuple[int, ...]) -> Part:
    """Write ``part.json``, before a bundle's files."""
    part = Part(_PART_SCHEMA, submodels)
    write_json(folder / PART_NAME, part)
    return part


def _read_part(folder: Path) -> Part | None:
    path = folder / PART_NAME
    return read_json(path, Part, schema=_PART_SCHEMA, hint=_COPY_HINT) if path.exists() else None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, last of a bundle's files."""
    write_json(folder / FILE_NAME, manifest)
