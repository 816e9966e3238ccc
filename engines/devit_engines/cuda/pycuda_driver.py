"""The driver API by pycuda: memory, streams and copies; graphs by ctypes, as pycuda does not know them.

pycuda keeps a stack of contexts for each thread beside CUDA's, and aborts the process if its own is not empty at the
end. Here it is empty outside of single calls, so neither an exception nor the order in which engines are closed can
leave something on it. Read off pycuda 2026.1, ``src/cpp/cuda.hpp``.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from devit_contract.errors import EngineError
from devit_engines.cuda.api import MAPPED_HOST_MEMORY, NON_BLOCKING_STREAM, Cuda, HostBuffer
from devit_engines.cuda.ctypes_driver import CtypesDriver


class PycudaCuda(Cuda):
    """:class:`devit_engines.cuda.api.Cuda` by pycuda, without ``pycuda.autoinit``, whose context nothing else shares.

    pycuda reports failures to *free* something on stderr only.
    """

    def __init__(self, device: int = 0) -> None:
        """Make the device's primary context current in this thread."""
        try:
            self._pycuda = importlib.import_module("pycuda.driver")
        except ImportError as err:
            raise EngineError(
                f"the package pycuda is not installed ({err}): "
                "run PATH=/usr/local/cuda/bin:$PATH pip install pycuda, or choose ctypes"
            ) from err
        self._ctypes = CtypesDriver()
        # pycuda's own objects: a context is detached, and a stream destroyed, with its last reference.
        self._contexts: list[Any] = []
        """The primary one, once it is retained."""
        self._memory: dict[int, Any] = {}
        self._pinned: dict[HostBuffer, Any] = {}
        self._streams: dict[int, Any] = {}
        super().__init__(self._ctypes, device)
        self.name = "pycuda"

    def allocate(self, size_bytes: int) -> int:
        with self._pushed("cuMemAlloc"):
            memory = self._pycuda.mem_alloc(size_bytes)
        address = int(memory)
        self._memory[address] = memory
        return address

    def free(self, address: int) -> None:
        with self._checked("cuMemFree"):
            _take(self._memory, address, "device memory").free()

    def allocate_host(self, size_bytes: int, *, mapped: bool = False) -> HostBuffer:
        flags = MAPPED_HOST_MEMORY if mapped else 0
        with self._pushed("cuMemHostAlloc"):
            array: npt.NDArray[np.uint8] = self._pycuda.pagelocked_empty((size_bytes,), np.uint8, mem_flags=flags)
            device_address = int(array.base.get_device_pointer()) if mapped else None  # type: ignore[union-attr]
        buffer = HostBuffer(array, device_address)
        self._pinned[buffer] = array.base
        self._host_addresses[buffer] = array.ctypes.data
        return buffer

    def free_host(self, buffer: HostBuffer) -> None:
        with self._checked("cuMemFreeHost"):
            self._host_address(buffer, 0)
            del self._host_addresses[buffer]
            self._pinned.pop(buffer).free()

    def create_stream(self) -> int:
        with self._pushed("cuStreamCreate"):
            stream = self._pycuda.Stream(NON_BLOCKING_STREAM)
        handle: int = stream.handle
        self._streams[handle] = stream
        return handle

    def destroy_stream(self, stream: int) -> None:
        with self._checked("cuStreamDestroy"):
            _take(self._streams, stream, "a stream")

    def copy_to_device(self, address: int, source: HostBuffer, size_bytes: int, stream: int) -> None:
        with self._checked("cuMemcpyHtoDAsync"):
            self._host_address(source, size_bytes)
            self._pycuda.memcpy_htod_async(address, source.array[:size_bytes], _find(self._streams, stream, "a stream"))

    def copy_to_host(self, target: HostBuffer, address: int, size_bytes: int, stream: int) -> None:
        with self._checked("cuMemcpyDtoHAsync"):
            self._host_address(target, size_bytes)
            self._pycuda.memcpy_dtoh_async(target.array[:size_bytes], address, _find(self._streams, stream, "a stream"))

    def synchronize(self, stream: int) -> None:
        with self._checked("cuStreamSynchronize"):
            _find(self._streams, stream, "a stream").synchronize()

    def _retain(self, number: int) -> tuple[int, int]:
        with self._checked("cuDevicePrimaryCtxRetain"):
            self._pycuda.init()
            context = self._pycuda.Device(number).retain_primary_context()
        self._contexts.append(context)
        (device,) = self._call("cuDeviceGet", number)
        return device, context.handle

    def _release(self) -> None:
        with self._checked("cuDevicePrimaryCtxRelease"):
            self._contexts[0].detach()
        # detach() pushes the context first and takes releasing it for popping it, which it is not for a primary one.
        self._call("cuCtxPopCurrent")

    @contextmanager
    def _pushed(self, function: str) -> Iterator[None]:
        """As :meth:`_checked`, with the context on pycuda's stack, where what is allocated looks for it."""
        with self._checked(function):
            self._contexts[0].push()
            try:
                yield
            finally:
                self._contexts[0].pop()

    @contextmanager
    def _checked(self, function: str) -> Iterator[None]:
        """Check the thread, and turn pycuda's errors into ours."""
        self._check_use(function)
        try:
            yield
        except self._pycuda.Error as err:
            raise self._failure_of(str(err)) from err

    def _failure(self, function: str, code: int) -> EngineError:
        failure = super()._failure(function, code)
        if self._loss is not None:
            self._keep_forever()
        return failure

    def _keep_forever(self) -> None:
        """Keep what pycuda would free: its destructors push the context, and a push that fails there ends the process.

        The process is to end by an exit code that says why.
        """
        for thing in (*self._memory.values(), *self._pinned.values(), *self._streams.values(), *self._contexts):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))

    def _failure_of(self, text: str) -> EngineError:
        """Find the CUresult of an error that pycuda describes: ``cuMemAlloc failed: out of memory - remark``."""
        function, _, description = text.partition(" - ")[0].partition(" failed: ")
        for code in range(1, 1000):
            if self._ctypes.error_text(code) == description:
                return self._failure(function, code)
        return EngineError(f"expected success, found {text}: run devit doctor")


def _find(things: dict[int, Any], number: int, what: str) -> Any:  # noqa: ANN401 - an object of pycuda
    if number not in things:
        raise EngineError(f"expected {what} of this CUDA, found {number:#x}: this is a bug, report it")
    return things[number]


def _take(things: dict[int, Any], number: int, what: str) -> Any:  # noqa: ANN401 - an object of pycuda
    """Find a thing and forget it, which destroys a stream."""
    thing = _find(things, number, what)
    del things[number]
    return thing
