"""CUDA as the engines need it: device memory, streams and graphs by the driver API, in one thread.

Work is done in the device's *primary* context, which TensorRT's runtime API uses too.
"""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from devit_contract.errors import DeviceLostError, EngineError

NON_BLOCKING_STREAM = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default stream."""
MAPPED_HOST_MEMORY = 2
"""CU_MEMHOSTALLOC_DEVICEMAP"""
_THREAD_LOCAL_CAPTURE = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not break a capture."""

# cuda.h of CUDA 13.0 says of all but the last two: "any further CUDA work will return the same error. To continue using
# CUDA, the process must be terminated and relaunched"; of 710 that the context cannot be used any more. 999 names no
# cause, and on a Jetson it follows a fault of the GPU.
LOST = frozenset({226, 700, 702, 714, 715, 716, 717, 718, 719, 721, 710, 999})
"""CUresults after which the context is lost."""
_NO_GPU = "run on a machine with an NVIDIA GPU; a container needs --runtime nvidia"
_OLD_DRIVER = (
    "the package is newer than the driver: on JetPack 6 run pip install 'cuda-python==12.6.*', or choose ctypes"
)
_NO_CAPTURE = "run this work without a CUDA graph"
_NO_DEVICE = 100
_CURES = {
    2: "stop other programs, which share this memory on a Jetson",
    34: f"this libcuda is the toolkit's stub: {_NO_GPU}",
    35: _OLD_DRIVER,
    36: _OLD_DRIVER,
    _NO_DEVICE: _NO_GPU,
    101: "choose a device that is there, 0 on a Jetson",
    803: "reboot, so that the driver fits its libraries again",
    **dict.fromkeys(range(900, 909), _NO_CAPTURE),
}


@dataclass(frozen=True, eq=False)
class HostBuffer:
    """Memory of the CPU that the GPU can copy from and to while the CPU continues."""

    array: npt.NDArray[np.uint8]
    """Shape ``(size_bytes,)``; must not be touched after ``free_host``."""
    device_address: int | None
    """Where the GPU sees this memory; only if it is mapped."""


class Driver(Protocol):
    """A way to call one function of the driver API."""

    name: str

    def call(self, function: str, *arguments: int) -> tuple[int, ...]:
        """Perform a function, named as the driver's library does but without version suffix.

        Returns:
            Its CUresult and, if that is 0, what it returns through pointers, in their order.

        Raises:
            EngineError: Driver or package have no such function.
        """

    def error_name(self, code: int) -> str:
        """What ``cuda.h`` calls a CUresult."""


class Cuda:
    """Device memory, streams and graphs of one GPU, for the thread that opened it.

    Every method raises :class:`EngineError` if CUDA refuses, or in another thread; :class:`DeviceLostError` once the
    GPU's context is lost. Addresses and handles are CUDA's own numbers, which TensorRT takes as they are.
    """

    def __init__(self, driver: Driver, device: int = 0) -> None:
        """Make the device's primary context current in this thread."""
        self.name = driver.name
        self._driver = driver
        self._owner = threading.current_thread()
        self._is_closed = False
        self._loss: str | None = None
        self._host_addresses: dict[HostBuffer, int] = {}
        self._device, context = self._retain(device)
        try:
            self._call("cuCtxSetCurrent", context)
        except EngineError:
            self._release()
            raise

    def allocate(self, size_bytes: int) -> int:
        """Device memory, content undefined; returns its address."""
        return self._call("cuMemAlloc", size_bytes)[0]

    def free(self, address: int) -> None:
        """Give device memory back; nothing in flight may use it."""
        self._call("cuMemFree", address)

    def allocate_host(self, size_bytes: int, *, mapped: bool = False) -> HostBuffer:
        """Pinned CPU memory, content undefined; ``mapped`` gives it a device address too."""
        (address,) = self._call("cuMemHostAlloc", size_bytes, MAPPED_HOST_MEMORY if mapped else 0)
        device_address = None
        if mapped:
            try:
                (device_address,) = self._call("cuMemHostGetDevicePointer", address, 0)
            except EngineError:
                self._call("cuMemFreeHost", address)
                raise
        memory = memoryview((ctypes.c_uint8 * size_bytes).from_address(address))
        buffer = HostBuffer(np.frombuffer(memory, np.uint8), device_address)
        self._host_addresses[buffer] = address
        return buffer

    def free_host(self, buffer: HostBuffer) -> None:
        """Give pinned memory back; its array must not be touched any more."""
        self._call("cuMemFreeHost", self._host_address(buffer, 0))
        del self._host_addresses[buffer]

    def create_stream(self) -> int:
        """Make a queue of work that does not wait for the default stream; returns its ``CUstream``."""
        return self._call("cuStreamCreate", NON_BLOCKING_STREAM)[0]

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cuStreamDestroy", stream)

    def copy_to_device(self, address: int, source: HostBuffer, size_bytes: int, stream: int) -> None:
        """Queue a copy of the buffer's first bytes, which must not change before it has happened."""
        self._call("cuMemcpyHtoDAsync", address, self._host_address(source, size_bytes), size_bytes, stream)

    def copy_to_host(self, target: HostBuffer, address: int, size_bytes: int, stream: int) -> None:
        """Queue a copy into the buffer's first bytes, which are valid after :meth:`synchronize`."""
        self._call("cuMemcpyDtoHAsync", self._host_address(target, size_bytes), address, size_bytes, stream)

    def synchronize(self, stream: int) -> None:
        """Wait until all work of a stream has happened; other threads of Python run meanwhile."""
        self._call("cuStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        """From now on, record the stream's work instead of doing it. Has to be followed by :meth:`end_capture`."""
        self._call("cuStreamBeginCapture", stream, _THREAD_LOCAL_CAPTURE)

    def end_capture(self, stream: int) -> int:
        """Make a graph of the recorded work, for :meth:`launch`; the stream is as before, also if work was refused."""
        (graph,) = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiateWithFlags", graph, 0)[0]
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Queue the work of a graph."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back; nothing in flight may use it."""
        self._call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Release the context, after all else was given back; calling it twice is allowed.

        It stays current as long as others hold it, TensorRT or a second engine.
        """
        if self._is_closed:
            return
        self._release()
        _flags, is_active = self._call("cuDevicePrimaryCtxGetState", self._device)
        if not is_active:
            self._call("cuCtxSetCurrent", 0)
        self._is_closed = True

    def _retain(self, number: int) -> tuple[int, int]:
        """Hold the device's primary context; returns device and context."""
        self._call("cuInit", 0)
        (device,) = self._call("cuDeviceGet", number)
        (context,) = self._call("cuDevicePrimaryCtxRetain", device)
        return device, context

    def _release(self) -> None:
        """Hold the primary context no longer."""
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def _call(self, function: str, *arguments: int) -> tuple[int, ...]:
        """Perform a function of the driver; returns what it returns through pointers."""
        self._check_use(function)
        code, *outputs = self._driver.call(function, *arguments)
        if code != 0:
            raise self._failure(function, code)
        return tuple(outputs)

    def _check_use(self, function: str) -> None:
        found = threading.current_thread()
        if found is not self._owner:
            raise EngineError(
                f"{function}: expected thread {self._owner.name} ({self._owner.ident}), which opened CUDA, "
                f"found thread {found.name} ({found.ident}): load an engine in the thread that runs it"
            )
        if self._is_closed:
            raise EngineError(f"{function}: CUDA is closed: load the engine again")
        if self._loss is not None:
            raise DeviceLostError(self._loss)

    def _failure(self, function: str, code: int) -> EngineError:
        """Turn a CUresult into an error; a loss is kept, as whatever is called afterwards cannot succeed."""
        found = f"{function}: expected success, found {self._driver.error_name(code)} ({code})"
        if code not in LOST:
            return EngineError(f"{found}: {_cure(code)}")
        self._loss = f"{found}, after which CUDA is lost to this process: start it again"
        return DeviceLostError(self._loss)

    def _host_address(self, buffer: HostBuffer, size_bytes: int) -> int:
        """Where a buffer is; only one that is pinned, alive, and large enough can be copied without waiting."""
        address = self._host_addresses.get(buffer)
        if address is None:
            raise EngineError(
                "expected a buffer of allocate_host, found one that was freed or is another's: this is a bug, report it"
            )
        if size_bytes > buffer.array.size:
            raise EngineError(
                f"expected at most the buffer's {buffer.array.size} bytes, found {size_bytes}: this is a bug, report it"
            )
        return address


def _cure(code: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if code == _NO_DEVICE and visible is not None:
        return f"CUDA_VISIBLE_DEVICES is {visible!r}, which may hide the GPU: unset it"
    return _CURES.get(code, "run devit doctor")
