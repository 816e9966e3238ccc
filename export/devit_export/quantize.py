"""Writes an FP32 graph with its products in INT8: a QuantizeLinear and a DequantizeLinear before each factor.

Weights are stored in INT8, symmetric, with a scale for each channel of the product; what comes in has one scale. Norms,
softmax, GELU, the sums of the residual stream and the products inside an attention stay as they are. (Those products in
INT8 would save 4 % of a DeiT-S on ONNX Runtime, and keep TensorRT from fusing the attention.)

What takes the two graphs that this writes wants them otherwise:

============ ================================================ ==========================================================
runtime      ``ort``                                          ``tensorrt``
============ ================================================ ==========================================================
inputs       any zero point: what is never negative has 256   zero point 0, as TensorRT takes no other
             steps, not 128
weights      7 bits: without VNNI, x86 adds two products of   8 bits
             8 bits in 16 bits, and cuts the sum off
biases       INT32 with the product of both scales, as ONNX   float
             Runtime has no kernel with a float bias
convolutions the result is quantized too, for the same reason the result is float
scales       float32                                          numbers that FP16 holds, as they may become FP16
============ ================================================ ==========================================================
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.errors import ExportError
from devit_export.activations import Activation, collect
from devit_export.rules import Graph

Runtime = Literal["ort", "tensorrt"]
"""What the graph is written for."""
_LIMITS: dict[Runtime, int] = {"ort": 64, "tensorrt": 127}
"""Largest weight."""
_LOWEST, _HIGHEST = -128, 127
_SMALLEST_HALF = 2.0**-14
"""Of FP16's full precision."""
_SHRINKS = np.linspace(1.0, 0.3, 15)
"""Of a range: how much of it is kept, the rest being cut off."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies what comes in by a weight."""

    node: onnx.NodeProto
    weight: Float32Array
    channel_axis: int
    """Of the weight: along the results."""
    input_axis: int
    """Of the weight: along what comes in."""

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
        axes = tuple(axis for axis in range(self.weight.ndim) if axis != self.input_axis)
        gains: Float32Array = np.square(self.weight).sum(axis=axes)
        return gains


def products(graph: Graph) -> list[Product]:
    """List the nodes of an FP32 graph that can compute in INT8, in order.

    A product with one channel, such as the mean that centres a stem, is not worth it.
    """
    found = []
    for node in graph.nodes:
        if node.op_type not in _AXES or len(node.input) < 2 or node.input[1] not in graph.constants:
            continue
        numbers = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "group": 1}
        if any(numbers.get(key, value) != value for key, value in plain.items()):
            continue
        weight = numpy_helper.to_array(graph.constants[node.input[1]])
        channels, inputs = _AXES[node.op_type]
        if numbers.get("transB"):
            channels, inputs = inputs, channels
        if weight.ndim >= 2 and (node.op_type == "Conv" or weight.ndim == 2) and weight.shape[channels] > 1:
            found.append(Product(node, weight, channels, inputs))
    return found


_AXES = {"MatMul": (1, 0), "Gemm": (1, 0), "Conv": (0, 1)}
"""Axes of a weight: of the results, of what comes in."""


def quantizable(model: onnx.ModelProto, name: str) -> tuple[str, ...]:
    """List the nodes of an FP32 graph that :func:`quantize` writes in INT8."""
    return tuple(str(product.node.name) for product in products(Graph(model, name)))


def quantize(
    model: onnx.ModelProto, images: UInt8Array, keep: Collection[str], name: str, *, runtime: Runtime = "ort"
) -> onnx.ModelProto:
    """Write an FP32 graph again with its products in INT8.

    Args:
        model: In FP32, as exported.
        images: Calibration images ``(n, H, W, C)``, from which the ranges of what comes in are found.
        keep: Nodes that stay as they are.
        name: The graph's file name, for messages.
        runtime: What the graph is written for.

    Raises:
        ExportError: A name in ``keep`` has no such node, the graph cannot be run, or its numbers are not finite.
    """
    return write(model, calibrate(model, images, name), keep, name, runtime=runtime)


def calibrate(model: onnx.ModelProto, images: UInt8Array, name: str) -> dict[str, Activation]:
    """Collect what :func:`write` has to know of each tensor."""
    graph = Graph(model, name)
    axes: dict[str, int] = {}
    for product in products(graph):
        axes[product.taken] = product.taken_axis
        if product.node.op_type == "Conv":
            axes[_result(graph, product.node)] = 1
    return collect(model, images, axes, name)


def write(
    model: onnx.ModelProto,
    activations: Mapping[str, Activation],
    keep: Collection[str],
    name: str,
    *,
    runtime: Runtime = "ort",
) -> onnx.ModelProto:
    """Write an FP32 graph again with its products in INT8; see :func:`quantize`."""
    graph = Graph(model, name)
    found = products(graph)
    if unknown := sorted(set(keep) - {product.node.name for product in found}):
        raise ExportError(f"{name}: expected nodes that could be in INT8 to stay as they are, found {unknown[0]}")
    chosen = [product for product in found if product.node.name not in keep]
    return _Writer(graph, chosen, activations, runtime).write()


def weight_scales(weight: Float32Array, axis: int, runtime: Runtime) -> Float32Array:
    """Find the scale of each channel of a weight, ``(channels,)``.

    A channel of zeros, or one tiny beside the largest, takes a share of the largest's: a scale of 0 is none, and a bias
    counted in its steps would not fit into INT32.
    """
    peaks = np.abs(weight).max(axis=tuple(other for other in range(weight.ndim) if other != axis))
    largest = float(peaks.max()) or 1.0
    return _tidy(np.maximum(peaks, largest * 2.0**-16) / _LIMITS[runtime], runtime)


def input_scale(activation: Activation, gains: Float32Array, runtime: Runtime) -> tuple[float, int]:
    """Choose the scale and the zero point of what comes in.

    A range that leaves out some rare large numbers is finer for all others. Among some ranges, that one is taken which
    makes the least squared error in the results, by the rows seen.

    Args:
        activation: What was seen of it.
        gains: How much each channel counts, ``(channels,)``.
        runtime: What it is for.
    """
    lowest, highest = min(activation.lowest, 0.0), max(activation.highest, 0.0)
    if runtime == "tensorrt":
        highest = max(-lowest, highest)
        lowest = -highest
    if lowest == highest:
        return 1.0, 0
    tried = [_steps(shrink * lowest, shrink * highest, runtime) for shrink in _SHRINKS]
    errors = [_error(activation.rows, gains, scale, zero) for scale, zero in tried]
    return tried[int(np.argmin(errors))]


def _steps(lowest: float, highest: float, runtime: Runtime) -> tuple[float, int]:
    if runtime == "tensorrt":
        return float(_tidy(np.float32(highest / _HIGHEST), runtime)), 0
    scale = float(_tidy(np.float32((highest - lowest) / (_HIGHEST - _LOWEST)), runtime))
    return scale, int(np.clip(np.rint(_LOWEST - lowest / scale), _LOWEST, _HIGHEST))


def _error(rows: Float32Array, gains: Float32Array, scale: float, zero: int) -> float:
    steps = np.clip(np.rint(rows / np.float32(scale)), _LOWEST - zero, _HIGHEST - zero)
    return float((np.square(steps * np.float32(scale) - rows).mean(axis=0, dtype=np.float64) * gains).sum())


def _tidy(scale: npt.NDArray[np.floating] | np.float32, runtime: Runtime) -> Float32Array:
    """Round scales to the 11 digits of FP16, which also hides the rounding of another CPU."""
    mantissa, exponent = np.frexp(scale)
    tidy = np.ldexp(np.rint(mantissa * 2048) / 2048, exponent).astype(np.float32)
    return np.maximum(tidy, np.float32(_SMALLEST_HALF)) if runtime == "tensorrt" else tidy


def _result(graph: Graph, node: onnx.NodeProto) -> str:
    """Name the tensor that a convolution gives, past a ReLU that alone takes it."""
    followers = graph.consumers(node.output[0])
    alone = len(followers) == 1 and followers[0].op_type == "Relu"
    return str(followers[0].output[0] if alone else node.output[0])


class _Writer:
    """Writes the graph again, in order, and scales and weights when they are first needed."""

    def __init__(
        self, graph: Graph, chosen: list[Product], activations: Mapping[str, Activation], runtime: Runtime
    ) -> None:
        self.graph = graph
        self.chosen = {product.node.name: product for product in chosen}
        self.runtime = runtime
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, TensorProto] = {}
        self.dequantized: set[str] = set()
        """Tensors that exist in INT8 by now."""
        gains: dict[str, Float32Array] = {}
        self.results: set[str] = set()
        """Tensors that every node takes in INT8."""
        for product in chosen:
            gains[product.taken] = product.gains + gains.get(product.taken, np.float32(0.0))
            if product.node.op_type == "Conv" and runtime == "ort":
                self.results.add(_result(graph, product.node))
        for tensor in self.results:
            gains.setdefault(tensor, np.ones(activations[tensor].rows.shape[1], np.float32))
        self.scales = {tensor: input_scale(activations[tensor], gain, runtime) for tensor, gain in gains.items()}

    def write(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for place, tensor in enumerate(node.input):
                if tensor in self.results:
                    copy.input[place] = self._taken(tensor)
            if node.name in self.chosen:
                self._into_int8(copy, self.chosen[node.name])
            self.nodes.append(copy)
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        used = {tensor for node in self.nodes for tensor in node.input}
        kept = [tensor for tensor in self.graph.model.graph.initializer if tensor.name in used]
        for field in (model.graph.node, model.graph.initializer, model.graph.value_info):
            del field[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend([*kept, *self.stored.values()])
        return model

    def _into_int8(self, copy: onnx.NodeProto, product: Product) -> None:
        copy.input[0] = self._taken(product.taken)
        weight, axis = product.weight, product.channel_axis
        scales = weight_scales(weight, axis, self.runtime)
        bias = product.node.input[2] if len(product.node.input) > 2 else ""
        if bias and self.runtime == "ort":
            numbers = numpy_helper.to_array(self.graph.constants[bias])
            input_scale = np.float32(self.scales[product.taken][0])
            scales = np.maximum(scales, (np.abs(numbers) / (input_scale * 2.0**30)).astype(np.float32))
            steps = np.rint(numbers / (input_scale * scales).astype(np.float64)).astype(np.int32)
            copy.input[2] = self._constant(f"{product.node.name}.bias", steps, input_scale * scales, axis=0)
        shape = [-1 if other == axis else 1 for other in range(weight.ndim)]
        limit = _LIMITS[self.runtime]
        steps = np.clip(np.rint(weight / scales.reshape(shape)), -limit, limit).astype(np.int8)
        copy.input[1] = self._constant(f"{product.node.name}.weight", steps, scales, axis)

    def _taken(self, tensor: str) -> str:
        """Name a computed tensor that has been in INT8, and write that first if needed."""
        if tensor not in self.dequantized:
            self.dequantized.add(tensor)
            scale, zero = self.scales[tensor]
            self._store(f"{tensor}.scale", np.float32(scale))
            self._store(f"{tensor}.zero", np.int8(zero))
            self._add("QuantizeLinear", tensor, tensor, f"{tensor}.int8")
            self._add("DequantizeLinear", f"{tensor}.int8", tensor, f"{tensor}.dequantized")
        return f"{tensor}.dequantized"

    def _constant(self, name: str, steps: npt.NDArray[np.signedinteger], scales: Float32Array, axis: int) -> str:
        self._store(f"{name}.int", steps)
        self._store(f"{name}.scale", scales)
        self._store(f"{name}.zero", np.zeros(scales.shape, steps.dtype))
        self._add("DequantizeLinear", f"{name}.int", name, f"{name}.dequantized", axis=axis)
        return f"{name}.dequantized"

    def _store(self, name: str, value: npt.NDArray[np.generic] | np.generic) -> None:
        self.stored[name] = numpy_helper.from_array(np.asarray(value), name)

    def _add(self, operator: str, source: str, scaled_as: str, target: str, **attributes: int) -> None:
        inputs = [source, f"{scaled_as}.scale", f"{scaled_as}.zero"]
        self.nodes.append(helper.make_node(operator, inputs, [target], name=f"{target}.{operator}", **attributes))
