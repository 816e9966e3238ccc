"""Measures how far an exported graph is from the trained model, by ONNX Runtime on real images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from devit_contract.arrays import Float32Array, Float64Array, UInt8Array
from devit_contract.artefacts.gate import Reference, compare
from devit_contract.choices import Variant
from devit_contract.errors import ExportError

TOLERANCE = 1e-4
"""Largest difference of an output number in FP32, as a share of the largest one; a right graph stays near 1e-6."""
_BATCH = 64
_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    *(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
"""ONNX Runtime's exceptions share no base but Exception."""
_WRONG_OPTIMIZERS = ("ReluQuantRewrite", "WeightBiasQuantization")
"""Of ONNX Runtime 1.32, see ``findings/``. The first drops a ReLU before a QuantizeLinear to FP8, as if 0 were the
lowest number there; the second divides a bias by both scales in FP16, where that overflows."""
_HINT = (
    "export with the releases that constraints.txt names; if it stays, FP32 blurs the model's numbers: train it again "
    "with a lower learning rate"
)
_LEFT_OUT = "the variant is left out, and devices build the next one"


class ParityError(ExportError):
    """A graph that runs, but differs from the trained model."""


@dataclass(frozen=True)
class Difference:
    """Of all output numbers, absolute."""

    max_abs: float
    mean_abs: float


def measure(name: str, graph: bytes, images: UInt8Array, reference: Float32Array) -> Difference:
    """Run a graph on ONNX Runtime's CPU provider and compare it with the model it came from.

    Args:
        name: The graph's file name, for the message.
        graph: The ONNX file's bytes.
        images: Shape ``(n, H, W, C)``.
        reference: What PyTorch answers, shape ``(n, dim)``.

    Raises:
        ExportError: The graph cannot be run, or its output has another shape.
        ParityError: See :func:`check_same`.
    """
    return check_same(name, run_graph(name, graph, images), reference, "the trained model's numbers")


def check_same(name: str, found: Float32Array, reference: Float32Array, what: str) -> Difference:
    """Compare outputs in FP32, ``(n, dim)`` both, by the size of the reference: features may be of any.

    Raises:
        ExportError: The shapes differ.
        ParityError: A number differs by more than :data:`TOLERANCE` of the largest one (or by NaN).
    """
    errors = _errors(name, found, reference)
    largest = float(np.abs(reference).max())
    if not errors.max() <= TOLERANCE * largest:  # so that NaN is refused too
        worst = np.unravel_index(int(np.argmax(errors)), errors.shape)
        raise ParityError(
            f"{name}: expected {what} within {TOLERANCE * largest:.3g}, {TOLERANCE:.2%} of the largest, found a "
            f"difference of {errors.max():.3g} at image {worst[0]}, output {worst[1]}: {_HINT}"
        )
    return Difference(float(errors.max()), float(errors.mean()))


def measure_variant(name: str, variant: Variant, graph: bytes, reference: Reference) -> Difference:
    """Run a graph of lower precision and hold it against the gate that each device holds its engine against.

    This proves that its types and its wiring are right and that its weights survive. It proves nothing about overflow,
    since that provider computes FP16 in FP32; :mod:`devit_export.ranges` does.

    Raises:
        ExportError: The graph cannot be run, or its output has another shape.
        ParityError: It does not compute what was trained.
    """
    found = run_graph(name, graph, reference.images)
    errors = _errors(name, found, reference.outputs)
    if failures := compare(found, reference).failures(variant):
        raise ParityError(f"{name}: expected what was trained, found {'; '.join(failures)}: {_LEFT_OUT}")
    return Difference(float(errors.max()), float(errors.mean()))


def _errors(name: str, found: Float32Array, reference: Float32Array) -> Float64Array:
    if found.shape != reference.shape:
        raise ExportError(f"{name}: expected an output of shape {reference.shape}, found {found.shape}")
    return np.abs(found.astype(np.float64) - reference)


def run_graph(name: str, graph: bytes, images: UInt8Array) -> Float32Array:
    """Run a graph with one input and one output over images ``(n, H, W, C)``, in batches: ``(n, dim)``."""
    whole: Float32Array = np.concatenate([outputs[0] for outputs in run_batches(name, graph, images, _BATCH)])
    return whole


def run_batches(name: str, graph: bytes, images: UInt8Array, batch: int) -> Iterator[list[Float32Array]]:
    """Run a graph with one input on ONNX Runtime's CPU provider and yield all of its outputs, batch by batch.

    Raises:
        ExportError: ONNX Runtime refuses the graph or the images.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone; they are raised as well
    # By itself it binds a thread to every core of the machine, and complains of those that this process may not use.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    try:
        session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=_WRONG_OPTIMIZERS
        )
        entry = session.get_inputs()[0].name
        for at in range(0, len(images), batch):
            yield session.run(None, {entry: images[at : at + batch]})
    except _RUNTIME_ERRORS as err:
        reason = " ".join(str(err).split())[:300]
        raise ExportError(f"{name}: expected a graph that ONNX Runtime runs, found: {reason}") from err
