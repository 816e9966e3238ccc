"""Makes the graph of each precision variant and checks it against every rule; says what stays in higher precision.

=============== ================ ==================================================================================
variant         products         rest
=============== ================ ==================================================================================
``fp8-fp16``    FP8, TensorRT's  as in ``fp16``
``int8-fp16``   INT8, TensorRT's as in ``fp16``
``int8``        INT8, ORT's      in FP32
``fp16``        as the rest      in FP16, but every LayerNormalization, and every node that makes or takes a tensor
                                 whose numbers may overflow
``fp16-attn32`` as the rest      the same, and of every attention the scaling of the query, both products and the
                                 softmax in FP32 too
``fp32``        as the rest      in FP32
=============== ================ ==================================================================================

The softmax stays in FP16 in the first: Casts between the two products of an attention would keep TensorRT from fusing
them. The pooling of a CCT, a softmax without a product before it, stays in FP16 in the second too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from devit_contract.arrays import UInt8Array
from devit_contract.choices import Variant
from devit_export.graph import ExportedGraph
from devit_export.int8.products import Runtime
from devit_export.int8.sensitivity import search
from devit_export.precision import count_casts, full_nodes, lower_precision
from devit_export.rules import FP8_OPSET, OPSET, Graph, check_graph

Rest = Literal["fp16", "fp16-attn32", "fp32"]
"""Precision of what is not in eight bits."""
_MAKING: dict[Variant, tuple[Runtime | None, Rest]] = {
    "fp8-fp16": ("tensorrt-fp8", "fp16"),
    "int8-fp16": ("tensorrt", "fp16"),
    "int8": ("ort", "fp32"),
    "fp16": (None, "fp16"),
    "fp16-attn32": (None, "fp16-attn32"),
    "fp32": (None, "fp32"),
}
"""What the products in eight bits are written for, if there are any, and how the rest is."""


@dataclass(frozen=True)
class VariantGraph:
    """One ONNX file."""

    content: bytes
    fp32_nodes: tuple[str, ...]
    """Nodes of the FP32 graph that it computes in FP32 beside FP16; empty where the rest is in FP32."""
    nodes: int
    casts: int
    kept_products: tuple[str, ...] = ()
    """Products of the FP32 graph that could be in eight bits and are not."""


def make_variant(
    graph: ExportedGraph,
    variant: Variant,
    overflows: Collection[str],
    name: str,
    images: UInt8Array | None = None,
    accept: Callable[[bytes], bool] = lambda _content: True,
) -> VariantGraph:
    """Write one variant of a graph, checked against every rule.

    Args:
        graph: As exported, in FP32.
        variant: Which one.
        overflows: Tensors that FP16 may not hold, see :func:`devit_export.ranges.scan_ranges`.
        name: The file name it will have, for messages.
        images: ``(n, H, W, C)``, by which eight bits are calibrated; other variants need none.
        accept: Whether a graph with some products in eight bits will do; what fails has fewer of them.

    Raises:
        ExportError: It breaks a rule.
        ParityError: Nothing with enough products in eight bits is accepted.
    """
    model = onnx.load_from_string(graph.content)
    runtime, rest = _MAKING[variant]
    kept: tuple[str, ...] = ()
    written = model
    if runtime is not None:
        if images is None:
            raise ValueError(f"{name}: images are needed to calibrate {variant}")
        written, kept = search(
            model,
            images,
            lambda tried: accept(_serialised(_with_rest(tried, rest, overflows, name))),
            name,
            runtime=runtime,
        )
    fp32_nodes: tuple[str, ...] = ()
    if rest != "fp32":
        own = {node.name for node in model.graph.node}
        nodes = full_nodes(written, set(kept_nodes(Graph(written, name), rest, overflows)), name)
        fp32_nodes = tuple(node for node in nodes if node in own)
    finished = _with_rest(written, rest, overflows, name)
    opset = FP8_OPSET if runtime == "tensorrt-fp8" else OPSET
    check_graph(finished, graph.expected, name, for_tensorrt=runtime != "ort", opset=opset)
    content = graph.content if finished is model else _serialised(finished)
    return VariantGraph(content, fp32_nodes, len(finished.graph.node), count_casts(finished), kept)


def kept_nodes(graph: Graph, rest: Rest, overflows: Collection[str]) -> Iterator[str]:
    """Yield the nodes that a graph of mixed precision keeps in FP32, by name."""
    for node in graph.nodes:
        tensors = {*map(graph.origin, node.input), *node.output}
        if node.op_type == "LayerNormalization" or not tensors.isdisjoint(overflows):
            yield node.name
    if rest == "fp16-attn32":
        for attention in graph.attentions():
            nodes = (attention.query, attention.product, attention.softmax, *attention.mixers)
            yield from (node.name for node in nodes if node is not None)


def _with_rest(model: onnx.ModelProto, rest: Rest, overflows: Collection[str], name: str) -> onnx.ModelProto:
    """Lower the precision of what is in FP32."""
    if rest == "fp32":
        return model
    return lower_precision(model, set(kept_nodes(Graph(model, name), rest, overflows)), name)


def _serialised(model: onnx.ModelProto) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    return content
