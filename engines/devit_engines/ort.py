"""ONNX Runtime on the CPU: the engine of every device without TensorRT."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import numpy as np

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.errors import EngineError
from devit_contract.extras import package_version
from devit_engines.engine import CheckedEngine, EngineSpec

_LOG_ERRORS_ONLY = 3
_ERROR_NAMES = (
    "EPFail",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)
"""ONNX Runtime's exceptions have no common base but Exception; read off 1.23.2 and 1.32.0."""


class OrtEngine(CheckedEngine):
    """An ONNX graph in ONNX Runtime's CPU provider."""

    def __init__(self, model: bytes, spec: EngineSpec, *, threads: int = 1) -> None:
        """Load an ONNX file's content: one uint8 input ``(batch, H, W, C)``, one float32 output ``(batch, dim)``.

        ``threads`` run inside one operator, the calling thread among them.

        Raises:
            EngineError: ONNX Runtime is not installed, or the content is no such graph.
        """
        super().__init__(spec)
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as native
        except ImportError as err:
            raise EngineError(
                f"{spec.name}: ONNX Runtime is not installed ({err}): run pip install onnxruntime"
            ) from err
        self._errors = (ValueError, RuntimeError, *(getattr(native, name) for name in _ERROR_NAMES))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _LOG_ERRORS_ONLY
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # A spinning thread burns a core, and joules, while it waits for the next frame.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except self._errors as err:
            raise EngineError(
                f"{spec.name}: expected an ONNX graph, found {len(model)} bytes that ONNX Runtime refuses "
                f"({_first_line(err)}): build the engine again with devit build"
            ) from err
        # It would hold the content as long as it lives, for a fallback to other providers, of which there are none.
        self._session.disable_fallback()
        self._session._model_bytes = None
        _return_free_memory()
        self._input_name = self._check_signature()

    def close(self) -> None:
        """Free the session."""
        super().close()
        self._session = None

    def _run(self, images: UInt8Array) -> Float32Array:
        try:
            (outputs,) = self._session.run(None, {self._input_name: images})
        except self._errors as err:
            raise EngineError(f"{self.spec.name}: ONNX Runtime failed: {_first_line(err)}") from err
        return np.asarray(outputs)

    def _check_signature(self) -> str:
        """Compare the graph's input and output with the spec, before the first image; returns the input's name."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [(value.type, tuple(value.shape)) for value in (*inputs, *outputs)]
        fits = (
            len(inputs) == 1
            and len(outputs) == 1
            and inputs[0].type == "tensor(uint8)"
            and _may_be(inputs[0].shape, (None, *self.image_shape))
            and outputs[0].type == "tensor(float)"
            and _may_be(outputs[0].shape, (None, self.output_dim))
        )
        if not fits:
            raise EngineError(
                f"{self.spec.name}: expected uint8 (batch, {', '.join(map(str, self.image_shape))}) to float32 "
                f"(batch, {self.output_dim}), found {found}: make the bundle again with devit export"
            )
        return str(inputs[0].name)


def _return_free_memory() -> None:
    """Give the system what loading a graph has used; glibc has to be told, others do it or cannot."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def installed_version() -> str:
    """Read ONNX Runtime's version from its package metadata, without importing it."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        if version := package_version(package):
            return version
    raise EngineError("ONNX Runtime is not installed: run pip install onnxruntime")


def _may_be(found: list[int | str | None], expected: tuple[int | None, ...]) -> bool:
    """Whether a graph's shape, whose free axes are names, allows the expected one; an expected None has to be free."""
    return len(found) == len(expected) and all(
        not isinstance(axis, int) or axis == wanted for axis, wanted in zip(found, expected, strict=True)
    )


def _first_line(err: BaseException) -> str:
    return str(err).strip().partition("\n")[0]
