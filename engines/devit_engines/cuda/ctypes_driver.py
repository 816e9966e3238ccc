"""The driver API by ctypes: the library's symbols and what they take."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from dataclasses import dataclass

from devit_contract.errors import EngineError

LIBRARY = "libcuda.so.1"


@dataclass(frozen=True)
class Out:
    """A pointer through which a function returns something."""

    type: type[ctypes._SimpleCData[int]] | type[c_void_p]


@dataclass(frozen=True)
class Prototype:
    """One function of the library; it returns a CUresult, an int."""

    symbol: str
    """With the version suffix that ``cuda.h`` defines it to."""
    parameters: tuple[type[ctypes._SimpleCData[int]] | type[c_void_p] | Out, ...]
    """A handle is a ``c_void_p``."""

    def find(self, library: ctypes.CDLL) -> Callable[..., int]:
        """Find the function in a library.

        Raises:
            EngineError: It is not there.
        """
        types = [POINTER(given.type) if isinstance(given, Out) else given for given in self.parameters]
        return _find(library, self.symbol, types)


# cuda.h of CUDA 12.6 and 13.0; CUdevice is int, CUdeviceptr unsigned long long, enumerations are unsigned int.
PROTOTYPES = {
    "cuInit": Prototype("cuInit", (c_uint,)),
    "cuDeviceGet": Prototype("cuDeviceGet", (Out(c_int), c_int)),
    "cuDevicePrimaryCtxRetain": Prototype("cuDevicePrimaryCtxRetain", (Out(c_void_p), c_int)),
    "cuDevicePrimaryCtxRelease": Prototype("cuDevicePrimaryCtxRelease_v2", (c_int,)),
    "cuDevicePrimaryCtxGetState": Prototype("cuDevicePrimaryCtxGetState", (c_int, Out(c_uint), Out(c_int))),
    "cuCtxSetCurrent": Prototype("cuCtxSetCurrent", (c_void_p,)),
    "cuCtxPopCurrent": Prototype("cuCtxPopCurrent_v2", (Out(c_void_p),)),
    "cuMemAlloc": Prototype("cuMemAlloc_v2", (Out(c_uint64), c_size_t)),
    "cuMemFree": Prototype("cuMemFree_v2", (c_uint64,)),
    "cuMemHostAlloc": Prototype("cuMemHostAlloc", (Out(c_void_p), c_size_t, c_uint)),
    "cuMemFreeHost": Prototype("cuMemFreeHost", (c_void_p,)),
    "cuMemHostGetDevicePointer": Prototype("cuMemHostGetDevicePointer_v2", (Out(c_uint64), c_void_p, c_uint)),
    "cuMemcpyHtoDAsync": Prototype("cuMemcpyHtoDAsync_v2", (c_uint64, c_void_p, c_size_t, c_void_p)),
    "cuMemcpyDtoHAsync": Prototype("cuMemcpyDtoHAsync_v2", (c_void_p, c_uint64, c_size_t, c_void_p)),
    "cuStreamCreate": Prototype("cuStreamCreate", (Out(c_void_p), c_uint)),
    "cuStreamDestroy": Prototype("cuStreamDestroy_v2", (c_void_p,)),
    "cuStreamSynchronize": Prototype("cuStreamSynchronize", (c_void_p,)),
    "cuStreamBeginCapture": Prototype("cuStreamBeginCapture_v2", (c_void_p, c_uint)),
    "cuStreamEndCapture": Prototype("cuStreamEndCapture", (c_void_p, Out(c_void_p))),
    "cuGraphInstantiateWithFlags": Prototype("cuGraphInstantiateWithFlags", (Out(c_void_p), c_void_p, c_ulonglong)),
    "cuGraphDestroy": Prototype("cuGraphDestroy", (c_void_p,)),
    "cuGraphLaunch": Prototype("cuGraphLaunch", (c_void_p, c_void_p)),
    "cuGraphExecDestroy": Prototype("cuGraphExecDestroy", (c_void_p,)),
}


class CtypesDriver:
    """The driver's own library, without a package in between. While it works, other threads of Python run."""

    name = "ctypes"

    def __init__(self) -> None:
        """Load the library and find every function.

        Raises:
            EngineError: The library is missing, or too old.
        """
        library = load_library()
        self._functions = {name: prototype.find(library) for name, prototype in PROTOTYPES.items()}
        texts: tuple[type[ctypes._CDataType], ...] = (c_int, POINTER(c_char_p))
        self._error_name = _find(library, "cuGetErrorName", texts)
        self._error_text = _find(library, "cuGetErrorString", texts)

    def call(self, function: str, *arguments: int) -> tuple[int, ...]:
        given = iter(arguments)
        values: list[object] = []
        outputs: list[ctypes._SimpleCData[int] | c_void_p] = []
        for parameter in PROTOTYPES[function].parameters:
            if isinstance(parameter, Out):
                outputs.append(parameter.type())
                values.append(byref(outputs[-1]))
            else:
                values.append(next(given))
        code = self._functions[function](*values)
        # ctypes reads a null pointer as None.
        return code, *(output.value or 0 for output in outputs)

    def error_name(self, code: int) -> str:
        return _text_of(self._error_name, code)

    def error_text(self, code: int) -> str:
        """CUDA's description of a CUresult."""
        return _text_of(self._error_text, code)


def load_library() -> ctypes.CDLL:
    """Load the driver's library.

    Raises:
        EngineError: There is none.
    """
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as err:
        raise EngineError(
            f"NVIDIA's driver library {LIBRARY} is missing ({err}): "
            "run on a Jetson, in a container with --runtime nvidia"
        ) from err


def _find(library: ctypes.CDLL, symbol: str, types: Sequence[type[ctypes._CDataType]]) -> Callable[..., int]:
    try:
        function = getattr(library, symbol)
    except AttributeError as err:
        raise EngineError(f"{LIBRARY} has no function {symbol}: update to JetPack 6.0 or newer") from err
    function.argtypes = types
    function.restype = c_int
    return function  # type: ignore[no-any-return]


def _text_of(function: Callable[..., int], code: int) -> str:
    text = c_char_p()
    function(code, byref(text))
    return text.value.decode() if text.value is not None else "an error that this driver does not know"
