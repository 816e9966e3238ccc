"""INT8 on this device, by the real ONNX Runtime: what was calibrated well is taken, what was not gives way to FP32."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.engines.changes import rewrite
from tests.support.int8 import swap_scales

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.file_list import describe_file
from devit_contract.artefacts.files import read_tensors
from devit_contract.artefacts.manifest import Bundle
from devit_engines.board import Board
from devit_engines.building.build_all import build_engines, find_engine, load_engine
from devit_engines.building.store import Store
from devit_export.int8.quantize import quantize

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"
NAME = "submodel-0.int8.onnx"


@pytest.fixture(scope="module")
def images() -> UInt8Array:
    kept: UInt8Array = read_tensors(ROOT / "examples" / "fashion-mnist" / "quantization.safetensors", "")["images"]
    return kept[:200]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(Path(shutil.copytree(SHIPPED, tmp_path / "bundle")))


def test_int8_passes_and_is_what_this_device_runs(bundle: Bundle, store: Store, board: Board) -> None:
    (built,) = build_engines(bundle, store, submodels=[0], backend="ort", precision="int8", board=board)
    record = built.record
    assert (record.key.variant, record.failed_variants, record.accuracy.flips_above_margin) == ("int8", (), 0)
    assert record.accuracy.cosine_median >= 0.995
    assert record.file.sha256 == bundle.manifest.file("submodel", device=0, variant="int8").sha256
    find_engine(bundle, store, 0, backend="ort", precision="int8", board=board).load().close()


def constant(plain: onnx.ModelProto, images: UInt8Array) -> onnx.ModelProto:
    return quantize(plain, np.full_like(images, 7), (), NAME)


def outlier(plain: onnx.ModelProto, images: UInt8Array) -> onnx.ModelProto:
    """One channel of the values a hundred times as large, and its row of the projection as much smaller."""
    loud = onnx.ModelProto()
    loud.CopyFrom(plain)
    weights = {tensor.name: tensor for tensor in loud.graph.initializer}
    before, behind = (
        next(node.input[1] for node in loud.graph.node if node.op_type == kind and node.input[1] in weights)
        for kind in ("MatMul", "Gemm")
    )
    for name, place, factor in ((before, np.s_[:, 128 + 5], 100.0), (behind, np.s_[5], 0.01)):
        array = numpy_helper.to_array(weights[name]).copy()
        array[place] *= np.float32(factor)
        weights[name].CopyFrom(numpy_helper.from_array(array, name))
    return quantize(loud, images, (), NAME)


def swapped(plain: onnx.ModelProto, images: UInt8Array) -> onnx.ModelProto:
    return swap_scales(quantize(plain, images, (), NAME))


@pytest.mark.parametrize("broken", [constant, outlier, swapped])
def test_a_broken_calibration_gives_way_to_the_next_variant_and_is_named(
    broken: Callable[[onnx.ModelProto, UInt8Array], onnx.ModelProto],
    bundle: Bundle,
    store: Store,
    board: Board,
    images: UInt8Array,
) -> None:
    plain = onnx.load_from_string(bundle.read("submodel", device=0, variant="fp32"))
    onnx.save(broken(plain, images), bundle.folder / NAME)
    entry = describe_file(bundle.folder, NAME, "submodel", device=0, variant="int8")
    files = tuple(entry if file.name == NAME else file for file in bundle.manifest.files)
    bundle = rewrite(bundle, files=files)
    (built,) = build_engines(bundle, store, submodels=[0], backend="ort", precision="int8", board=board)
    assert built.record.key.variant == "fp32"
    (failed,) = built.record.failed_variants
    assert failed.variant == "int8"
    assert "smallest cosine" in failed.failures[0]
    load_engine(bundle, store, 0, backend="ort", board=board).close()
