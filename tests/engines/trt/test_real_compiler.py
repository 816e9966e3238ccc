"""NVIDIA's compiler, TensorRT-RTX, builds every variant of our models for GPUs that are not there; nothing runs.

What it refuses is told here, with its own words. It needs an environment of its own, made from the package index.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engines.trt.test_real_wheels import DEADLINE_S, environment, run

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import VARIANTS
from devit_decompose.models.model import Model, StemLayer, uniform_config
from devit_export.graph import export_features
from devit_export.variants import make_variant

SCRIPT = Path(__file__).with_name("compile_variants.py")
ROOT = Path(__file__).parents[3]
SELFTEST = ROOT / "engines" / "devit_engines" / "selftest" / "bundle"
SHIPPED = ROOT / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"
RTX = (
    "tensorrt-rtx-cu13==1.7.1.116",
    "tensorrt-rtx-cu13-libs==1.7.1.116",
    "tensorrt-rtx-cu13-bindings==1.7.1.116",
    "numpy==2.2.6",
    "msgspec",
    "safetensors",
)
TARGETS = ("SM86", "SM75", "SM80", "SM89", "SM120", "SM121")
"""All that TensorRT-RTX 1.7 compiles for; it has neither Orin's SM87 nor Thor's SM110."""
STEMS = {
    "vit": (StemLayer(64, 8, 8, batch_norm=False),),
    "deit": (StemLayer(64, 8, 8, batch_norm=False),),
    "cct": (StemLayer(32, 3, 2), StemLayer(64, 3, 2)),
}
pytestmark = [pytest.mark.nightly(part="installs"), pytest.mark.timeout(DEADLINE_S)]


def refusal(variant: str, target: str) -> str:
    """What TensorRT-RTX says of a variant; empty where it builds it.

    ``int8`` is written for ONNX Runtime: its zero points are where the numbers lie, and its biases are in INT32. Turing
    gets no product of two FP32 factors. Ada is the first with FP8.
    """
    if variant == "fp8-fp16" and target in ("SM75", "SM80", "SM86"):
        return "the model contains HW-specific datatypes: fp8_e4m3"
    if variant == "int8":
        return "Non-zero zero point is not supported|has type Int32 but must have type"
    if target == "SM75" and variant in ("fp32", "fp16-attn32"):
        return "FP32 GEMM is not supported"
    return ""


def write_variants(folder: Path) -> set[str]:
    """Write every variant of a small ViT, DeiT and CCT, and of the shipped bundle; their names without the suffix."""
    images = np.random.default_rng(1).integers(0, 256, (64, 32, 32, 3), np.uint8)
    for backbone, stem in STEMS.items():
        config = uniform_config(
            backbone=backbone,
            image_size=(32, 32, 3),
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            stem=stem,
            depth=3,
            heads=4,
            mlp_ratio=2.0,
            classes=(0, 1, 2),
        )
        torch.manual_seed(1)
        graph = export_features(Model(config).eval(), backbone)
        for variant in VARIANTS:
            made = make_variant(graph, variant, (), backbone, images)
            (folder / f"{backbone}.{variant}.onnx").write_bytes(made.content)
    shutil.copy(SELFTEST / "submodel-0.fp32.onnx", folder / "selftest.fp32.onnx")
    record = Bundle(SELFTEST).manifest.submodels[0]
    (folder / "nodes.json").write_text(json.dumps(record.fp32_nodes["fp16-attn32"]))
    for path in SHIPPED.glob("*.onnx"):
        shutil.copy(path, folder / f"shipped-{path.name}")
    return {path.stem for path in folder.glob("*.onnx")}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What became of each graph, by its name, and each GPU."""
    folder = tmp_path_factory.mktemp("compiler")
    names = write_variants(folder)
    python = environment(folder / "venv", *RTX)
    path = f"{ROOT / 'engines'}:{ROOT / 'contract'}"
    printed = run(python, "-W", "ignore", str(SCRIPT), str(folder), *TARGETS, PYTHONPATH=path)
    found = [json.loads(line) for line in printed.splitlines()]
    rows = {(f"{row['model']}.{row['variant']}", row["target"]): row for row in found}
    ours = {name for name in names if name.partition(".")[0] in STEMS}
    assert rows.keys() == {(name, target) for target in TARGETS for name in (names if target == TARGETS[0] else ours)}
    return rows


def test_every_variant_is_built_or_refused_for_the_reason_that_is_known(
    results: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for (name, target), row in results.items():
        words = refusal(row["variant"], target)
        print(name, target, row.get("refused") or f"{row['size_bytes'] / 1e6:.2f} MB in {row['build_s']} s")
        if words:
            assert any(part in row["refused"] for part in words.split("|")), (name, target, row)
            assert "\n" not in row["refused"]
        else:
            assert "refused" not in row, (name, target, row)
            assert row["warnings"] == [], (name, target, row)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_what_is_in_eight_bits_is_computed_so(kind: str, results: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Quantizing is part of kernels, and no product outside an attention is one of floats."""
    built = [row for row in results.values() if "refused" not in row and not row["model"].startswith("shipped")]
    assert {row["model"] for row in built if row["variant"] == f"{kind}-fp16"} == set(STEMS)
    for row in built:
        assert row[kind] == (row["variant"] == f"{kind}-fp16"), row
        assert (row["float_products"] == 0) == (row["variant"] in ("int8-fp16", "fp8-fp16")), row


def test_fp8_is_built_for_each_gpu_that_has_it(results: dict[tuple[str, str], dict[str, Any]]) -> None:
    built = {
        (row["model"], row["target"])
        for row in results.values()
        if row["variant"] == "fp8-fp16" and "refused" not in row
    }
    assert built == {(model, target) for model in STEMS for target in ("SM89", "SM120", "SM121")}
