"""The fake driver as ``libcuda.so.1``: C functions with ``cuda.h``'s prototypes, which ctypes converts for real."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

import pytest
from tests.engines.fakes.driver import ERRORS, INVALID_VALUE, FakeDriver

# cuda.h of CUDA 13.0, and since which version the symbol is there. The symbols without _v2 that old programs find in a
# real library take 32-bit sizes and addresses; here they are absent, so that nobody takes them by mistake.
SYMBOLS: dict[str, tuple[str, tuple[type, ...], int]] = {
    "cuInit": ("cuInit", (c_uint,), 2000),
    "cuDriverGetVersion": ("cuDriverGetVersion", (POINTER(c_int),), 2020),
    "cuDeviceGet": ("cuDeviceGet", (POINTER(c_int), c_int), 2000),
    "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", (POINTER(c_void_p), c_int), 7000),
    "cuDevicePrimaryCtxRelease_v2": ("cuDevicePrimaryCtxRelease", (c_int,), 11000),
    "cuDevicePrimaryCtxGetState": ("cuDevicePrimaryCtxGetState", (c_int, POINTER(c_uint), POINTER(c_int)), 7000),
    "cuCtxSetCurrent": ("cuCtxSetCurrent", (c_void_p,), 4000),
    "cuCtxPushCurrent_v2": ("cuCtxPushCurrent", (c_void_p,), 4000),
    "cuCtxPopCurrent_v2": ("cuCtxPopCurrent", (POINTER(c_void_p),), 4000),
    "cuMemAlloc_v2": ("cuMemAlloc", (POINTER(c_uint64), c_size_t), 3020),
    "cuMemFree_v2": ("cuMemFree", (c_uint64,), 3020),
    "cuMemHostAlloc": ("cuMemHostAlloc", (POINTER(c_void_p), c_size_t, c_uint), 2020),
    "cuMemFreeHost": ("cuMemFreeHost", (c_void_p,), 2000),
    "cuMemHostGetDevicePointer_v2": ("cuMemHostGetDevicePointer", (POINTER(c_uint64), c_void_p, c_uint), 3020),
    "cuMemcpyHtoDAsync_v2": ("cuMemcpyHtoDAsync", (c_uint64, c_void_p, c_size_t, c_void_p), 3020),
    "cuMemcpyDtoHAsync_v2": ("cuMemcpyDtoHAsync", (c_void_p, c_uint64, c_size_t, c_void_p), 3020),
    "cuStreamCreate": ("cuStreamCreate", (POINTER(c_void_p), c_uint), 2000),
    "cuStreamDestroy_v2": ("cuStreamDestroy", (c_void_p,), 4000),
    "cuStreamSynchronize": ("cuStreamSynchronize", (c_void_p,), 2000),
    "cuStreamBeginCapture_v2": ("cuStreamBeginCapture", (c_void_p, c_int), 10010),
    "cuStreamEndCapture": ("cuStreamEndCapture", (c_void_p, POINTER(c_void_p)), 10000),
    "cuGraphInstantiateWithFlags": (
        "cuGraphInstantiateWithFlags",
        (POINTER(c_void_p), c_void_p, c_ulonglong),
        11040,
    ),
    "cuGraphDestroy": ("cuGraphDestroy", (c_void_p,), 10000),
    "cuGraphLaunch": ("cuGraphLaunch", (c_void_p, c_void_p), 10000),
    "cuGraphExecDestroy": ("cuGraphExecDestroy", (c_void_p,), 10000),
    "cuDeviceGetName": ("cuDeviceGetName", (c_void_p, c_int, c_int), 2000),
    "cuDeviceGetAttribute": ("cuDeviceGetAttribute", (POINTER(c_int), c_uint, c_int), 2000),
    "cuDeviceTotalMem_v2": ("cuDeviceTotalMem", (POINTER(c_size_t), c_int), 3020),
    "cuMemGetInfo_v2": ("cuMemGetInfo", (POINTER(c_size_t), POINTER(c_size_t)), 3020),
    "cuModuleLoadData": ("cuModuleLoadData", (POINTER(c_void_p), c_void_p), 2000),
    "cuModuleUnload": ("cuModuleUnload", (c_void_p,), 2000),
    "cuModuleGetFunction": ("cuModuleGetFunction", (POINTER(c_void_p), c_void_p, c_void_p), 2000),
    "cuLaunchKernel": ("cuLaunchKernel", (c_void_p, *(7 * (c_uint,)), c_void_p, c_void_p, c_void_p), 4000),
}
_TEXTS = {name: (name.encode(), text.encode()) for name, text in ERRORS.values()}


class FakeLibrary:
    """What ``ctypes.CDLL("libcuda.so.1")`` would be; a symbol that the version lacks is an AttributeError."""

    def __init__(self, find_driver: Callable[[], FakeDriver], version: int) -> None:
        for symbol, (function, parameters, since) in SYMBOLS.items():
            if since <= version:
                prototype = ctypes.CFUNCTYPE(c_int, *parameters)
                setattr(self, symbol, prototype(_callback(find_driver, function, parameters)))
        text = ctypes.CFUNCTYPE(c_int, c_int, POINTER(c_char_p))
        self.cuGetErrorName = text(lambda code, out: _tell(code, out, 0))
        self.cuGetErrorString = text(lambda code, out: _tell(code, out, 1))


def install(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(lambda: driver, driver.version)
    monkeypatch.setattr("devit_engines.cuda.ctypes_driver.load_library", lambda: library)


def _callback(find_driver: Callable[[], FakeDriver], function: str, parameters: tuple[type, ...]) -> Callable[..., int]:
    is_output = [hasattr(parameter, "contents") for parameter in parameters]

    def perform(*values: Any) -> int:
        given = [value or 0 for value, out in zip(values, is_output, strict=True) if not out]
        code, *results = find_driver().call(function, *given)
        pointers = [value for value, out in zip(values, is_output, strict=True) if out]
        if code == 0:
            for pointer, result in zip(pointers, results, strict=True):
                pointer[0] = result
        return code

    return perform


def _tell(code: int, out: ctypes._Pointer[c_char_p], which: int) -> int:
    if code not in ERRORS:
        out[0] = None
        return INVALID_VALUE
    out[0] = _TEXTS[ERRORS[code][0]][which]
    return 0
