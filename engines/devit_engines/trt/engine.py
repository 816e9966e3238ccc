"""A TensorRT plan as an engine: one image per call through fixed buffers, replayed as a CUDA graph."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.choices import HostMemory
from devit_contract.errors import DeviceLostError, EngineError
from devit_engines.cuda.api import Cuda, HostBuffer
from devit_engines.engine import CheckedEngine, EngineSpec
from devit_engines.trt.builder import LoadedPlan


class TrtEngine(CheckedEngine):
    """A plan of batch 1; images of a larger batch go through one by one.

    Everything happens in the thread that made it. The buffers are its own: what :meth:`features` returns belongs to
    the caller.
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
        """Load a plan whose header was looked at.

        Args:
            content: The plan.
            spec: What it has to be.
            open_cuda: Makes the GPU's context current; closed with the engine.
            host_memory: ``pinned`` or ``mapped``.
            use_graph: Record the run as a CUDA graph after the first one; a capture that fails leaves it as it is.
            trt: The module ``tensorrt``; imported where absent.

        Raises:
            EngineError: TensorRT or CUDA are missing or refuse the plan, or it is another model's.
            DeviceLostError: The GPU's context is lost.
        """
        super().__init__(spec)
        self._graph_failure: str | None = None
        self._wants_graph = use_graph
        self._is_capturing = False
        self._graph: int | None = None
        self._plan: LoadedPlan | None = None
        self._stream: int | None = None
        self._release: list[Callable[[], None]] = []
        cuda = self._cuda = open_cuda()
        self._release.append(cuda.close)
        try:
            stream = self._stream = cuda.create_stream()
            self._release.append(lambda: cuda.destroy_stream(stream))
            self._input = self._buffer(math.prod(spec.image_shape), host_memory)
            self._output = self._buffer(4 * spec.output_dim, host_memory)
            self._plan = LoadedPlan(trt or _tensorrt(spec.name), content, spec.name)
            self._release.append(self._plan.close)
            self._check_signature(self._plan)
            shape = (1, *spec.image_shape)
            self._plan.bind(shape, self._input.address, self._output.address)
        except BaseException:
            self.close()
            raise
        self._image = self._input.host.array.reshape(shape)
        self._features = self._output.host.array.view(np.float32).reshape(1, spec.output_dim)

    @property
    def is_replayed(self) -> bool:
        """Whether runs are replays of a CUDA graph."""
        return self._graph is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """Why runs are not replayed, where that was tried."""
        return () if self._graph_failure is None else (f"no CUDA graph: {self._graph_failure}",)

    def information(self) -> str:
        """What TensorRT made of the graph, as its inspector's JSON."""
        return self._loaded().information()

    def close(self) -> None:
        """Free graph, context, engine, runtime, buffers, stream, and the GPU's context, in this order.

        Raises:
            EngineError: CUDA could not free something; the rest is freed all the same.
        """
        super().close()
        failure: EngineError | None = None
        if self._stream is not None:  # after an error or a signal, work may still be queued
            stream, self._stream = self._stream, None
            self._release.append(lambda: self._cuda.synchronize(stream))
        while self._release:
            try:
                self._release.pop()()
            except DeviceLostError:  # nothing is left to be freed then, and whoever met the loss has told
                continue
            except EngineError as err:
                failure = failure or err
        if failure is not None:
            raise failure

    def _run(self, images: UInt8Array) -> Float32Array:
        stream = self._open_stream()
        outputs = np.empty((len(images), self.output_dim), np.float32)
        for index in range(len(images)):
            self._image[...] = images[index]
            if self._graph is None:
                self._enqueue(stream)
            else:
                self._cuda.launch(self._graph, stream)
            self._cuda.synchronize(stream)
            outputs[index] = self._features
            if self._wants_graph and self._graph is None:
                self._capture(stream)
        return outputs

    def _enqueue(self, stream: int) -> None:
        """Queue copy, run and copy back."""
        self._input.to_device(self._cuda, stream)
        try:
            self._loaded().enqueue(stream)
        except EngineError:
            if not self._is_capturing:
                self._cuda.synchronize(stream)  # says so if the GPU is lost, which TensorRT does not tell apart
            raise
        self._output.to_host(self._cuda, stream)

    def _open_stream(self) -> int:
        if self._stream is None:
            raise AssertionError("a closed engine is refused before")
        return self._stream

    def _capture(self, stream: int) -> None:
        """Record what :meth:`_enqueue` queues; after one run without, in which TensorRT does what it does once."""
        self._wants_graph = False
        try:
            self._cuda.begin_capture(stream)
            self._is_capturing = True
            try:
                self._enqueue(stream)
            except EngineError:
                self._cuda.destroy_graph(self._cuda.end_capture(stream))
                raise
            finally:
                self._is_capturing = False
            graph = self._graph = self._cuda.end_capture(stream)
            self._release.append(lambda: self._cuda.destroy_graph(graph))
        except DeviceLostError:
            raise
        except EngineError as err:
            self._graph_failure = str(err)

    def _buffer(self, size_bytes: int, host_memory: HostMemory) -> _Buffer:
        cuda = self._cuda
        is_mapped = host_memory == "mapped"
        host = cuda.allocate_host(size_bytes, mapped=is_mapped)
        self._release.append(lambda: cuda.free_host(host))
        if host.device_address is not None and is_mapped:
            return _Buffer(host, host.device_address, size_bytes, is_copied=False)
        address = cuda.allocate(size_bytes)
        self._release.append(lambda: cuda.free(address))
        return _Buffer(host, address, size_bytes, is_copied=True)

    def _loaded(self) -> LoadedPlan:
        if self._plan is None:
            raise AssertionError("asked before the plan is loaded")
        return self._plan

    def _check_signature(self, plan: LoadedPlan) -> None:
        found = plan.signature()
        expected = (("UINT8", (1, *self.image_shape)), ("FLOAT", (1, self.output_dim)))
        if found != expected:
            raise EngineError(
                f"{self.spec.name}: expected a plan of {expected[0]} to {expected[1]}, found {found[0]} to {found[1]}: "
                "build it again with devit build"
            )


class _Buffer:
    """One end of the engine: memory of the CPU, and of the GPU where they are two."""

    def __init__(self, host: HostBuffer, address: int, size_bytes: int, *, is_copied: bool) -> None:
        self.host = host
        self.address = address
        self._size_bytes = size_bytes
        self._is_copied = is_copied

    def to_device(self, cuda: Cuda, stream: int) -> None:
        if self._is_copied:
            cuda.copy_to_device(self.address, self.host, self._size_bytes, stream)

    def to_host(self, cuda: Cuda, stream: int) -> None:
        if self._is_copied:
            cuda.copy_to_host(self.host, self.address, self._size_bytes, stream)


def _tensorrt(name: str) -> ModuleType:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as err:
        raise EngineError(f"{name}: cannot import TensorRT ({err}): run devit doctor") from err
