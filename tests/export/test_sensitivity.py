"""The search keeps the fewest products, the worst ones first, and gives up where too few could be in INT8."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from devit_contract.arrays import UInt8Array
from devit_export.graph import ExportedGraph
from devit_export.int8.sensitivity import by_sensitivity, search
from devit_export.parity import ParityError
from devit_export.quantize import calibrate, quantizable, quantize

IMAGES: UInt8Array = np.random.default_rng(5).integers(0, 256, (12, 10, 14, 3), np.uint8)


def _in_int8(model: onnx.ModelProto) -> set[str]:
    return {
        tensor.name.removesuffix(".weight.int") for tensor in model.graph.initializer if ".weight.int" in tensor.name
    }


@pytest.fixture(scope="module")
def model(sample_graph: Callable[[str], ExportedGraph]) -> onnx.ModelProto:
    """One product has a loud input channel that no norm could smooth, so INT8 is hard on it."""
    spoiled = onnx.load_from_string(sample_graph("deit").content)
    last = [node for node in spoiled.graph.node if node.name in quantizable(spoiled, "x")][-1]
    (weight,) = (tensor for tensor in spoiled.graph.initializer if tensor.name == last.input[1])
    loud = numpy_helper.to_array(weight).copy()
    loud *= 30.0
    weight.CopyFrom(numpy_helper.from_array(loud, weight.name))
    return spoiled


def test_the_product_that_errs_most_comes_first(model: onnx.ModelProto) -> None:
    order = by_sensitivity(model, calibrate(model, IMAGES, "x"), IMAGES, "x")
    assert set(order) == set(quantizable(model, "x"))
    assert order[0] == quantizable(model, "x")[-1]


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 4])
def test_the_fewest_that_are_accepted_are_kept(model: onnx.ModelProto, needed: int) -> None:
    order = by_sensitivity(model, calibrate(model, IMAGES, "x"), IMAGES, "x")
    tried: list[int] = []

    def accept(graph: onnx.ModelProto) -> bool:
        tried.append(len(order) - len(_in_int8(graph)))
        return _in_int8(graph).isdisjoint(order[:needed])

    found, kept = search(model, IMAGES, accept, "x")
    assert kept == order[:needed]
    assert found == quantize(model, IMAGES, kept, "x")
    assert len(tried) <= 5


def test_a_graph_with_too_few_products_in_int8_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(ParityError, match=r"x: expected a graph that passes with at least 25% of its products in INT8"):
        search(model, IMAGES, lambda graph: len(_in_int8(graph)) < 2, "x")
