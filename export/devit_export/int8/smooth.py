"""Makes what comes in easier to round: a norm divides its loud channels by what the weights behind it multiply them by.

This is SmoothQuant (Xiao and others, arXiv 2211.10438) with two changes. Factors are powers of two, so the smoothed
graph gives the very same numbers in FP32. And each norm takes the share of the loudness that its weights do best with,
by the error of the results, or none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from devit_contract.arrays import Float32Array
from devit_export.int8.activations import Activation
from devit_export.int8.products import Product, Runtime, along, other_axes, products
from devit_export.int8.scales import input_error, input_scale, weight_error
from devit_export.rules import Graph

_SHARES = (0.25, 0.5, 0.75)
"""How much of a channel's loudness goes to the weights; 0.5 is the paper's."""


def smooth(
    model: onnx.ModelProto, activations: Mapping[str, Activation], chosen: Collection[str], name: str, runtime: Runtime
) -> tuple[onnx.ModelProto, dict[str, Activation]]:
    """Smooth the norms of an FP32 graph that are taken by products in INT8 alone.

    Args:
        model: In FP32.
        activations: What its products take in.
        chosen: Products that will be in INT8.
        name: The graph's file name, for messages.
        runtime: What it is for.

    Returns:
        The graph, and what its products take in now.
    """
    graph = Graph(model, name)
    smoothed, scaled = onnx.ModelProto(), dict(activations)
    smoothed.CopyFrom(model)
    nodes = {node.name: node for node in smoothed.graph.node}
    found = {product.name: product for product in products(graph, runtime) if product.name in chosen}
    for norm in [node for node in graph.nodes if node.op_type == "LayerNormalization"]:
        takers = [found.get(node.name) for node in _takers(graph, norm.output[0])]
        behind = [product for product in takers if product is not None]
        if not behind or len(behind) < len(takers):
            continue
        factors = _factors(activations[behind[0].taken], behind, runtime)
        if factors is None:
            continue
        for place in range(1, len(norm.input)):
            gain: Float32Array = numpy_helper.to_array(graph.constants[norm.input[place]])
            _replace(smoothed, nodes[norm.name], place, gain / factors)
        for product in behind:
            weight = product.weight * along(product.weight, product.input_axis, factors)
            _replace(smoothed, nodes[product.name], 1, weight)
            scaled[product.taken] = activations[product.taken].over(factors)
    return smoothed, scaled


def _takers(graph: Graph, tensor: str) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that take a tensor, past those that put its rows otherwise."""
    for node in graph.consumers(tensor):
        if node.op_type == "Reshape":
            yield from _takers(graph, node.output[0])
        else:
            yield node


def _factors(activation: Activation, behind: list[Product], runtime: Runtime) -> Float32Array | None:
    """Find what each channel is divided by, ``(channels,)``; None where nothing is better than nothing."""
    loud = np.maximum(-activation.lowest, activation.highest)
    strong = np.max(
        [np.abs(product.weight).max(axis=other_axes(product.weight, product.input_axis)) for product in behind], axis=0
    )
    if any(len(strong) != product.weight.shape[product.input_axis] for product in behind) or len(loud) != len(strong):
        return None
    best, least = None, _error(activation, behind, runtime)
    for share in _SHARES:
        with np.errstate(divide="ignore", invalid="ignore"):
            exponents = np.rint(share * np.log2(loud) - (1 - share) * np.log2(strong))
        factors = np.exp2(np.where(np.isfinite(exponents), exponents, 0.0)).astype(np.float32)
        scaled = [replace(each, weight=each.weight * along(each.weight, each.input_axis, factors)) for each in behind]
        error = _error(activation.over(factors), scaled, runtime)
        if error < least:
            best, least = factors, error
    return best


def _error(activation: Activation, behind: list[Product], runtime: Runtime) -> float:
    gains = np.sum([product.gains for product in behind], axis=0)
    rounding = input_error(activation, gains, *input_scale(activation, gains, runtime), runtime)
    return rounding + sum(weight_error(activation, product, runtime) for product in behind)


def _replace(model: onnx.ModelProto, node: onnx.NodeProto, place: int, value: Float32Array) -> None:
    """Give a node a weight of its own; the old one may be another node's too."""
    node.input[place] = f"{node.name}.smoothed{place}"
    model.graph.initializer.append(numpy_helper.from_array(value, node.input[place]))
