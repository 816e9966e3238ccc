"""How far an exported graph is from the trained model, measured by ONNX Runtime on real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime

from devit_contract.errors import ExportError

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""Largest absolute difference of any output number in FP32; a right graph stays at rounding, about 1e-6."""
_BATCH = 64


@dataclass(frozen=True)
class Difference:
    """Of all output numbers, absolute."""

    max_abs: float
    mean_abs: float


def measure(
    name: str, graph: bytes, images: UInt8Array, reference: Float32Array, *, tolerance: float = TOLERANCE
) -> Difference:
    """Run a graph on ONNX Runtime's CPU provider and compare it with the model it came from.

    Args:
        name: The graph's file name, for the message.
        graph: The ONNX file's bytes.
        images: Shape ``(n, H, W, C)``.
        reference: What PyTorch answers, shape ``(n, dim)``.
        tolerance: Largest accepted absolute difference.

    Raises:
        ExportError: The graph cannot be run, its output has another shape, or it differs by more (or by NaN).
    """
    found = run_graph(name, graph, images)
    if found.shape != reference.shape:
        raise ExportError(f"{name}: expected an output of shape {reference.shape}, found {found.shape}")
    errors = np.abs(found.astype(np.float64) - reference)
    difference = Difference(float(errors.max()), float(errors.mean()))
    if not difference.max_abs <= tolerance:  # so that NaN is refused too
        worst = np.unravel_index(int(np.argmax(errors)), errors.shape)
        raise ExportError(
            f"{name}: expected the trained model's numbers within {tolerance:g}, found a difference of "
            f"{difference.max_abs:.3g} at image {worst[0]}, output {worst[1]}: the graph was not written"
        )
    return difference


def run_graph(name: str, graph: bytes, images: UInt8Array) -> Float32Array:
    """Run a graph with one input and one output on ONNX Runtime's CPU provider, in batches.

    Args:
        name: The graph's file name, for the message.
        graph: The ONNX file's bytes.
        images: Shape ``(n, H, W, C)``.

    Returns:
        Shape ``(n, dim)``.

    Raises:
        ExportError: ONNX Runtime refuses the graph or the images.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone; they are raised as well
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0].name
        parts = [session.run(None, {entry: images[at : at + _BATCH]})[0] for at in range(0, len(images), _BATCH)]
    except _RUNTIME_ERRORS as err:
        reason = " ".join(str(err).split())[:300]
        raise ExportError(f"{name}: expected a graph that ONNX Runtime runs, found: {reason}") from err
    whole: Float32Array = np.concatenate(parts)
    return whole


def _runtime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


_RUNTIME_ERRORS: tuple[type[Exception], ...] = (*_runtime_errors(), ValueError)
