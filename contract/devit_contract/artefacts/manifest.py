"""``manifest.json``: what a bundle holds. The bundle is the only thing that travels to devices.

Files are listed by role, so that a new kind of file is a new entry and not a new schema:

========== ========= ====== ==================================================================
role       device    rung   content
========== ========= ====== ==================================================================
submodel   0 to N-1  yes    ONNX graph, uint8 images ``(batch, H, W, C)`` to features ``(batch, dim)``
baseline   absent    yes    ONNX graph of the undivided teacher, the same images to logits ``(batch, K)``
fusion     absent    absent safetensors: the linear head and the statistics for missing devices
golden     absent    absent safetensors: images, labels, features of every submodel, logits
========== ========= ====== ==================================================================
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np

from devit_contract.artefacts.files import Tensors, read_json, read_tensors, sha256_of_file, write_json
from devit_contract.artefacts.head import FusionHead
from devit_contract.errors import ManifestError

SCHEMA = 2
FILE_NAME = "manifest.json"
ROLES = ("submodel", "baseline", "fusion", "golden")
RUNGS = ("fp16", "fp16-attn32", "fp32")
"""Precision rungs from fast to exact: every LayerNorm in FP32; every attention too; everything."""
MAX_SUBMODELS = 64
"""As many devices as a message's mask has bits."""
_HINT = "make the bundle again with devit export"


class BundleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of the bundle."""

    role: str
    name: str
    """Plain file name, or one folder deep."""
    sha256: str
    size_bytes: int
    device: int | None = None
    rung: str | None = None

    def __post_init__(self) -> None:
        """Refuse names that lead out of the bundle, and words outside the tables."""
        if not re.fullmatch(r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)?[A-Za-z0-9_-][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: expected a plain file name, found {self.name!r}")
        if self.role not in ROLES:
            raise ValueError(f"role: expected one of {', '.join(ROLES)}, found {self.role!r}")
        if self.rung is not None and self.rung not in RUNGS:
            raise ValueError(f"rung: expected one of {', '.join(RUNGS)}, found {self.rung!r}")


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes the uint8 input; normalisation is inside the graph."""

    height: int
    width: int
    colour: str
    """``gray`` (one channel) or ``rgb`` (three)."""
    interpolation: str = "bicubic"
    """``nearest``, ``bilinear`` or ``bicubic``, as Pillow names them."""
    antialias: bool = True
    resize_to: int = 0
    """Shorter side in pixels before the centre crop; 0 resizes straight to height x width."""

    def __post_init__(self) -> None:
        """Refuse words outside the lists, and impossible sizes."""
        if self.colour not in ("gray", "rgb"):
            raise ValueError(f"colour: expected gray or rgb, found {self.colour!r}")
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(f"interpolation: expected nearest, bilinear or bicubic, found {self.interpolation!r}")
        if not (0 < self.height <= 4096 and 0 < self.width <= 4096):
            raise ValueError(f"height and width: expected 1 to 4096, found {self.height} x {self.width}")
        if self.resize_to != 0 and not max(self.height, self.width) <= self.resize_to <= 8192:
            raise ValueError(f"resize_to: expected 0, or from the crop's longer side to 8192, found {self.resize_to}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels of one image."""
        return self.height, self.width, 1 if self.colour == "gray" else 3


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far an exported graph is from the trained model, over the golden images."""

    rung: str
    max_abs_error: float
    """Largest absolute difference of any output number."""
    mean_abs_error: float
    nodes_before: int
    """Graph nodes before onnxsim."""
    nodes_after: int
    """Graph nodes of this rung, its Casts included."""
    casts: int
    """Cast nodes: that of the uint8 input, and one wherever numbers go from one float type to the other."""
    simplify_max_abs_error: float
    """Largest change of any output number by onnxsim, in FP32, over a few images of noise."""


class GraphRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the bundle, whatever its rungs."""

    output_dim: int
    """Feature dimension of a submodel, number of classes of the baseline."""
    macs: int
    """Multiply-accumulates of one image."""
    rungs: tuple[str, ...]
    """In the order in which an engine build tries them."""
    parity: tuple[Parity, ...]
    class_subset: tuple[int, ...]
    """Global labels it was first trained on; information only, its features serve all classes."""
    ranges: dict[str, float]
    """Of each float tensor of the FP32 graph, its largest absolute number over the golden images."""
    overflows: tuple[str, ...]
    """Those of them that may leave the range of FP16, by themselves or where they are squared or summed up."""
    attentions: int
    """Attention blocks, each of which TensorRT may fuse into one kernel."""
    fp32_nodes: dict[str, tuple[str, ...]]
    """Of each rung but ``fp32``, the nodes of the FP32 graph that it computes in FP32."""

    def __post_init__(self) -> None:
        """Refuse rungs outside the table, and FP32 nodes of rungs that are not there."""
        if unknown := [rung for rung in self.rungs if rung not in RUNGS]:
            raise ValueError(f"rungs: expected some of {', '.join(RUNGS)}, found {unknown[0]!r}")
        if unknown := [rung for rung in self.fp32_nodes if rung not in self.rungs]:
            raise ValueError(f"fp32_nodes: expected rungs {', '.join(self.rungs)}, found {unknown[0]!r}")


class SubsetAccuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy of the answer of one subset of devices, in 0 to 1."""

    mask: int
    """Bit i is set where device i is present."""
    validation: float
    test: float


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole file."""

    schema: int
    serial: int
    """Rises with every bundle of the same name: a device that takes signed ones alone takes no older one."""
    name: str
    code_version: str
    opset: int
    labels: tuple[str, ...]
    """Class names in the order of the logits."""
    preprocess: Preprocess
    missing: str
    """What stands in the place of a missing device: ``conditional-mean``."""
    submodels: tuple[GraphRecord, ...]
    subsets: tuple[SubsetAccuracy, ...]
    test_data: str
    """Name and size of the test set behind the accuracies."""
    files: tuple[BundleFile, ...]
    baseline: GraphRecord | None = None
    baseline_accuracy: SubsetAccuracy | None = None
    """The undivided teacher's; its mask is 0."""

    def __post_init__(self) -> None:
        """Refuse what later code could not use."""
        if self.missing != "conditional-mean":
            raise ValueError(f"missing: expected conditional-mean, found {self.missing!r}")
        if not 1 <= len(self.submodels) <= MAX_SUBMODELS:
            raise ValueError(f"submodels: expected 1 to {MAX_SUBMODELS}, found {len(self.submodels)}")

    def file(self, role: str, *, device: int | None = None, rung: str | None = None) -> BundleFile:
        """Find a file by what it is for.

        Raises:
            ManifestError: There is none.
        """
        for file in self.files:
            if (file.role, file.device, file.rung) == (role, device, rung):
                return file
        raise ManifestError(
            f"{FILE_NAME}: expected a file of role {role}, device {device}, rung {rung}, found none: {_HINT}"
        )

    def graph(self, role: str, device: int | None) -> GraphRecord:
        """Find the record of a submodel or of the baseline.

        Raises:
            ManifestError: There is none.
        """
        if role == "baseline" and self.baseline is not None:
            return self.baseline
        if role == "submodel" and device is not None and 0 <= device < len(self.submodels):
            return self.submodels[device]
        raise ManifestError(
            f"{FILE_NAME}: expected a {role} {'' if device is None else device}, "
            f"found submodels 0 to {len(self.submodels) - 1}: {_HINT}"
        )


class Bundle:
    """A bundle folder whose digests hold."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest and check the digest of every file that it lists.

        Raises:
            InputError: A file cannot be read.
            ManifestError: The format or a digest is broken.
        """
        self.folder = folder
        self.manifest = read_json(folder / FILE_NAME, Manifest, schema=SCHEMA, hint=_HINT)
        for file in self.manifest.files:
            found = sha256_of_file(folder / file.name)
            if found != file.sha256:
                raise ManifestError(
                    f"{folder / file.name}: expected sha256 {file.sha256[:12]}, found {found[:12]}: {_HINT}"
                )

    def path(self, role: str, *, device: int | None = None, rung: str | None = None) -> Path:
        """Path of a file by what it is for."""
        return self.folder / self.manifest.file(role, device=device, rung=rung).name

    def fusion_head(self) -> FusionHead:
        """Read the fusion head.

        Raises:
            ManifestError: It does not fit the submodels and classes.
        """
        head = FusionHead.load(self.path("fusion"), sha256=self.manifest.file("fusion").sha256)
        expected = (tuple(graph.output_dim for graph in self.manifest.submodels), len(self.manifest.labels))
        found = (head.dims, len(head.bias))
        if found != expected:
            raise ManifestError(
                f"{self.path('fusion')}: expected feature dims and classes {expected} as in the manifest, "
                f"found {found}: {_HINT}"
            )
        return head

    def golden(self) -> Tensors:
        """Read the golden set.

        Returns:
            ``images`` uint8 ``(n, H, W, C)``, ``labels`` int64 ``(n,)``, ``features.<i>`` float32 ``(n, dim)`` of
            every submodel, ``logits`` float32 ``(n, K)`` of all of them fused, and, where there is a baseline,
            ``baseline.logits`` float32 ``(n, K)``.
        """
        tensors, _ = read_tensors(self.path("golden"), _HINT, sha256=self.manifest.file("golden").sha256)
        count = len(tensors.get("images", np.empty(0)))
        expected = {"images", "labels", "logits"} | {f"features.{i}" for i in range(len(self.manifest.submodels))}
        if not expected <= tensors.keys() or any(len(tensors[name]) != count for name in expected):
            raise ManifestError(
                f"{self.path('golden')}: expected {sorted(expected)} of one length, found others: {_HINT}"
            )
        return tensors


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, last of a bundle's files."""
    write_json(folder / FILE_NAME, manifest)


def describe_file(
    folder: Path, name: str, role: str, *, device: int | None = None, rung: str | None = None
) -> BundleFile:
    """Digest a written file and describe it for the manifest."""
    path = folder / name
    return BundleFile(role, name, sha256_of_file(path), path.stat().st_size, device, rung)
