"""INT8 from a bundle to a loaded engine, on doubles of TensorRT and CUDA: SIMULATED."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.engines.build_requests import ENDS, TINY
from tests.engines.changes import rewrite
from tests.engines.fakes import fake_tensorrt
from tests.engines.fakes.driver import FakeDriver
from tests.engines.fakes.fake_tensorrt import make_module

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.file_list import describe_file
from devit_contract.artefacts.manifest import Bundle
from devit_engines.board import Board
from devit_engines.building.build_all import BuiltEngine, build_engines, find_engine
from devit_engines.building.store import Store
from devit_export.int8.quantize import quantize
from devit_export.precision import lower_precision

FAKES = Path(__file__).parents[1] / "fakes"
ORIN = Board("NVIDIA Jetson Orin Nano Developer Kit", "sm_87", "36.4.3")
NAME = "submodel-0.int8-fp16.onnx"
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


def quantized(images: UInt8Array) -> onnx.ModelProto:
    """Submodel 0 of the tiny bundle with its products in INT8, calibrated by some images, and the rest in FP16."""
    plain = onnx.load(TINY / "submodel-0.fp32.onnx")
    return lower_precision(quantize(plain, images, (), "tiny", runtime="tensorrt"), (), "tiny")


def bundle_with(folder: Path, model: onnx.ModelProto) -> Bundle:
    """The tiny bundle with a graph as variant ``int8-fp16`` of submodel 0."""
    bundle = Bundle(Path(shutil.copytree(TINY, folder / "bundle")))
    onnx.save(model, bundle.folder / NAME)
    entry = describe_file(bundle.folder, NAME, "submodel", device=0, variant="int8-fp16")
    first, *others = bundle.manifest.submodels
    first = msgspec.structs.replace(first, variants=("int8-fp16", *first.variants))
    return rewrite(bundle, files=(*bundle.manifest.files, entry), submodels=(first, *others))


def golden_images() -> UInt8Array:
    images: UInt8Array = Bundle(TINY).golden()["images"]
    return images


def build(bundle: Bundle, store: Store) -> BuiltEngine:
    (built,) = build_engines(bundle, store, submodels=[0], board=ORIN, precision="int8")
    return built


def test_int8_is_built_checked_stored_and_loaded(version: str, tmp_path: Path, store: Store) -> None:
    bundle = bundle_with(tmp_path, quantized(golden_images()))
    built = build(bundle, store)
    record = built.record
    assert (record.key.variant, record.failed_variants) == ("int8-fp16", ())
    assert record.precision_method == ("int8 and fp16 flags" if version == "8.6.1" else "strongly typed")
    assert 0 < record.accuracy.relative_l2 < 0.15
    golden = bundle.golden()
    with find_engine(bundle, store, 0, board=ORIN, precision="int8").load() as engine:
        features = engine.features(golden["images"])
    assert np.linalg.norm(features - golden["features.0"]) < 0.15 * np.linalg.norm(golden["features.0"])


def swapped_scales() -> onnx.ModelProto:
    """Each channel of a weight with the scale of another one, and each tensor with that of another one."""
    model = quantized(golden_images())
    scales = [tensor for tensor in model.graph.initializer if tensor.name.endswith(".scale")]
    single = [numpy_helper.to_array(tensor) for tensor in scales if not tensor.dims]
    for tensor in scales:
        found = numpy_helper.to_array(tensor)[::-1].copy() if tensor.dims else single.pop()
        tensor.CopyFrom(numpy_helper.from_array(found, tensor.name))
    return model


@pytest.mark.parametrize(
    "broken", [lambda: quantized(np.zeros_like(golden_images())), swapped_scales], ids=["constant images", "scales"]
)
def test_a_broken_calibration_is_stopped_and_the_next_variant_taken(
    version: str, tmp_path: Path, store: Store, broken: Callable[[], onnx.ModelProto]
) -> None:
    built = build(bundle_with(tmp_path, broken()), store)
    assert built.record.key.variant == "fp16"
    (failed,) = built.record.failed_variants
    assert failed.variant == "int8-fp16"
    assert any("smallest cosine" in words for words in failed.failures)


def test_where_tensorrt_refuses_int8_the_next_variant_is_taken_and_its_words_told(
    version: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT 8.6 might: 8.4 took no weights in INT8 (microsoft/onnxruntime issue 11535)."""
    monkeypatch.setenv("FAKE_TRT_REFUSE", "int8")
    built = build(bundle_with(tmp_path, quantized(golden_images())), store)
    assert built.record.key.variant == "fp16"
    (failed,) = built.record.failed_variants
    assert failed.variant == "int8-fp16"
    assert "built no engine (could not find any implementation)" in failed.failures[0]
