"""Makes the graph of each precision variant and checks it against every rule; says what stays in FP32.

=============== ==================================================================================================
variant            in FP32
=============== ==================================================================================================
``fp16``        every LayerNormalization, and every node that makes or takes a tensor whose numbers may overflow
``fp16-attn32`` the same, and of every attention the scaling of the query, both products and the softmax
``fp32``        everything
=============== ==================================================================================================

The softmax stays in FP16 in the first: Casts between the two products of an attention would keep TensorRT from fusing
them. The pooling of a CCT, a softmax without a product before it, stays in FP16 in the second too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx

from devit_contract.choices import Variant
from devit_export.graph import ExportedGraph
from devit_export.precision import count_casts, full_nodes, lower_precision
from devit_export.rules import Graph, check_graph

FLOAT_VARIANTS: tuple[Variant, ...] = ("fp16", "fp16-attn32", "fp32")
"""Those without quantized numbers."""


@dataclass(frozen=True)
class VariantGraph:
    """One ONNX file."""

    content: bytes
    fp32_nodes: tuple[str, ...]
    """Nodes of the FP32 graph that it computes in FP32; empty for ``fp32``."""
    nodes: int
    casts: int


def make_variant(graph: ExportedGraph, variant: str, overflows: Collection[str], name: str) -> VariantGraph:
    """Write one variant of a graph, checked against every rule.

    Args:
        graph: As exported, in FP32.
        variant: One of :data:`devit_contract.choices.VARIANTS`.
        overflows: Tensors that FP16 may not hold, see :func:`devit_export.ranges.scan_ranges`.
        name: The file name it will have, for messages.
    """
    model = onnx.load_from_string(graph.content)
    if variant == "fp32":
        return VariantGraph(graph.content, (), len(model.graph.node), count_casts(model))
    kept = set(kept_nodes(Graph(model, name), variant, overflows))
    lowered = lower_precision(model, kept, name)
    check_graph(lowered, graph.expected, name)
    content = lowered.SerializeToString(deterministic=True)
    return VariantGraph(content, full_nodes(model, kept, name), len(lowered.graph.node), count_casts(lowered))


def kept_nodes(graph: Graph, variant: str, overflows: Collection[str]) -> Iterator[str]:
    """Yield the nodes of an FP32 graph that a variant of mixed precision keeps in FP32, by name."""
    for node in graph.nodes:
        if node.op_type == "LayerNormalization" or not set(overflows).isdisjoint((*node.input, *node.output)):
            yield node.name
    if variant == "fp16-attn32":
        for attention in graph.attentions():
            nodes = (attention.query, attention.product, attention.softmax, *attention.mixers)
            yield from (node.name for node in nodes if node is not None)
