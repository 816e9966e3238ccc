"""Writes an FP32 graph with its products in eight bits: a QuantizeLinear and a DequantizeLinear before each factor.

Weights are stored in INT8 or FP8, symmetric, with a scale for each channel of the product; what comes in has one scale.
Norms, softmax, GELU, the sums of the residual stream and the products inside an attention stay as they are. (Those
products in INT8 would save 4 % of a DeiT-S on ONNX Runtime, and keep TensorRT from fusing the attention.)

What takes the two graphs in INT8 that this writes wants them otherwise:

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

The graph in FP8 (``tensorrt-fp8``) is as TensorRT takes INT8, but of opset 19, in which FP8 began. Its numbers are of
E4M3 without infinities: 4 significant bits from 2^-6 to 448 times the scale.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.errors import ExportError
from devit_export.int8.activations import Activation, collect
from devit_export.int8.products import Product, Runtime, products, result_of
from devit_export.int8.scales import STORED, input_scale, weight_scales, weight_steps
from devit_export.int8.smooth import smooth
from devit_export.rules import FP8_IR_VERSION, FP8_OPSET, Graph


def quantizable(model: onnx.ModelProto, name: str, *, runtime: Runtime = "ort") -> tuple[str, ...]:
    """List the nodes of an FP32 graph that :func:`quantize` writes in eight bits."""
    return tuple(product.name for product in products(Graph(model, name), runtime))


def quantize(
    model: onnx.ModelProto, images: UInt8Array, keep: Collection[str], name: str, *, runtime: Runtime = "ort"
) -> onnx.ModelProto:
    """Write an FP32 graph again with its products in eight bits.

    Args:
        model: In FP32, as exported.
        images: Calibration images ``(n, H, W, C)``, from which the ranges of what comes in are found.
        keep: Nodes that stay as they are.
        name: The graph's file name, for messages.
        runtime: What the graph is written for.

    Raises:
        ExportError: A name in ``keep`` has no such node, the graph cannot be run, or its numbers are not finite.
    """
    return write(model, calibrate(model, images, name, runtime=runtime), keep, name, runtime=runtime)


def calibrate(
    model: onnx.ModelProto, images: UInt8Array, name: str, *, runtime: Runtime = "ort"
) -> dict[str, Activation]:
    """Collect what :func:`write` has to know of each tensor."""
    graph = Graph(model, name)
    axes: dict[str, int] = {}
    for product in products(graph, runtime):
        axes[product.taken] = product.taken_axis
        if product.node.op_type == "Conv" and runtime == "ort":
            axes[result_of(graph, product.node)] = 1
    return collect(model, images, axes, name)


def write(
    model: onnx.ModelProto,
    activations: Mapping[str, Activation],
    keep: Collection[str],
    name: str,
    *,
    runtime: Runtime = "ort",
) -> onnx.ModelProto:
    """Write an FP32 graph again with its products in eight bits; see :func:`quantize`."""
    found = quantizable(model, name, runtime=runtime)
    if unknown := sorted(set(keep) - set(found)):
        raise ExportError(f"{name}: expected nodes that could be in eight bits to stay as they are, found {unknown[0]}")
    chosen = set(found) - set(keep)
    smoothed, scaled = smooth(model, activations, chosen, name, runtime)
    graph = Graph(smoothed if runtime != "tensorrt-fp8" else _with_fp8_types(smoothed), name)
    return _Writer(graph, [each for each in products(graph, runtime) if each.name in chosen], scaled, runtime).write()


def _with_fp8_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write a graph in the opset that has FP8; each of its nodes stays the same."""
    raised = version_converter.convert_version(model, FP8_OPSET)
    raised.ir_version = FP8_IR_VERSION
    return raised


class _Writer:
    """Writes the graph again, in order, and scales and weights when they are first needed."""

    def __init__(
        self, graph: Graph, chosen: list[Product], activations: Mapping[str, Activation], runtime: Runtime
    ) -> None:
        self.graph = graph
        self.chosen = {product.name: product for product in chosen}
        self.runtime = runtime
        self.kind = "fp8" if runtime == "tensorrt-fp8" else "int8"
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, TensorProto] = {}
        self.dequantized: set[str] = set()
        """Tensors that exist in eight bits by now."""
        gains: dict[str, Float32Array] = {}
        self.results: set[str] = set()
        """Tensors that every node takes in eight bits."""
        for product in chosen:
            gains[product.taken] = product.gains + gains.get(product.taken, np.float32(0.0))
            if product.node.op_type == "Conv" and runtime == "ort":
                self.results.add(result_of(graph, product.node))
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
                self._quantize(copy, self.chosen[node.name])
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

    def _quantize(self, copy: onnx.NodeProto, product: Product) -> None:
        copy.input[0] = self._taken(product.taken)
        scales = weight_scales(product, self.runtime)
        bias = product.node.input[2] if len(product.node.input) > 2 else ""
        if bias and self.runtime == "ort":
            numbers = numpy_helper.to_array(self.graph.constants[bias])
            input_scale = np.float32(self.scales[product.taken][0])
            scales = np.maximum(scales, (np.abs(numbers) / (input_scale * 2.0**30)).astype(np.float32))
            steps = np.rint(numbers / (input_scale * scales).astype(np.float64)).astype(np.int32)
            copy.input[2] = self._constant(f"{product.name}.bias", steps, input_scale * scales, axis=0)
        steps = weight_steps(product, scales, self.runtime)
        copy.input[1] = self._constant(f"{product.name}.weight", steps, scales, product.result_axis)

    def _taken(self, tensor: str) -> str:
        """Name a computed tensor that has been in eight bits, and write that first if needed."""
        if tensor not in self.dequantized:
            self.dequantized.add(tensor)
            scale, zero = self.scales[tensor]
            self._store(f"{tensor}.scale", np.float32(scale))
            self._store(f"{tensor}.zero", np.array(zero, STORED[self.runtime]))
            self._add("QuantizeLinear", tensor, tensor, f"{tensor}.{self.kind}")
            self._add("DequantizeLinear", f"{tensor}.{self.kind}", tensor, f"{tensor}.dequantized")
        return f"{tensor}.dequantized"

    def _constant(self, name: str, steps: npt.NDArray[np.generic], scales: Float32Array, axis: int) -> str:
        stored = f"{name}.{'int' if np.issubdtype(steps.dtype, np.integer) else 'fp8'}"
        self._store(stored, steps)
        self._store(f"{name}.scale", scales)
        self._store(f"{name}.zero", np.zeros(scales.shape, steps.dtype))
        self._add("DequantizeLinear", stored, name, f"{name}.dequantized", axis=axis)
        return f"{name}.dequantized"

    def _store(self, name: str, value: npt.NDArray[np.generic] | np.generic) -> None:
        self.stored[name] = numpy_helper.from_array(np.asarray(value), name)

    def _add(self, operator: str, source: str, scaled_as: str, target: str, axis: int | None = None) -> None:
        inputs = [source, f"{scaled_as}.scale", f"{scaled_as}.zero"]
        # ONNX leaves out an attribute that is None.
        self.nodes.append(helper.make_node(operator, inputs, [target], name=f"{target}.{operator}", axis=axis))
