"""The fake driver as ``pycuda.driver``: objects that free themselves, and pycuda's own stack of contexts.

Read off pycuda 2026.1, ``src/cpp/cuda.hpp`` and ``src/wrapper/wrap_cudadrv.cpp``. The pycuda tests of test_cuda.py were
also run once with the real one, compiled for CUDA 13.0, over a ``libcuda.so.1`` whose functions are the fake driver's.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.engines.fakes.driver import ERRORS, FakeDriver


class Error(Exception):
    """Base of the module's errors; the text is all there is, a number is not."""


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class RuntimeError(Error):
    pass


def translate(function: str, code: int, remark: str = "") -> Error:
    text = f"{function} failed: {ERRORS[code][1]}{' - ' if remark else ''}{remark}"
    if code in (719, 701, 702, 703):
        return LaunchError(text)
    if code == 2:
        return MemoryError(text)
    if code in (100, 209, 301, 600, 214):
        return RuntimeError(text)
    return Error(text) if code == 999 else LogicError(text)


class Api:
    """Calls of the driver as pycuda makes them."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self._stacks: dict[int, list[Context]] = {}

    def guarded(self, function: str, *arguments: int) -> tuple[int, ...]:
        code, *results = self.driver.call(function, *arguments)
        if code:
            raise translate(function, code)
        return tuple(results)

    def cleanup(self, function: str, *arguments: int) -> None:
        """CUDAPP_CALL_GUARDED_CLEANUP: a failure is a line on stderr."""
        code = self.driver.call(function, *arguments)[0]
        if code:
            print(f"PyCUDA WARNING: a clean-up operation failed: {translate(function, code)}", file=sys.stderr)

    def stack(self) -> list[Context]:
        return self._stacks.setdefault(threading.get_ident(), [])

    def current(self, other_than: Context | None = None) -> Context | None:
        stack = self.stack()
        while stack and (stack[-1] is other_than or not stack[-1].is_valid):
            stack.pop()
        return stack[-1] if stack else None

    def push(self, context: Context) -> None:
        if self.stack():
            self.guarded("cuCtxPopCurrent")
        self.guarded("cuCtxPushCurrent", context.handle)
        self.stack().append(context)

    def pop(self) -> None:
        if not self.stack():
            raise translate("context::pop", 201, "cannot pop non-current context")
        self.guarded("cuCtxPopCurrent")
        self.stack().pop()
        current = self.current()
        if current is not None:
            self.guarded("cuCtxPushCurrent", current.handle)

    def ward(self) -> Context:
        """explicit_context_dependent: what is allocated belongs to the context on top."""
        context = self.current()
        if context is None:
            raise translate("explicit_context_dependent", 201, "no currently active context?")
        return context

    def activated(self, context: Context, work: Callable[[], None]) -> None:
        """As its scoped_context_activation: push the context for as long as the work takes."""
        if not context.is_valid:
            return  # cannot_activate_dead_context is ignored in clean-up
        did_switch = self.current() is not context
        if did_switch:
            if context.thread != threading.get_ident():
                self.driver.misuse.append("something of pycuda freed in another thread, which leaks it")
                return
            self.push(context)
        try:
            work()
        finally:
            if did_switch:
                self.pop()

    def destructor(self, work: Callable[[], None]) -> None:
        """A C++ exception that leaves a destructor ends the process."""
        try:
            work()
        except Error as err:
            self.driver.misuse.append(f"std::terminate in a destructor of pycuda: {err}")


class Context:
    def __init__(self, api: Api, handle: int, device: int) -> None:
        self.handle = handle
        self.is_valid = True
        self.thread = threading.get_ident()
        self._api = api
        self._device = device

    def push(self) -> None:
        self._api.push(self)

    def pop(self) -> None:  # a static method there: it pops whatever is on top
        self._api.pop()

    def detach(self) -> None:
        if not self.is_valid:
            raise translate("context::detach", 201, "cannot detach from invalid context")
        was_active = self._api.current() is self
        if not was_active:
            if self.thread != threading.get_ident():
                return
            self._api.cleanup("cuCtxPushCurrent", self.handle)
        self._api.cleanup("cuDevicePrimaryCtxRelease", self._device)  # which pops nothing
        self.is_valid = False
        if was_active:
            current = self._api.current(self)
            if current is not None:
                self._api.guarded("cuCtxPushCurrent", current.handle)

    def __del__(self) -> None:
        # The base's destructor no longer knows of the primary context, and detaches it as one of its own.
        if self.is_valid:
            self._api.driver.misuse.append("a primary context of pycuda dropped without detach()")


class Device:
    def __init__(self, api: Api, number: int) -> None:
        self._api = api
        (self._device,) = api.guarded("cuDeviceGet", number)

    def retain_primary_context(self) -> Context:
        (handle,) = self._api.guarded("cuDevicePrimaryCtxRetain", self._device)
        return Context(self._api, handle, self._device)


class Stream:
    def __init__(self, api: Api, flags: int) -> None:
        self._is_made = False
        self._api = api
        self._context = api.ward()
        (self.handle,) = api.guarded("cuStreamCreate", flags)
        # No method: a frame in a kept traceback would hold the stream, which one of C++ does not.
        self.synchronize = functools.partial(api.guarded, "cuStreamSynchronize", self.handle)
        self._is_made = True

    def __del__(self) -> None:
        if self._is_made:
            api, handle = self._api, self.handle
            api.destructor(lambda: api.activated(self._context, lambda: api.cleanup("cuStreamDestroy", handle)))


class Allocation:
    """device_allocation and pagelocked_host_allocation: freed once by hand, or with the last reference."""

    def __init__(self, api: Api, address: int, release: str) -> None:
        self.address = address
        self._release = release
        self._api = api
        self._context = api.ward()
        self._is_valid = True

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        if not self._is_valid:
            raise translate(f"{type(self).__name__}::free", 400)
        self._api.activated(self._context, lambda: self._api.cleanup(self._release, self.address))
        self._is_valid = False

    def __del__(self) -> None:
        if self._is_valid:
            self._api.destructor(self.free)


class HostAllocation(Allocation):
    def __init__(self, api: Api, address: int, size: int) -> None:
        super().__init__(api, address, "cuMemFreeHost")
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}

    def get_device_pointer(self) -> int:
        return self._api.guarded("cuMemHostGetDevicePointer", self.address, 0)[0]


def install(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("pycuda"), ModuleType("pycuda.driver")
    package.__path__ = []
    for name, thing in _names(Api(driver)).items():
        setattr(module, name, thing)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)


def _names(api: Api) -> dict[str, Any]:
    def init(flags: int = 0) -> None:
        api.guarded("cuInit", flags)

    def mem_alloc(size: int) -> Allocation:
        try:
            (address,) = api.guarded("cuMemAlloc", size)
        except MemoryError:  # as the real one: what nobody refers to may hold memory
            gc.collect()
            (address,) = api.guarded("cuMemAlloc", size)
        return Allocation(api, address, "cuMemFree")

    def pagelocked_empty(
        shape: tuple[int], dtype: npt.DTypeLike, order: str = "C", mem_flags: int = 0
    ) -> npt.NDArray[np.uint8]:
        assert np.dtype(dtype) == np.uint8
        (address,) = api.guarded("cuMemHostAlloc", shape[0], mem_flags)
        return np.asarray(HostAllocation(api, address, shape[0]))

    def memcpy_htod_async(dest: int, src: npt.NDArray[np.uint8], stream: Stream | None = None) -> None:
        handle = 0 if stream is None else stream.handle
        api.guarded("cuMemcpyHtoDAsync", int(dest), src.ctypes.data, src.nbytes, handle)

    def memcpy_dtoh_async(dest: npt.NDArray[np.uint8], src: int, stream: Stream | None = None) -> None:
        handle = 0 if stream is None else stream.handle
        api.guarded("cuMemcpyDtoHAsync", dest.ctypes.data, int(src), dest.nbytes, handle)

    return {
        "Error": Error,
        "MemoryError": MemoryError,
        "LogicError": LogicError,
        "LaunchError": LaunchError,
        "RuntimeError": RuntimeError,
        "Context": SimpleNamespace(get_current=api.current),
        "Device": lambda number: Device(api, number),
        "Stream": lambda flags=0: Stream(api, flags),
        "init": init,
        "mem_alloc": mem_alloc,
        "pagelocked_empty": pagelocked_empty,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
    }
