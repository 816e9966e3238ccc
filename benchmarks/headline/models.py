"""The models of the paper's headline at random weights, as ONNX files in the user's cache; torch only makes them.

What a model answers does not matter here, and its latency does not depend on its weights.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from benchmarks.common.measure import cache_folder, tell
from benchmarks.network.bundles import Submodel, random_head, write_bundle

from devit_contract.artefacts.files import write_bytes
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store

if TYPE_CHECKING:
    from devit_decompose.models.model import Model

DEVICES, CLASSES, GOLDEN = 4, 1000, 2
OPSET = 17


@dataclass(frozen=True)
class Size:
    """How large the models are: as published, or stand-ins of the same architectures for a smoke test."""

    folder: str
    side: int | None
    """Pixels; ``None`` is the published one."""
    depth: int | None
    """Blocks of our own models."""


PUBLISHED = Size("headline", None, None)
SMALL = Size("headline-64px-1-block", 64, 1)


@dataclass(frozen=True)
class Family:
    """A large model, and what each of four devices runs instead."""

    name: str
    """As the paper calls the four."""
    undivided: str
    submodel: str
    """Both are names of :data:`devit_decompose.models.model.PRESETS`."""
    wanted: float | None = None
    """How many times faster the four have to be, where the goal says so."""


FAMILIES = (
    Family("DeViTs", "ViT-L/16", "ViT-Ti/16", 25.0),
    Family("DeDeiTs", "DeiT-B", "DeiT-Ti"),
    Family("DeCCTs", "CCT-14/7x2", "CCT-7/7x2"),
)


@dataclass(frozen=True)
class Single:
    """A model that one device runs alone."""

    name: str
    timm: str
    """timm's name of it; and of a small stand-in."""
    small: str
    side: int
    top1: float
    """Published for ImageNet-1K, %; nothing of it is measured here."""
    source: str
    wanted: float | None = None
    """How many times its latency has to be that of four DeDeiTs, where the goal says so."""


SINGLES = (
    Single("MobileViT-S", "mobilevit_s", "mobilevit_xxs", 256, 78.4, "arXiv 2110.02178", 1.0),
    Single("EfficientFormerV2-S2", "efficientformerv2_s2", "efficientformerv2_s0", 224, 81.6, "arXiv 2212.08059", 1.0),
    Single("DeiT-S", "deit_small_patch16_224", "deit_tiny_patch16_224", 224, 79.9, "the authors' repository"),
)


class Exported(msgspec.Struct, frozen=True):
    """What is known of a file."""

    macs: int
    """Multiply-accumulates of one image, head included."""
    image_shape: tuple[int, int, int]
    output_dim: int


@dataclass(frozen=True)
class ModelFile:
    """A model of one device: uint8 images to float32 logits."""

    path: Path
    exported: Exported


@dataclass(frozen=True)
class Cell:
    """Bundle and engines of four devices."""

    bundle: Path
    store: Path
    macs: int
    """Of one device."""
    image_shape: tuple[int, int, int]


def undivided(family: Family, size: Size) -> ModelFile:
    """Find the large model of a family, or make it."""

    def make() -> tuple[bytes, Exported]:
        from devit_decompose.pruning.cost import macs
        from devit_export.graph import export_logits

        model = _model(family.undivided, size)
        exported = Exported(macs(model.config), model.config.image_size, CLASSES)
        return export_logits(model, family.undivided).content, exported

    return _file(family.undivided, size, make)


def single(model: Single, size: Size) -> ModelFile:
    """Find a model of one device, or make it."""
    return _file(model.name, size, lambda: _from_timm(model, size))


def cell(family: Family, size: Size) -> Cell:
    """Find bundle and engines of a family's four submodels, or make them."""
    place = cache_folder() / size.folder
    bundle, store = place / family.name, place / f"{family.name}-engines"
    if not (bundle / "manifest.json").exists():
        _need_torch(f"four {family.submodel}")
        _write_cell(bundle, family, size)
    build_engines(Bundle(bundle), Store(store), backend="ort")
    manifest = Bundle(bundle).manifest
    return Cell(bundle, store, manifest.submodels[0].macs, manifest.preprocess.shape)


def _write_cell(bundle: Path, family: Family, size: Size) -> None:
    import torch

    from devit_decompose.pruning.cost import macs
    from devit_export.graph import export_features

    model = _model(family.submodel, size)
    golden = np.random.default_rng(2).integers(0, 256, (GOLDEN, *model.config.image_size), np.uint8)
    with torch.inference_mode():
        features = model.features(torch.from_numpy(golden)).numpy()
    graph = export_features(model, f"{family.submodel}.onnx").content
    submodel = Submodel(graph, features, macs(model.config, with_head=False))
    write_bundle(bundle, [submodel] * DEVICES, random_head((features.shape[1],) * DEVICES, CLASSES), CLASSES, golden)


def _file(name: str, size: Size, make: Any) -> ModelFile:  # noqa: ANN401
    path = cache_folder() / size.folder / f"{name.replace('/', '-')}.onnx"
    known = path.with_suffix(".json")
    if not known.exists():
        _need_torch(name)
        content, exported = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
        write_bytes(known, msgspec.json.encode(exported))  # last: where it is, the model is whole
    return ModelFile(path, msgspec.json.decode(known.read_bytes(), type=Exported))


def _need_torch(name: str) -> None:
    missing = [package for package in ("torch", "onnxsim", "timm") if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"{name}: exporting it, once, needs {', '.join(missing)}: pip install 'devit[export,timm]'")
    tell(f"headline: exporting {name} with random weights, once\n")


def _model(preset: str, size: Size) -> Model:
    import torch

    from devit_decompose.models.model import PRESETS, Model, uniform_config

    shape = PRESETS[preset]
    side = size.side or 224
    config = uniform_config(
        backbone=shape.backbone,
        image_size=(side, side, 3),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        stem=shape.stem,
        depth=size.depth or shape.depth,
        heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        classes=tuple(range(CLASSES)),
    )
    torch.manual_seed(1)
    return Model(config).eval()


def _from_timm(single: Single, size: Size) -> tuple[bytes, Exported]:
    """Export a model of timm, its pixels normalised inside as ours are.

    It is not simplified: onnxsim folds the half of a GELU into the next convolution, and ONNX Runtime then finds 1 of
    the 67 GELUs of EfficientFormerV2-S2, which makes it 1.16 times slower. All models deserve their best graph.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from devit_decompose.models.timm_models import import_timm

    side = size.side or single.side
    name = single.timm if size.side is None else single.small
    sized: dict[str, Any] = {} if name.startswith("mobilevit") else {"img_size": side}  # it takes any size
    torch.manual_seed(1)
    model = import_timm().create_model(name, exportable=True, **sized)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.model((images.permute(0, 3, 1, 2).float() - 127.5) / 127.5)
            return answer

    whole, shape = Whole().eval(), (side, side, 3)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        whole(torch.zeros((1, *shape), dtype=torch.uint8))
    with tempfile.TemporaryDirectory(prefix="devit-") as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself, and of timm's branches on shapes
        # The older exporter: these graphs take it seconds, and the newer one minutes.
        torch.onnx.export(
            whole,
            (torch.zeros((2, *shape), dtype=torch.uint8),),
            Path(place) / "model.onnx",
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
        content = (Path(place) / "model.onnx").read_bytes()
    return content, Exported(counter.get_total_flops() // 2, shape, CLASSES)
