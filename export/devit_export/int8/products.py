"""Finds the nodes of a graph that can compute in eight bits: what they multiply, and by what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from devit_contract.arrays import Float32Array
from devit_export.rules import Graph

Runtime = Literal["ort", "tensorrt", "tensorrt-fp8"]
"""What a graph is written for: INT8 as ONNX Runtime takes it, INT8 as TensorRT does, or FP8, as TensorRT alone does."""
_AXES = {"MatMul": (1, 0), "Gemm": (1, 0), "Conv": (0, 1)}
"""Axes of a weight: of the results, of what comes in."""
_FEWEST_SUMMED = 32
_PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "group": 1}
"""Attributes that may have this value alone."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies what comes in by a weight."""

    node: onnx.NodeProto
    weight: Float32Array
    result_axis: int
    """Of the weight: along the channels of the result."""
    input_axis: int
    """Of the weight: along the channels of what comes in."""

    @property
    def name(self) -> str:
        """Name of the node."""
        return str(self.node.name)

    @property
    def taken(self) -> str:
        """The tensor that comes in."""
        return str(self.node.input[0])

    @property
    def taken_axis(self) -> int:
        """Axis of the channels in what comes in."""
        return 1 if self.node.op_type == "Conv" else -1

    @property
    def gains(self) -> Float32Array:
        """How much each channel of what comes in counts: its squared weights, ``(channels,)``."""
        gains: Float32Array = np.square(self.weight).sum(axis=other_axes(self.weight, self.input_axis))
        return gains


def other_axes(array: Float32Array, axis: int) -> tuple[int, ...]:
    """List all axes but one."""
    return tuple(other for other in range(array.ndim) if other != axis)


def along(array: Float32Array, axis: int, values: Float32Array) -> Float32Array:
    """Shape values ``(channels,)`` so that they meet one axis of an array."""
    return values.reshape([-1 if other == axis else 1 for other in range(array.ndim)])


def products(graph: Graph, runtime: Runtime) -> Iterator[Product]:
    """Yield the nodes of an FP32 graph that can compute in eight bits, in order.

    A product with one channel, such as the mean that centres a stem, is not worth it, and neither is a convolution that
    sums few numbers: the shipped submodels take 1.10 times as long with their first one in INT8, of 3 x 3 pixels. ONNX
    Runtime computes a convolution in INT8 only if one node alone takes its result.
    """
    for node in graph.nodes:
        if node.op_type not in _AXES or node.input[1] not in graph.constants:
            continue
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if any(attributes.get(key, value) != value for key, value in _PLAIN.items()):
            continue
        weight = numpy_helper.to_array(graph.constants[node.input[1]])
        result, taken = _AXES[node.op_type]
        if attributes.get("transB"):
            result, taken = taken, result
        product = Product(node, weight, result, taken)
        if weight.shape[result] > 1 and _pays(graph, product, runtime):
            yield product


def _pays(graph: Graph, product: Product, runtime: Runtime) -> bool:
    if product.node.op_type != "Conv":
        return product.weight.ndim == 2
    is_alone = len(graph.consumers(result_of(graph, product.node))) == 1
    return product.weight[0].size >= _FEWEST_SUMMED and (is_alone or runtime != "ort")


def result_of(graph: Graph, convolution: onnx.NodeProto) -> str:
    """Name the tensor that a convolution gives, past a ReLU if that alone takes it."""
    followers = graph.consumers(convolution.output[0])
    alone = len(followers) == 1 and followers[0].op_type == "Relu"
    return str(followers[0].output[0] if alone else convolution.output[0])
