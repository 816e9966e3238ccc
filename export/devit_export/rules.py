"""Rules of a graph that make every supported TensorRT compile it to what was trained.

Each rule is one function that refuses by :class:`ExportError`, naming the node, what was expected and what was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import onnx
import onnx.checker
import onnx.shape_inference
from onnx import TensorProto, numpy_helper

from devit_contract.errors import ExportError
from devit_export.lint import ALL, FROM_10, lint

OPSET = 17
"""The one opset from TensorRT 8.6 (which stops here) to 11; below it there is no LayerNormalization."""
IR_VERSION = 8
"""Of ONNX 1.12, the release that brought opset 17."""
FP8_OPSET = 19
"""Of a graph with FP8 in it, which it brought; TensorRT has it from 10.0 on."""
FP8_IR_VERSION = 9
"""Of ONNX 1.14, the release that brought opset 19."""
MAX_RANK = 4
INPUT_NAME = "images"

MOVERS = frozenset({"Reshape", "Transpose", "Split", "Slice", "Identity", "Flatten", "Squeeze", "Unsqueeze"})
"""They move the numbers of their first input and change none."""
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_CONVERTERS = _QUANTIZERS | {"Cast"}
"""They write the same numbers in another type."""
_TRANSPARENT = MOVERS | _CONVERTERS
_LOOSE_NORM = frozenset({"Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal"})
"""What a LayerNorm falls apart into; the square overflows in FP16."""
MODEL_HINT = "this model cannot be exported as it is"


@dataclass(frozen=True)
class Expected:
    """What the trained model says about its graph."""

    image_shape: tuple[int, int, int]
    """Height, width, channels of the uint8 input."""
    output_name: str
    output_dim: int
    norms: int
    """LayerNorms of the model; each is one node."""
    attentions: int
    """Attention blocks of the model; each has one product of queries and keys."""


def check_graph(
    model: onnx.ModelProto, expected: Expected, name: str, *, for_tensorrt: bool = True, opset: int = OPSET
) -> None:
    """Check a graph, whole in memory, against all rules; messages call it by its file ``name``.

    Without ``for_tensorrt`` the rules about types that TensorRT alone lacks are left out. What is of a higher ``opset``
    is held against the tables of TensorRT 10 and later alone.
    """
    releases = ALL if opset == OPSET else FROM_10
    rules: tuple[Callable[[Graph], None], ...] = (
        lambda graph: check_opset(graph, opset),
        check_types,
        lambda graph: check_ends(graph, expected),
        check_ranks,
        lambda graph: check_norms(graph, expected.norms),
        check_norm_types,
        lambda graph: check_attention(graph, expected.attentions),
    )
    types: tuple[Callable[[Graph], None], ...] = (
        check_uint8,
        check_quantization,
        lambda graph: lint(graph.model, graph.name, releases),
    )
    graph = Graph(model, name)
    for rule in (*rules, *types) if for_tensorrt else rules:
        rule(graph)


@dataclass(frozen=True)
class Attention:
    """``softmax((scale * q) @ k^T) @ v`` by its nodes."""

    query: onnx.NodeProto | None
    """What made the query; in a right graph the scaling."""
    product: onnx.NodeProto
    softmax: onnx.NodeProto
    mixers: tuple[onnx.NodeProto, ...]


class Graph:
    """A graph with its nodes by what they make and what they take."""

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        """Index the nodes; nothing is checked."""
        self.model = model
        self.name = name
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in self.nodes for output in node.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.input):
                self._consumers.setdefault(tensor, []).append(node)
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute:
                self.constants[node.output[0]] = node.attribute[0].t

    @property
    def opset(self) -> int:
        """Of the standard operators."""
        return int(next(entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")))

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """List the nodes that take a tensor."""
        return list(self._consumers.get(tensor, ()))

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """List the nodes that compute with a tensor, past those that write it in another type."""
        found = []
        for node in self.consumers(tensor):
            found += self.readers(node.output[0]) if node.op_type in _CONVERTERS else [node]
        return found

    def uncast(self, tensor: str) -> str:
        """Name the tensor that Casts made this one of, perhaps itself."""
        return self._back(tensor, frozenset({"Cast"}))

    def origin(self, tensor: str) -> str:
        """Name the tensor that this one is, perhaps, in another type."""
        return self._back(tensor, _CONVERTERS)

    def source(self, tensor: str) -> onnx.NodeProto | None:
        """Find the node that made a tensor, in whatever type; absent for an input."""
        return self.producers.get(self.origin(tensor))

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """Find the node that made the numbers of a tensor, past all that move or convert them; absent for an input."""
        return self.producers.get(self._back(tensor, _TRANSPARENT))

    def _back(self, tensor: str, past: frozenset[str]) -> str:
        while (node := self.producers.get(tensor)) is not None and node.op_type in past:
            tensor = node.input[0]
        return tensor

    @cached_property
    def values(self) -> dict[str, onnx.ValueInfoProto]:
        """Type and shape of each input, output and computed tensor, by ONNX's own inference."""
        inferred = onnx.shape_inference.infer_shapes(self.model, strict_mode=True, data_prop=True).graph
        return {value.name: value for value in (*inferred.input, *inferred.value_info, *inferred.output)}

    @cached_property
    def types(self) -> dict[str, int]:
        """Element type of each tensor, weights included."""
        types = {name: value.type.tensor_type.elem_type for name, value in self.values.items()}
        return types | {name: tensor.data_type for name, tensor in self.constants.items()}

    def products(self) -> Iterator[onnx.NodeProto]:
        """Yield each MatMul whose two factors are both computed."""
        for node in self.nodes:
            if node.op_type == "MatMul" and not any(self.origin(factor) in self.constants for factor in node.input):
                yield node

    def attentions(self) -> Iterator[Attention]:
        """Yield each product that only a Softmax takes, with what belongs to it."""
        for product in self.products():
            followers = self.readers(product.output[0])
            if [node.op_type for node in followers] == ["Softmax"]:
                mixers = [node for node in self.readers(followers[0].output[0]) if node.op_type == "MatMul"]
                yield Attention(self.maker(product.input[0]), product, followers[0], tuple(mixers))

    def refuse(self, expected: str, found: str, node: onnx.NodeProto | None = None) -> NoReturn:
        """Raise the error of a broken rule."""
        where = "" if node is None else f"node {node.name or '(unnamed)'} ({node.op_type}): "
        raise ExportError(f"{self.name}: {where}expected {expected}, found {found}: {MODEL_HINT}")


def check_opset(graph: Graph, opset: int = OPSET) -> None:
    """One operator set, the standard one at exactly this opset, and no functions or branches of the model's own."""
    found = {entry.domain or "ai.onnx": entry.version for entry in graph.model.opset_import}
    if found != {"ai.onnx": opset} or graph.model.functions:
        text = ", ".join(f"{domain} {version}" for domain, version in found.items())
        graph.refuse(f"opset {opset} alone", f"{text or 'none'}, {len(graph.model.functions)} functions")
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            graph.refuse("a standard operator", f"one of {node.domain}", node)
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                graph.refuse("no branch or loop", f"one in attribute {attribute.name}", node)


def check_types(graph: Graph) -> None:
    """ONNX's own full check: operators, attributes, types and shapes fit together."""
    try:
        onnx.checker.check_model(graph.model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        graph.refuse("a graph that onnx.checker accepts", " ".join(str(err).split())[:300])


def check_ends(graph: Graph, expected: Expected) -> None:
    """One uint8 input ``images`` and one float32 output, both with a free batch dimension of the same name."""
    inputs, outputs = list(graph.model.graph.input), list(graph.model.graph.output)
    _check_end(graph, inputs, INPUT_NAME, TensorProto.UINT8, expected.image_shape)
    _check_end(graph, outputs, expected.output_name, TensorProto.FLOAT, (expected.output_dim,))
    batches = [end.type.tensor_type.shape.dim[0].dim_param for end in (inputs[0], outputs[0])]
    if batches[0] != batches[1]:
        graph.refuse("the input's batch dimension at the output", f"{batches[0]} and {batches[1]}")


def check_uint8(graph: Graph) -> None:
    """Only Casts to float32 or float16 take the uint8 input, and no other tensor is uint8.

    TensorRT takes UINT8 at network inputs alone and casts before anything else (its ONNX parser, 8.5 to 10.x).
    """
    for node in graph.consumers(INPUT_NAME):
        if node.op_type != "Cast" or _cast_target(node) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            target = f" to {TensorProto.DataType.Name(_cast_target(node))}" if node.op_type == "Cast" else ""
            graph.refuse(f"a Cast to FLOAT or FLOAT16 as consumer of {INPUT_NAME}", f"{node.op_type}{target}", node)
    for tensor, kind in graph.types.items():
        if kind == TensorProto.UINT8 and tensor != INPUT_NAME:
            graph.refuse(f"no uint8 tensor but {INPUT_NAME}", tensor, graph.producers.get(tensor))


def check_quantization(graph: Graph) -> None:
    """Quantized numbers lie around zero, and the scales of a weight along its output channels.

    TensorRT's parser refuses another zero point. It takes scales along another axis, and then computes the product in
    floating point without a word (seen in the kernels of TensorRT-RTX 1.7.1). An axis left out is 1 for ONNX and 0 for
    TensorRT 8.6 (its parser's QuantDequantLinearHelper).
    """
    for node in graph.nodes:
        if node.op_type in _QUANTIZERS and len(node.input) > 2:
            zero = graph.constants.get(node.input[2])
            if zero is None or numpy_helper.to_array(zero).any():
                graph.refuse("a zero point of 0", "a computed one" if zero is None else "another", node)
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            _check_scales(graph, node)


def check_ranks(graph: Graph) -> None:
    """No tensor has more than four dimensions, and the number of dimensions of each is known."""
    for tensor in graph.model.graph.initializer:
        if len(tensor.dims) > MAX_RANK:
            graph.refuse(f"at most {MAX_RANK} dimensions", f"{len(tensor.dims)} in weight {tensor.name}")
    for node in graph.nodes:
        for output in node.output:
            value = graph.values.get(output)
            if value is None or not value.type.tensor_type.HasField("shape"):
                graph.refuse(f"a shape for {output}", "none by shape inference", node)
            rank = len(value.type.tensor_type.shape.dim)
            if rank > MAX_RANK:
                graph.refuse(f"at most {MAX_RANK} dimensions", f"{rank} in {output}", node)


def check_norms(graph: Graph, norms: int) -> None:
    """Each LayerNorm is one LayerNormalization node over the last axis, and none has fallen apart.

    A norm written out squares in FP16 and overflows: a ViT-B fell from 85 % to 19 % top-1 on an Orin Nano with
    TensorRT 10.3 (onnxsim, scripts/nvidia/README.md).
    """
    counts = Counter(node.op_type for node in graph.nodes)
    for node in graph.nodes:
        if node.op_type in _LOOSE_NORM:
            graph.refuse("LayerNormalization as one node", "a part of one written out", node)
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), -1)
        if node.op_type == "LayerNormalization" and axis != -1:
            graph.refuse("a norm over the last axis, -1", f"axis {axis}", node)
    if counts["LayerNormalization"] != norms:
        graph.refuse(f"{norms} LayerNormalization nodes", str(counts["LayerNormalization"]))


def check_norm_types(graph: Graph) -> None:
    """Each LayerNormalization takes and gives float32, even between FP16 nodes.

    The squares inside it leave the range of FP16 from 256 on; TensorRT warns of such norms and lets them be ("Detected
    layernorm nodes in FP16"). Its attribute ``stash_type`` alone does not change the type of what goes in.
    """
    for node in graph.nodes:
        if node.op_type != "LayerNormalization":
            continue
        for tensor in (*node.input, *node.output):
            kind = graph.types.get(tensor, TensorProto.UNDEFINED)
            if tensor and kind != TensorProto.FLOAT:
                graph.refuse("a norm in FLOAT", f"{TensorProto.DataType.Name(kind)} {tensor}", node)


def check_attention(graph: Graph, attentions: int) -> None:
    """Attention is written out as ``softmax((scale * q) @ k^T) @ v``, the scale on the query alone.

    Graphs that scale queries and keys by its root each, as exported fused attention does, were compiled wrongly by
    TensorRT 10.3 to 10.7, even in FP32 (NVIDIA/TensorRT issues 4328, 4333, 4558, 4742).
    """
    found = list(graph.attentions())
    for attention in found:
        _check_scores(graph, attention)
    scored = [attention.product.output[0] for attention in found]
    for product in graph.products():
        left = graph.source(product.input[0])
        if product.output[0] not in scored and (left is None or left.op_type != "Softmax"):
            followers = " and ".join(node.op_type for node in graph.readers(product.output[0])) or "nothing"
            graph.refuse("a Softmax right before or after a product of computed tensors", followers, product)
    if len(found) != attentions:
        graph.refuse(f"{attentions} attention products", str(len(found)))


def _check_scales(graph: Graph, node: onnx.NodeProto) -> None:
    scaling = graph.producers.get(graph.uncast(node.input[1]))
    if scaling is None or scaling.op_type != "DequantizeLinear":
        return
    weight, scale = (graph.constants.get(graph.origin(tensor)) for tensor in scaling.input[:2])
    if weight is None or scale is None or not scale.dims:
        return
    attributes = {entry.name: int(entry.i) for entry in node.attribute}
    wanted = 0 if node.op_type == "Conv" or attributes.get("transB") else len(weight.dims) - 1
    found = next((int(entry.i) for entry in scaling.attribute if entry.name == "axis"), None)
    if found is None or found % len(weight.dims) != wanted:
        words = "none" if found is None else f"axis {found}"
        graph.refuse(f"the scales of the weight of {node.name} along axis {wanted}", words, scaling)


def _check_scores(graph: Graph, attention: Attention) -> None:
    query, product = attention.query, attention.product
    key = graph.maker(product.input[1])
    if query is None or not _is_scaling(graph, query):
        graph.refuse("a query multiplied by one constant", "none" if query is None else query.op_type, product)
    before = [graph.maker(factor) for factor in query.input if factor not in graph.constants]
    for node, role in [(key, "a key without scale"), *((node, "one scale on the query") for node in before)]:
        if node is not None and _is_scaling(graph, node):
            graph.refuse(role, f"{node.op_type} {node.name} on it", product)


def _is_scaling(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node multiplies or divides everything by the same constant."""
    if node.op_type not in ("Mul", "Div"):
        return False
    factors = [graph.constants[name] for name in node.input if name in graph.constants]
    return len(factors) == 1 and all(side == 1 for side in factors[0].dims)


def _check_end(graph: Graph, ends: list[onnx.ValueInfoProto], name: str, kind: int, shape: tuple[int, ...]) -> None:
    if [end.name for end in ends] != [name]:
        graph.refuse(f"{name} alone at this end of the graph", ", ".join(end.name for end in ends) or "nothing")
    tensor = ends[0].type.tensor_type
    free, *fixed = list(tensor.shape.dim) or [onnx.TensorShapeProto.Dimension()]
    found = tuple(side.dim_value for side in fixed)
    if tensor.elem_type != kind or not free.dim_param or found != shape:
        words = [free.dim_param or str(free.dim_value), *map(str, found)]
        graph.refuse(
            f"{name} as {TensorProto.DataType.Name(kind)} (batch, {', '.join(map(str, shape))}) with a free batch",
            f"{TensorProto.DataType.Name(tensor.elem_type)} ({', '.join(words)})",
        )


def _cast_target(node: onnx.NodeProto) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == "to"), TensorProto.UNDEFINED)
