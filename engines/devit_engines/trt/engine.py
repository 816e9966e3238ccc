"""A TensorRT plan as an engine: one image per call through fixed buffers, replayed as a CUDA graph."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.choices import HostMemory
from devit_contract.errors import DeviceLostError, EngineError
from devit_engines.cuda.api import Cuda, HostBuffer
from devit_engines.engine import CheckedEngine, EngineSpec
from devit_engines.trt.builder import LoadedPlan


class Plan(Protocol):
    """What the engine asks of a plan; :class:`devit_engines.trt.builder.LoadedPlan` tells more."""

    def signature(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Type name and shape of the input and of the output."""

    def bind(self, input_shape: tuple[int, ...], input_address: int, output_address: int) -> None:
        """Set shape and addresses, once."""

    def enqueue(self, stream: int) -> None:
        """Queue one run on a stream."""

    def information(self) -> str:
        """What became of the graph, for people."""

    def close(self) -> None:
        """Free it, before what it was bound to; twice is allowed."""


class TrtEngine(CheckedEngine):
    """A plan of batch 1; images of a larger batch go through one by one.

    Use it in the thread that made it. What :meth:`features` returns belongs to the caller.
    """

    def __init__(
        self,
        content: bytes,
        spec: EngineSpec,
        open_cuda: Callable[[], Cuda],
        *,
        host_memory: HostMemory = "pinned",
        use_graph: bool = True,
        trt: ModuleType | None = None,
    ) -> None:
        """Load a plan whose header has been checked.

        ``open_cuda`` makes the GPU's context current, which is closed with the engine. ``use_graph`` records the run as
        a CUDA graph after the first one; a capture that fails leaves it as it is. TensorRT is imported where it is not
        given.

        Raises:
            EngineError: TensorRT or CUDA are missing or refuse the plan, or it is another model's.
            DeviceLostError: The GPU's context is lost.
        """
        super().__init__(spec)
        self._graph_failure: str | None = None
        self._wants_graph = use_graph
        self._graph: int | None = None
        self._release: list[Callable[[], None]] = []
        """What :meth:`close` calls, the last one first."""
        cuda = self._cuda = open_cuda()
        self._release.append(cuda.close)
        try:
            stream = self._stream = cuda.create_stream()
            self._release.append(lambda: cuda.destroy_stream(stream))
            self._input = self._buffer(math.prod(spec.image_shape), host_memory)
            self._output = self._buffer(4 * spec.output_dim, host_memory)
            self._plan = self._load_plan(content, trt)
            self._release.append(self._plan.close)
            self._check_signature()
            shape = (1, *spec.image_shape)
            self._plan.bind(shape, self._input.address, self._output.address)
        except BaseException:
            self.close()
            raise
        self._release.append(lambda: cuda.synchronize(stream))  # after an error or a signal, work may still be queued
        self._image = self._input.host.array.reshape(shape)
        self._features = self._output.host.array.view(np.float32).reshape(1, spec.output_dim)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why runs are not replayed, where that was tried."""
        return () if self._graph_failure is None else (f"no CUDA graph: {self._graph_failure}",)

    def information(self) -> str:
        """What TensorRT made of the graph, as its inspector's JSON."""
        return self._plan.information()

    def close(self) -> None:
        """Free graph, context, engine, runtime, buffers, stream, and the GPU's context, in this order.

        Raises:
            EngineError: CUDA could not free something; the rest is freed all the same.
        """
        super().close()
        failure: EngineError | None = None
        while self._release:
            try:
                self._release.pop()()
            except DeviceLostError:  # nothing is left to be freed then, and the call that met the loss has reported it
                continue
            except EngineError as err:
                failure = failure or err
        if failure is not None:
            raise failure

    def _load_plan(self, content: bytes, trt: ModuleType | None) -> Plan:
        return LoadedPlan(trt or _tensorrt(self.spec.name), content, self.spec.name)

    def _run(self, images: UInt8Array) -> Float32Array:
        outputs = np.empty((len(images), self.output_dim), np.float32)
        for index in range(len(images)):
            self._image[...] = images[index]
            if self._graph is None:
                self._enqueue()
            else:
                self._cuda.launch(self._graph, self._stream)
            self._cuda.synchronize(self._stream)
            outputs[index] = self._features
            if self._wants_graph:
                self._capture()
        return outputs

    def _enqueue(self, *, is_capturing: bool = False) -> None:
        """Queue copy, run and copy back."""
        cuda, stream, source, target = self._cuda, self._stream, self._input, self._output
        if source.is_copied:
            cuda.copy_to_device(source.address, source.host, source.size_bytes, stream)
        try:
            self._plan.enqueue(stream)
        except EngineError:
            if not is_capturing:
                cuda.synchronize(stream)  # raises DeviceLostError if the GPU is lost; TensorRT does not say
            raise
        if target.is_copied:
            cuda.copy_to_host(target.host, target.address, target.size_bytes, stream)

    def _capture(self) -> None:
        """Record what :meth:`_enqueue` queues, after a run without capture, in which TensorRT initialises itself."""
        self._wants_graph, stream = False, self._stream
        try:
            self._cuda.begin_capture(stream)
            try:
                self._enqueue(is_capturing=True)
            except EngineError:
                self._cuda.destroy_graph(self._cuda.end_capture(stream))
                raise
            graph = self._graph = self._cuda.end_capture(stream)
            self._release.insert(-1, lambda: self._cuda.destroy_graph(graph))  # after the stream has come to rest
        except DeviceLostError:
            raise
        except EngineError as err:
            self._graph_failure = str(err)

    def _buffer(self, size_bytes: int, host_memory: HostMemory) -> _Buffer:
        cuda = self._cuda
        host = cuda.allocate_host(size_bytes, mapped=host_memory == "mapped")
        self._release.append(lambda: cuda.free_host(host))
        if host.device_address is not None:
            return _Buffer(host, host.device_address, size_bytes, is_copied=False)
        address = cuda.allocate(size_bytes)
        self._release.append(lambda: cuda.free(address))
        return _Buffer(host, address, size_bytes, is_copied=True)

    def _check_signature(self) -> None:
        found = self._plan.signature()
        expected = (("UINT8", (1, *self.image_shape)), ("FLOAT", (1, self.output_dim)))
        if found != expected:
            raise EngineError(
                f"{self.spec.name}: expected a plan of {expected[0]} to {expected[1]}, found {found[0]} to {found[1]}: "
                "build it again with devit build"
            )


@dataclass(frozen=True)
class _Buffer:
    """One end of the engine: memory of the CPU, and of the GPU if they are two."""

    host: HostBuffer
    address: int
    size_bytes: int
    is_copied: bool


def _tensorrt(name: str) -> ModuleType:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as err:
        raise EngineError(f"{name}: cannot import TensorRT ({err}): run devit doctor") from err
