"""Finds which products have to stay in higher precision: the fewest with which a graph in INT8 is accepted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from devit_contract.arrays import Float32Array, UInt8Array
from devit_export.int8.activations import Activation
from devit_export.int8.products import Runtime
from devit_export.int8.quantize import calibrate, quantizable, write
from devit_export.parity import ParityError, run_graph

ORDER_IMAGES = 16
"""By which products are put in order; a DeiT-S takes two cores two minutes."""
LEAST_SHARE = 0.25
"""Of all products: with fewer in INT8, a graph is not worth its place."""


def search(
    model: onnx.ModelProto,
    images: UInt8Array,
    accept: Callable[[onnx.ModelProto], bool],
    name: str,
    *,
    runtime: Runtime = "ort",
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Write an FP32 graph in INT8, all but the fewest of its products.

    Those that stay as they are are the ones that alone change the outputs most. A graph that is accepted is taken to be
    accepted with more of them kept, too; so a few graphs are tried, not all.

    Args:
        model: In FP32, as exported.
        images: Calibration images ``(n, H, W, C)``.
        accept: Whether a graph is as good as it has to be.
        name: The graph's file name, for messages.
        runtime: What the graph is written for.

    Returns:
        The graph, and the names of the products that it keeps, the most sensitive first.

    Raises:
        ParityError: No graph with a quarter of its products in INT8 is accepted.
        ExportError: See :func:`devit_export.int8.quantize.quantize`.
    """
    activations = calibrate(model, images, name, runtime=runtime)

    def written(keep: tuple[str, ...]) -> onnx.ModelProto:
        return write(model, activations, keep, name, runtime=runtime)

    whole = written(())
    if accept(whole):
        return whole, ()
    order = by_sensitivity(model, activations, images[:ORDER_IMAGES], name, runtime=runtime)
    refused, most = 0, len(order) - max(1, round(LEAST_SHARE * len(order)))
    found = written(order[:most])
    if not accept(found):
        raise ParityError(
            f"{name}: expected a graph that passes with at least {LEAST_SHARE:.0%} of its products in INT8, found none "
            f"among those with {len(order) - most} to {len(order)} of {len(order)}: the variant is left out, and "
            f"devices build the next one"
        )
    while most - refused > 1:
        middle = (refused + most) // 2
        tried = written(order[:middle])
        if accept(tried):
            found, most = tried, middle
        else:
            refused = middle
    return found, order[:most]


def by_sensitivity(
    model: onnx.ModelProto,
    activations: Mapping[str, Activation],
    images: UInt8Array,
    name: str,
    *,
    runtime: Runtime = "ort",
) -> tuple[str, ...]:
    """Put the products of an FP32 graph in the order of the error that each one alone in INT8 makes, largest first."""
    found = quantizable(model, name, runtime=runtime)
    reference = run_graph(name, model.SerializeToString(), images)
    errors: dict[str, float] = {}
    for product in found:
        alone = write(model, activations, set(found) - {product}, name, runtime=runtime)
        errors[product] = _squared(run_graph(name, alone.SerializeToString(), images), reference)
    return tuple(sorted(errors, key=lambda product: -errors[product]))


def _squared(found: Float32Array, reference: Float32Array) -> float:
    return float(np.square(found - reference, dtype=np.float64).mean())
