"""The driver API by ctypes: the library's symbols and what they take."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import TypeAlias

from devit_contract.errors import EngineError

LIBRARY = "libcuda.so.1"
Types: TypeAlias = "tuple[type[ctypes._CDataType], ...]"

# cuda.h of CUDA 12.6 and 13.0; CUdevice is int, CUdeviceptr unsigned long long, a handle a pointer, enumerations are
# unsigned int. A POINTER is where a function returns something.
PROTOTYPES: dict[str, Types] = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuDevicePrimaryCtxGetState": (c_int, POINTER(c_uint), POINTER(c_int)),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemHostGetDevicePointer_v2": (POINTER(c_uint64), c_void_p, c_uint),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_uint),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
}
"""Parameters of the library's functions, under their symbols; every one returns a CUresult, an int."""


class CtypesDriver:
    """The driver's own library, without a package in between. While it works, other threads of Python run."""

    name = "ctypes"

    def __init__(self, prototypes: dict[str, Types] = PROTOTYPES) -> None:
        """Load the library and find every function; all that engines need, or others.

        Raises:
            EngineError: The library is missing, or too old.
        """
        library = load_library()
        self._functions = {
            symbol.removesuffix("_v2"): (_find(library, symbol, types), [_output_of(each) for each in types])
            for symbol, types in prototypes.items()
        }
        self._error_name = _find(library, "cuGetErrorName", (c_int, POINTER(c_char_p)))
        self._error_text = _find(library, "cuGetErrorString", (c_int, POINTER(c_char_p)))

    def call(self, function: str, *arguments: int) -> tuple[int, ...]:
        perform, output_types = self._functions[function]
        given = iter(arguments)
        # What a parameter points to is passed by reference, without a byref().
        values = [next(given) if output_type is None else output_type() for output_type in output_types]
        code = perform(*values)
        # ctypes reads a null pointer as None.
        return code, *(value.value or 0 for value in values if not isinstance(value, int))

    def error_name(self, code: int) -> str:
        return _text_of(self._error_name, code)

    def error_text(self, code: int) -> str:
        """CUDA's description of a CUresult."""
        return _text_of(self._error_text, code)


def load_library() -> ctypes.CDLL:
    """Load the driver's library, or say how to get one in an :class:`EngineError`."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as err:
        raise EngineError(
            f"NVIDIA's driver library {LIBRARY} is missing ({err}): "
            "run on a machine with an NVIDIA GPU; a container needs --runtime nvidia"
        ) from err


def _output_of(parameter: type[ctypes._CDataType]) -> Callable[[], ctypes._SimpleCData[int]] | None:
    """Type of what a function returns through this parameter, if it does."""
    return parameter._type_ if issubclass(parameter, ctypes._Pointer) else None


def _find(library: ctypes.CDLL, symbol: str, types: Types) -> Callable[..., int]:
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
