"""The fake driver as ``cuda.bindings.driver``: tuples that start with a CUresult, handles as objects, no other names.

Read off the wheels cuda-python 12.6.2, cuda-bindings 12.8.0, 12.9.10 and 13.5.0, with which test_cuda.py compares it.
Where ``DEVIT_REAL_CUDA_BINDINGS`` is set, the real package is used, over a ``libcuda.so.1`` whose functions are ours.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from tests.engines.fakes.driver import ERRORS, FakeDriver
from tests.engines.fakes.driver_library import SYMBOLS, FakeLibrary

HANDLES = ("CUdevice", "CUcontext", "CUdeviceptr", "CUstream", "CUgraph", "CUgraphExec")

# Parameters and results: a handle's class, int, or an enumeration.
FUNCTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cuInit": (("int",), ()),
    "cuDriverGetVersion": ((), ("int",)),
    "cuDeviceGet": (("int",), ("CUdevice",)),
    "cuDevicePrimaryCtxRetain": (("CUdevice",), ("CUcontext",)),
    "cuDevicePrimaryCtxRelease": (("CUdevice",), ()),
    "cuDevicePrimaryCtxGetState": (("CUdevice",), ("int", "int")),
    "cuCtxSetCurrent": (("CUcontext",), ()),
    "cuCtxPushCurrent": (("CUcontext",), ()),
    "cuCtxPopCurrent": ((), ("CUcontext",)),
    "cuMemAlloc": (("int",), ("CUdeviceptr",)),
    "cuMemFree": (("CUdeviceptr",), ()),
    "cuMemHostAlloc": (("int", "int"), ("int",)),
    "cuMemFreeHost": (("int",), ()),
    "cuMemHostGetDevicePointer": (("int", "int"), ("CUdeviceptr",)),
    "cuMemcpyHtoDAsync": (("CUdeviceptr", "int", "int", "CUstream"), ()),
    "cuMemcpyDtoHAsync": (("int", "CUdeviceptr", "int", "CUstream"), ()),
    "cuStreamCreate": (("int",), ("CUstream",)),
    "cuStreamDestroy": (("CUstream",), ()),
    "cuStreamSynchronize": (("CUstream",), ()),
    "cuStreamBeginCapture": (("CUstream", "CUstreamCaptureMode"), ()),
    "cuStreamEndCapture": (("CUstream",), ("CUgraph",)),
    "cuGraphInstantiate": (("CUgraph", "int"), ("CUgraphExec",)),
    "cuGraphDestroy": (("CUgraph",), ()),
    "cuGraphLaunch": (("CUgraphExec", "CUstream"), ()),
    "cuGraphExecDestroy": (("CUgraphExec",), ()),
}
RESULTS_SINCE = {36: 13000, 226: 12080, 721: 12080}
"""The CUresults of the fake that older packages have no name for."""
CAPTURE_MODES = {
    "CU_STREAM_CAPTURE_MODE_GLOBAL": 0,
    "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1,
    "CU_STREAM_CAPTURE_MODE_RELAXED": 2,
}
REAL_LIBRARY = """
typedef int (*lookup)(const char *, void **, int, unsigned long long, int *);
static lookup asked;
void set_lookup(lookup one) { asked = one; }
int cuGetProcAddress_v2(const char *name, void **out, int version, unsigned long long flags, int *status) {
    return asked(name, out, version, flags, status);
}
"""
"""All that the real package takes from ``libcuda.so.1`` by its symbol; C."""
_FULL_NAMES = {"cuGraphInstantiate": "cuGraphInstantiateWithFlags"}


class Handle:
    """As the real ones: a number that only int() reads."""

    def __init__(self, value: int = 0) -> None:
        self._value = int(value)

    def __int__(self) -> int:
        return self._value


def enumerations(version: int) -> dict[str, dict[str, int]]:
    """The members that the package of a version has, of those that the fake knows."""
    results = {name: code for code, (name, _) in ERRORS.items() if RESULTS_SINCE.get(code, 0) <= version}
    return {"CUresult": results, "CUstreamCaptureMode": CAPTURE_MODES}


def install(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    if "DEVIT_REAL_CUDA_BINDINGS" in os.environ:
        _real_library()
        return
    package, bindings, module = (ModuleType(name) for name in ("cuda", "cuda.bindings", "cuda.bindings.driver"))
    package.__path__, bindings.__path__ = [], []
    classes: dict[str, Any] = {"int": int}
    for name in HANDLES:
        classes[name] = type(name, (Handle,), {})
    for name, members in enumerations(driver.bindings).items():
        classes[name] = enum.IntEnum(name, members)
    for name, kind in classes.items():
        if name != "int":
            setattr(module, name, kind)
    module.CUDA_VERSION = driver.bindings  # type: ignore[attr-defined]
    for name, (parameters, results) in FUNCTIONS.items():
        setattr(module, name, _function(driver, name, parameters, results, classes))
    for name, found in (("cuda", package), ("cuda.bindings", bindings), ("cuda.bindings.driver", module)):
        monkeypatch.setitem(sys.modules, name, found)


def _function(
    driver: FakeDriver, name: str, parameters: tuple[str, ...], results: tuple[str, ...], classes: dict[str, Any]
) -> Callable[..., tuple[object, ...]]:
    def perform(*arguments: object) -> tuple[object, ...]:
        if len(arguments) != len(parameters):
            raise TypeError(f"{name}() takes exactly {len(parameters)} positional arguments ({len(arguments)} given)")
        values = [_given(argument, classes[kind]) for argument, kind in zip(arguments, parameters, strict=True)]
        code, *found = driver.call(_FULL_NAMES.get(name, name), *values)
        result = classes["CUresult"](code)  # as in the real one, an unknown number is a ValueError
        if code == 0:
            return result, *(classes[kind](value) for kind, value in zip(results, found, strict=True))
        # Up to 12.8 what a failed function leaves behind is returned, later None.
        return result, *(classes[kind](0) if driver.bindings < 12090 else None for kind in results)

    return perform


def _given(argument: object, kind: type) -> int:
    if argument is None and issubclass(kind, Handle):
        return 0
    if issubclass(kind, enum.IntEnum) and not isinstance(argument, kind):
        raise TypeError(f"expected {kind.__name__}, found {type(argument).__name__}")
    if not isinstance(argument, int | kind):
        raise TypeError(f"expected {kind.__name__} or int, found {type(argument).__name__}")
    return int(argument)  # type: ignore[call-overload,no-any-return]


@functools.cache
def _real_library() -> tuple[object, ...]:
    """Let the library find the functions of whatever fake driver is installed when they are called."""
    functions = FakeLibrary(FakeDriver.current, version=99000)

    def lookup(name: bytes, out: Any, version: int, _flags: int, _status: object) -> int:
        if name == b"cuGetProcAddress":  # 12.6 and 12.8 ask for it by itself
            out[0] = ctypes.cast(callback, ctypes.c_void_p).value
            return 0
        # As a real driver does: the form of a function that both it and the asked version know.
        for symbol, (function, _, since) in SYMBOLS.items():
            if function == name.decode() and since <= min(version, FakeDriver.current().version):
                out[0] = ctypes.cast(getattr(functions, symbol), ctypes.c_void_p).value
                return 0
        out[0] = None
        return 500

    types = (ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_ulonglong, ctypes.c_void_p)
    callback = ctypes.CFUNCTYPE(ctypes.c_int, *types)(lookup)
    library = ctypes.CDLL("libcuda.so.1")
    library.set_lookup(callback)
    return library, callback, functions  # kept alive
