"""Submodels of DeiT-Tiny's size in ONNX Runtime: client to answer, against the bare cell with the same engines.

python -m benchmarks.network.tiny

The bundle is made at the first run, which needs torch and onnx, and kept in the user's cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import Report, alternate, arguments, asked, cache_folder, p50, ratio, show, tell
from benchmarks.network.bare import BareCell
from benchmarks.network.bundles import Submodel, random_head, write_bundle
from benchmarks.network.makers import built

from devit_contract.artefacts.manifest import Bundle
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_pipeline.local_cell import LocalCell, LocalDevice

PRESET = "ViT-Ti/16"
"""DeiT-Tiny without the token of distillation: 12 blocks, width 192, 224 px."""
DEVICES, CLASSES, SIDE, GOLDEN = 2, 100, 224, 8
WANTED = 1.05
ABOUT = f"{DEVICES} agents with submodels of DeiT-Tiny's size, ONNX Runtime, one thread: client to answer"


def run(duration_s: float, cache: Path) -> Report:
    """Measure both sides in turns."""
    bundle, store = prepared(cache)
    watch = Watch()
    shape = (SIDE, SIDE, 3)
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    devices = [LocalDevice(f"device{index}", index) for index in range(DEVICES)]
    bare_engines = [partial(built, bundle, store, index) for index in range(DEVICES)]
    with tempfile.TemporaryDirectory(prefix="devit-") as place:
        cell = LocalCell(bundle, Path(place) / "cell", devices, store=store, deadline_ms=5000)
        with cell, cell.client() as client, BareCell(bare_engines, shape, CLASSES * 4) as bare:
            raw = image.tobytes()
            devit = partial(asked, lambda: client.classify(image).latency_s, 0.0)
            other = partial(asked, lambda: bare.ask(raw), 0.0)
            ours, theirs = alternate("tiny", (devit, other), duration_s)
    return Report(
        benchmark="tiny",
        about=ABOUT,
        other="bare cell",
        settings={"model": PRESET, "image bytes": image.nbytes, "threads": 1, "CURVE": "both sides"},
        figures=(ratio("client to answer p50", p50, ours, theirs, WANTED),),
        machine=watch.machine(),
    )


def prepared(cache: Path) -> tuple[Path, Path]:
    """Find the bundle and the engines of it, or make them."""
    bundle, store = cache / "tiny-bundle", cache / "tiny-engines"
    if not (bundle / "manifest.json").exists():
        tell("tiny: exporting a model with random weights, once\n")
        _export(bundle)
    build_engines(Bundle(bundle), Store(store), backend="ort")
    return bundle, store


def _export(folder: Path) -> None:
    """Export one model at random weights for both devices: what it answers does not matter here."""
    import torch

    from devit_decompose.models.model import PRESETS, Model, uniform_config
    from devit_decompose.pruning.cost import macs
    from devit_export.graph import export_features

    preset = PRESETS[PRESET]
    config = uniform_config(
        backbone=preset.backbone,
        image_size=(SIDE, SIDE, 3),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        stem=preset.stem,
        depth=preset.depth,
        heads=preset.heads,
        mlp_ratio=preset.mlp_ratio,
        classes=tuple(range(CLASSES)),
    )
    torch.manual_seed(1)
    model = Model(config).eval()
    golden = np.random.default_rng(2).integers(0, 256, (GOLDEN, SIDE, SIDE, 3), np.uint8)
    with torch.inference_mode():
        features = model.features(torch.from_numpy(golden)).numpy()
    submodel = Submodel(export_features(model, "submodel.fp32.onnx").content, features, macs(config, with_head=False))
    head = random_head((features.shape[1],) * DEVICES, CLASSES)
    write_bundle(folder, [submodel] * DEVICES, head, CLASSES, golden)


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 60.0, "how long each side is measured")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="where the bundle and its engines are kept")
    chosen = parser.parse_args(argv)
    show(run(chosen.duration, chosen.cache), chosen)


if __name__ == "__main__":
    main()
