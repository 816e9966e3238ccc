"""Finds the largest numbers inside a graph over real images, and those that FP16 cannot hold.

ONNX Runtime's CPU provider computes FP16 in FP32, so no parity on a workstation shows an overflow; this does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from devit_contract.arrays import UInt8Array
from devit_contract.errors import ExportError
from devit_export.parity import run_batches
from devit_export.precision import HALF_MAX
from devit_export.rules import Graph

_SUMS = frozenset({"ReduceMean", "ReduceSum", "ReduceL1", "GlobalAveragePool"})
_SUMS_OF_SQUARES = frozenset({"ReduceL2", "ReduceSumSquare"})
_BATCH = 16
_HINT = "look for such numbers in the model's weights, and train it again"


@dataclass(frozen=True)
class Ranges:
    """Of every float tensor that a graph computes."""

    maxima: dict[str, float]
    """Largest absolute number over all images."""
    overflows: tuple[str, ...]
    """Tensors that pass 65,504 themselves, or whose square or sum may where they are squared or summed up, all numbers
    being larger by the headroom."""


def scan_ranges(name: str, content: bytes, images: UInt8Array, headroom: float = 1.0) -> Ranges:
    """Run an FP32 graph over images ``(n, H, W, C)`` and keep the largest absolute number of each tensor.

    Every tensor gets a maximum and a sum as extra outputs, two numbers a batch, so memory stays that of the model
    however large it is.

    A square counts with the largest number squared. A sum counts with the largest number times how many are summed,
    which is the safe bound: the order of a sum, and whether a mean divides first, is the device's choice. Matrix
    products and convolutions count by what they give, since they accumulate in FP32.

    Args:
        name: The graph's file name, for the message.
        content: The ONNX file's bytes.
        images: Some of those that the model will see.
        headroom: How many times larger numbers of other images may be.

    Raises:
        ExportError: The graph cannot be run, or a tensor holds numbers that are not finite.
    """
    graph = Graph(onnx.load_from_string(content), name)
    tensors = [output for node in graph.nodes for output in node.output if graph.types.get(output) == TensorProto.FLOAT]
    maxima = dict.fromkeys(tensors, 0.0)
    for seen in run_batches(name, _with_extremes(graph.model, tensors), images, _BATCH):
        for index, tensor in enumerate(tensors):
            largest, total = float(seen[2 * index]), float(seen[2 * index + 1])
            if math.isnan(total) or not math.isfinite(largest):
                found = largest if math.isinf(largest) else math.nan
                raise ExportError(f"{name}: expected finite numbers in tensor {tensor}, found {found}: {_HINT}")
            maxima[tensor] = max(maxima[tensor], largest)
    reached = {tensor: headroom * largest for tensor, largest in maxima.items()}
    strained = _strained(graph, reached)
    return Ranges(maxima, tuple(tensor for tensor in tensors if tensor in strained or reached[tensor] > HALF_MAX))


def _with_extremes(model: onnx.ModelProto, tensors: list[str]) -> bytes:
    """Give a graph the largest absolute number and the sum of each tensor as its only outputs.

    The sum is NaN if any number is. ONNX Runtime's ReduceMax forgets a NaN that is not the first one.
    """
    scan = onnx.ModelProto()
    scan.CopyFrom(model)
    del scan.graph.output[:]
    for tensor in tensors:
        scan.graph.node.append(helper.make_node("Abs", [tensor], [f"{tensor}.Abs"]))
        for kind, source in (("ReduceMax", f"{tensor}.Abs"), ("ReduceSum", tensor)):
            answer = f"{tensor}.{kind}"
            scan.graph.node.append(helper.make_node(kind, [source], [answer], keepdims=0))
            scan.graph.output.append(helper.make_tensor_value_info(answer, TensorProto.FLOAT, []))
    content: bytes = scan.SerializeToString()
    return content


def _strained(graph: Graph, maxima: dict[str, float]) -> set[str]:
    """Find the tensors whose square or sum may pass the range of FP16 in a node that takes them."""
    takers = [node for node in graph.nodes if node.input and node.input[0] in maxima]
    return {node.input[0] for node in takers if _reach(graph, node, maxima[node.input[0]]) > HALF_MAX}


def _reach(graph: Graph, node: onnx.NodeProto, largest: float) -> float:
    """Bound what a node may hold in between, its first input being at most ``largest``."""
    if node.op_type == "Mul" and node.input[0] == node.input[1]:
        return largest**2
    if node.op_type == "Pow":
        exponent = graph.constants.get(node.input[1])
        power = 2.0 if exponent is None else float(np.abs(numpy_helper.to_array(exponent)).max())
        return float(max(largest, 1.0) ** power)
    if node.op_type in _SUMS:
        return largest * _summed(graph, node)
    if node.op_type in _SUMS_OF_SQUARES:
        return largest**2 * _summed(graph, node)
    return 0.0


def _summed(graph: Graph, node: onnx.NodeProto) -> float:
    """Count the summands of one number; infinite if that depends on the batch."""
    before, after = (_sides(graph, tensor) for tensor in (node.input[0], node.output[0]))
    if before is None or after is None:
        return math.inf
    return math.prod(before) / math.prod(after)


def _sides(graph: Graph, tensor: str) -> list[int] | None:
    """Shape of a tensor without its batch dimension; None where another one is free, or it has none."""
    free, *fixed = list(graph.values[tensor].type.tensor_type.shape.dim) or [onnx.TensorShapeProto.Dimension()]
    if not free.dim_param or any(not side.dim_value for side in fixed):
        return None
    return [side.dim_value for side in fixed]
