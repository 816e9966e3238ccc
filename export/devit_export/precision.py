"""Rewrites an FP32 graph in mixed precision: every tensor has one type, and Casts change types.

All nodes compute in FP16 except the named ones. A node that only moves numbers can have either type. Movers that share
a tensor form a group; each group gets the type that costs fewer Casts, or FP16 if both cost the same, since FP16 moves
half the bytes.

The residual stream of a model stays in FP16. Each LayerNorm in FP32 then needs a Cast before and one after it. With the
stream in FP32 it needs the one after it, and one more on the branch that is added to the stream. A ViT of 12 blocks
needs 50 Casts either way (2 for each of 24 norms, 1 for the last norm, 1 for the uint8 input).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from devit_contract.errors import ExportError
from devit_export.rules import MOVERS, Graph

HALF_MAX = 65504.0
"""Largest number of FP16."""
_HALF, _FULL = TensorProto.FLOAT16, TensorProto.FLOAT
_FREE = MOVERS | {"Cast", "Concat", "DepthToSpace", "Expand", "Gather", "Pad", "SpaceToDepth", "Tile"}
"""They move or cast numbers and compute none, so they can have either type."""


def lower_precision(model: onnx.ModelProto, keep_fp32: Collection[str], name: str) -> onnx.ModelProto:
    """Write an FP32 graph again in mixed precision.

    Weights are stored in the type that their node computes in, twice where both types are needed. The uint8 input is
    cast straight to the needed type; float inputs and outputs keep their type. Beside the nodes in ``keep_fp32``, those
    with a weight beyond the range of FP16, or of an operator without FP16, compute in FP32.

    Raises:
        ExportError: The graph is not of float32 alone, or a node has no name of its own, or a name has no node.
    """
    graph = Graph(model, name)
    return _Writer(graph, _full(graph, keep_fp32)).write()


def full_nodes(model: onnx.ModelProto, keep_fp32: Collection[str], name: str) -> tuple[str, ...]:
    """List the nodes that :func:`lower_precision` leaves in FP32, in their order."""
    graph = Graph(model, name)
    full = _full(graph, keep_fp32)
    return tuple(node.name for node in graph.nodes if node.name in full)


def count_casts(model: onnx.ModelProto) -> int:
    """Count the Cast nodes."""
    return sum(node.op_type == "Cast" for node in model.graph.node)


def _full(graph: Graph, keep_fp32: Collection[str]) -> set[str]:
    """Choose the nodes that compute or move numbers in FP32."""
    _check(graph, keep_fp32)
    nodes = [node for node in graph.nodes if _floats(graph, (*node.input, *node.output))]
    full = {node.name for node in nodes if node.name in keep_fp32 or not _can_be_half(graph, node)}
    movers = {node.name for node in nodes if node.op_type in _FREE} - full
    for group in _groups(graph, movers):
        if _casts(graph, full | group) < _casts(graph, full):
            full |= group
    return full


def _groups(graph: Graph, movers: set[str]) -> list[set[str]]:
    """Put movers that make or take the same tensor into one group."""
    groups: list[set[str]] = []
    for tensor in _computed(graph):
        nodes = [graph.producers.get(tensor), *graph.consumers(tensor)]
        joined = {node.name for node in nodes if node is not None} & movers
        touched = [group for group in groups if group & joined]
        groups = [*(group for group in groups if not group & joined), joined.union(*touched)]
    return groups


def _casts(graph: Graph, full: set[str]) -> int:
    """Count the Casts between nodes in FP32, those in ``full``, and nodes in FP16."""
    outputs = {end.name for end in graph.model.graph.output}
    count = 0
    for tensor in _computed(graph):
        wanted = {node.name in full for node in graph.consumers(tensor)} | ({True} if tensor in outputs else set())
        producer = graph.producers.get(tensor)
        count += len(wanted - {producer is None or producer.name in full})
    return count


def _computed(graph: Graph) -> list[str]:
    """List the float tensors that are no weights."""
    weights = {tensor.name for tensor in graph.model.graph.initializer}
    return [tensor for tensor, kind in graph.types.items() if kind == _FULL and tensor not in weights]


def _check(graph: Graph, keep_fp32: Collection[str]) -> None:
    names = [node.name for node in graph.nodes]
    if "" in names or len(set(names)) != len(names):
        graph.refuse("nodes with names of their own", f"{len(names)} nodes with {len(set(names) - {''})} names")
    if unknown := sorted(set(keep_fp32) - set(names)):
        raise ExportError(f"{graph.name}: expected nodes of this graph to stay in FP32, found {unknown[0]}")
    for tensor, kind in graph.types.items():
        if kind in (_HALF, TensorProto.BFLOAT16, TensorProto.DOUBLE):
            graph.refuse("a graph of float32", f"{TensorProto.DataType.Name(kind)} {tensor}")
    for node in graph.nodes:
        if node.op_type == "Cast" and graph.types[node.input[0]] == _FULL == graph.types[node.output[0]]:
            graph.refuse("a Cast to another type", "one from float32 to float32", node)


def _can_be_half(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether FP16 holds the node's weights, and its operator takes and gives FP16."""
    if node.op_type == "Cast":
        return True
    schema = onnx.defs.get_schema(node.op_type, graph.opset)
    taken = _floats(graph, node.input)
    for places, formal in ((taken, schema.inputs), (_floats(graph, node.output), schema.outputs)):
        if any("tensor(float16)" not in formal[min(place, len(formal) - 1)].types for place in places):
            return False
    weights = [graph.constants[node.input[place]] for place in taken if node.input[place] in graph.constants]
    # Without float inputs it is an attribute that decides of which type the output is.
    largest = [np.abs(numpy_helper.to_array(weight)).max(initial=0.0) for weight in weights]
    return bool(taken) and all(number <= HALF_MAX for number in largest)  # so that NaN does not fit


def _floats(graph: Graph, tensors: Collection[str]) -> list[int]:
    """Places of the float tensors among a node's inputs or outputs."""
    return [place for place, tensor in enumerate(tensors) if graph.types.get(tensor) == _FULL]


class _Writer:
    """Writes the graph again, in order, and Casts and weights when they are first needed."""

    def __init__(self, graph: Graph, full: set[str]) -> None:
        self.graph = graph
        self.full = full
        self.weights = {tensor.name: tensor for tensor in graph.model.graph.initializer}
        self.casts = {
            node.output[0]: node
            for node in graph.nodes
            if node.op_type == "Cast" and graph.types[node.output[0]] == _FULL
        }
        """Float tensor to the Cast that makes it of integers; cast to each needed type from these."""
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, TensorProto] = {}
        self.made: dict[tuple[str, int], str] = {
            (end.name, graph.types[end.name]): end.name for end in graph.model.graph.input
        }
        """Tensor of the FP32 graph and type to its name here."""

    def write(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            if node.op_type != "Cast" or node.output[0] not in self.casts:
                self._add(node)
        for end in self.graph.model.graph.output:
            self._wanted(end.name, self.graph.types[end.name])
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        for field in (model.graph.node, model.graph.initializer, model.graph.value_info):
            del field[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(self.stored.values())
        return model

    def _add(self, node: onnx.NodeProto) -> None:
        kind = _FULL if node.name in self.full else _HALF
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, tensor in enumerate(node.input):
            copy.input[place] = self._wanted(tensor, kind)
        for place, tensor in enumerate(node.output):
            copy.output[place] = self._name(tensor, kind)
        self.nodes.append(copy)

    def _wanted(self, tensor: str, kind: int) -> str:
        """Name a tensor in a type, and cast it first if needed; integers keep theirs."""
        found = self.graph.types.get(tensor, TensorProto.UNDEFINED)
        kind = kind if found == _FULL else found
        if tensor in self.weights:
            return self._weight(tensor, kind)
        if (tensor, kind) not in self.made and tensor:
            self._cast(tensor, kind)
        return self.made.get((tensor, kind), tensor)

    def _weight(self, tensor: str, kind: int) -> str:
        weight, name = self.weights[tensor], tensor
        if kind == _HALF:
            name = f"{tensor}.fp16"
            weight = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), name)
        self.stored[name] = weight
        return name

    def _cast(self, tensor: str, kind: int) -> None:
        source = self.casts[tensor].input[0] if tensor in self.casts else self.made[tensor, _FULL + _HALF - kind]
        name = self._name(tensor, kind)
        self.nodes.append(helper.make_node("Cast", [source], [name], name=f"{name}.cast", to=kind))

    def _name(self, tensor: str, kind: int) -> str:
        """Name a tensor, float32 ones as in the FP32 graph, where all have that type."""
        if self.graph.types.get(tensor) != _FULL:
            kind = self.graph.types.get(tensor, TensorProto.UNDEFINED)
        name = f"{tensor}.fp16" if kind == _HALF else tensor
        self.made[tensor, kind] = name
        return name
