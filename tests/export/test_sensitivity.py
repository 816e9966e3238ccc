"""The search keeps the fewest products, the worst ones first, and gives up where too few could be in INT8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from devit_contract.arrays import UInt8Array
from devit_export.int8.quantize import calibrate, quantizable, quantize
from devit_export.int8.sensitivity import by_sensitivity, search
from devit_export.parity import ParityError

WIDTH, PRODUCTS = 24, 8
IMAGES: UInt8Array = np.random.default_rng(5).integers(0, 256, (12, 2, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """Products side by side, added up, each ten times as large as the one before: each errs more."""
    rng = np.random.default_rng(6)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "flat"], ["sum0"], name="flatten"),
    ]
    stored = {"flat": np.array([0, WIDTH], np.int64)}
    for place in range(PRODUCTS):
        stored[f"w{place}"] = (rng.normal(0.0, 1.0, (WIDTH, WIDTH)) * 10.0**place).astype(np.float32)
        nodes.append(helper.make_node("MatMul", ["sum0", f"w{place}"], [f"y{place}"], name=f"product{place}"))
        target = "features" if place == PRODUCTS - 1 else f"sum{place + 1}"
        source = "sum0" if place == 0 else f"sum{place}"
        nodes.append(helper.make_node("Add", [source, f"y{place}"], [target], name=f"add{place}"))
    graph = helper.make_graph(
        nodes,
        "side by side",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 2, 4, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


ORDER = tuple(f"product{place}" for place in reversed(range(PRODUCTS)))


def _in_int8(model: onnx.ModelProto) -> set[str]:
    names = (tensor.name for tensor in model.graph.initializer)
    return {name.removesuffix(".weight.int") for name in names if name.endswith(".weight.int")}


def test_the_product_that_errs_most_comes_first(model: onnx.ModelProto) -> None:
    assert set(quantizable(model, "x")) == set(ORDER)
    assert by_sensitivity(model, calibrate(model, IMAGES, "x"), IMAGES, "x") == ORDER


@pytest.mark.parametrize("needed", range(PRODUCTS - 1))
def test_the_fewest_that_are_accepted_are_kept(model: onnx.ModelProto, needed: int) -> None:
    tried: list[int] = []

    def accept(graph: onnx.ModelProto) -> bool:
        tried.append(PRODUCTS - len(_in_int8(graph)))
        return _in_int8(graph).isdisjoint(ORDER[:needed])

    found, kept = search(model, IMAGES, accept, "x")
    assert kept == ORDER[:needed]
    assert found == quantize(model, IMAGES, kept, "x")
    assert len(tried) <= 5


def test_a_graph_with_too_few_products_in_int8_is_refused(model: onnx.ModelProto) -> None:
    """Two are a quarter."""
    with pytest.raises(ParityError, match=r"x: expected a graph that passes with at least 25% of its products in INT8"):
        search(model, IMAGES, lambda graph: len(_in_int8(graph)) < 2, "x")
