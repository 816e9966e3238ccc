"""A graph that FP16 ruins without an error, forced past the exporter: the gate on the device still stops it.

Doubles of TensorRT and CUDA, SIMULATED; the FP16 arithmetic is numpy's, which overflows as a GPU's does.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.engines.build_requests import ENDS
from tests.engines.fakes import fake_tensorrt
from tests.engines.fakes.driver import FakeDriver
from tests.engines.fakes.fake_tensorrt import make_module

from devit_contract.artefacts.file_list import describe_file
from devit_contract.artefacts.files import write_bytes, write_tensors
from devit_contract.artefacts.head import FusionHead, FusionStatistics
from devit_contract.artefacts.manifest import (
    SCHEMA,
    Bundle,
    GraphRecord,
    Manifest,
    Parity,
    Preprocess,
    SubsetAccuracy,
    write_manifest,
)
from devit_contract.choices import Variant
from devit_engines.board import Board
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_export.precision import full_nodes, lower_precision
from devit_export.ranges import scan_ranges
from devit_export.rules import Graph
from devit_export.variants import kept_nodes

FAKES = Path(__file__).parents[1] / "fakes"
BROKEN = Path(__file__).parents[2] / "export" / "broken.py"
VARIANTS: tuple[Variant, ...] = ("fp16", "fp16-attn32", "fp32")
ORIN = Board("NVIDIA Jetson Orin Nano Developer Kit", "sm_87", "36.4.3")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=ENDS)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device with that TensorRT."""
    monkeypatch.setenv("PYTHONPATH", str(FAKES / "site"))
    monkeypatch.setenv("FAKE_TRT_VERSION", request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", make_module(request.param))
    monkeypatch.setattr("devit_engines.trt.plan.package_version", lambda package: request.param)
    driver = FakeDriver().install(monkeypatch)
    monkeypatch.setattr(fake_tensorrt, "MEMORY", FakeDriver.current)
    yield request.param
    driver.check()
    assert driver.alive() == []


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """One submodel whose variant fp16 keeps nothing in FP32, and whose variant fp16-attn32 keeps what overflows."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    plain, images = runpy.run_path(str(BROKEN))["broken_graph"]()
    content = plain.SerializeToString()
    ranges = scan_ranges("broken", content, images)
    kept = {"fp16": (), "fp16-attn32": tuple(kept_nodes(Graph(plain, "broken"), "fp16", ranges.overflows))}
    assert kept["fp16-attn32"]
    files = []
    for variant in VARIANTS:
        model = plain if variant == "fp32" else lower_precision(plain, kept[variant], "broken")
        write_bytes(folder / f"submodel-0.{variant}.onnx", model.SerializeToString())
        files.append(describe_file(folder, f"submodel-0.{variant}.onnx", "submodel", device=0, variant=variant))
    features = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"images": images})[
        0
    ]
    rng = np.random.default_rng(5)
    head = FusionHead(
        (features.shape[1],),
        rng.normal(size=(3, features.shape[1])),
        np.zeros(3),
        FusionStatistics(features.mean(axis=0).astype(np.float64), np.cov(features, rowvar=False)),
    )
    head.save(folder / "fusion.safetensors")
    logits = (features @ head.weight.T).astype(np.float32)
    golden = {"images": images, "labels": logits.argmax(axis=1), "features.0": features, "logits": logits}
    write_tensors(folder / "golden.safetensors", golden)
    files += [describe_file(folder, f"{name}.safetensors", name) for name in ("fusion", "golden")]
    record = GraphRecord(
        output_dim=features.shape[1],
        macs=1,
        variants=VARIANTS,
        parity=tuple(Parity(variant, 0.0, 0.0, 1, 1, 1, 0.0) for variant in VARIANTS),
        class_subset=(0, 1, 2),
        ranges=ranges.maxima,
        overflows=ranges.overflows,
        attentions=0,
        fp32_nodes={variant: full_nodes(plain, nodes, "broken") for variant, nodes in kept.items()},
    )
    manifest = Manifest(
        schema=SCHEMA,
        serial=1,
        name="broken",
        code_version="0.1.0",
        opset=17,
        labels=("a", "b", "c"),
        preprocess=Preprocess(height=images.shape[1], width=images.shape[2], colour="rgb"),
        missing="conditional-mean",
        submodels=(record,),
        subsets=(SubsetAccuracy(1, 1.0, 1.0),),
        test_data="none",
        files=tuple(files),
    )
    write_manifest(folder, manifest)
    return Bundle(folder)


def test_the_check_fails_the_first_variant_and_passes_the_one_that_repairs_it(
    version: str, bundle: Bundle, store: Store
) -> None:
    (built,) = build_engines(bundle, store, board=ORIN)
    assert built.record.key.variant == "fp16-attn32"
    record, _ = store.read(built.digest)
    (failed,) = record.failed_variants
    assert failed.variant == "fp16"
    assert any("smallest cosine" in words for words in failed.failures)
    assert failed.latency.runs >= 10
    assert [entry.digest for entry in store.entries()] == [built.digest]  # what failed was never kept


def test_onnx_runtime_would_have_hidden_it(bundle: Bundle) -> None:
    """Its CPU computes the same FP16 graph in FP32."""
    golden = bundle.golden()
    content = bundle.path("submodel", device=0, variant="fp16").read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    hidden = session.run(None, {"images": golden["images"]})[0]
    evaluator = onnx.reference.ReferenceEvaluator(onnx.load_from_string(content))
    with np.errstate(all="ignore"):
        shown = evaluator.run(None, {"images": golden["images"]})[0]
    error = [
        np.linalg.norm(found - golden["features.0"]) / np.linalg.norm(golden["features.0"]) for found in (hidden, shown)
    ]
    print(f"relative L2 error: ONNX Runtime {error[0]:.2%}, half precision {error[1]:.2%}")
    assert error[0] < 0.5 * error[1]
