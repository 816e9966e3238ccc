"""A kernel in the place of an engine's plan, launched by ctypes: as TensorRT does, it goes to the driver by itself."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from ctypes import POINTER, c_float, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from pathlib import Path
from types import ModuleType

import numpy as np

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.choices import HostMemory
from devit_contract.errors import DeviceLostError, EngineError
from devit_engines.cuda.api import LOST, Cuda
from devit_engines.cuda.ctypes_driver import PROTOTYPES, CtypesDriver, Types
from devit_engines.engine import EngineSpec
from devit_engines.selftest.device.result import Gpu
from devit_engines.trt.engine import Plan, TrtEngine

PTX = Path(__file__).with_name("kernel.ptx")
IMAGE_SHAPE = (37, 53, 3)
"""Odd, so that neither rows nor the whole end with a word, a warp or a block."""
SCALE, SHIFT = 1 / 128, -1.0
"""Powers of two: the kernel's result is exact, and so is NumPy's."""
_THREADS = 128
_INTEGRATED, CAN_MAP_HOST_MEMORY, _MAJOR, _MINOR = 18, 19, 75, 76
"""CU_DEVICE_ATTRIBUTE_..."""

KERNEL_PROTOTYPES: dict[str, Types] = {
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetName": (c_void_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_uint, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuModuleLoadData": (POINTER(c_void_p), c_void_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_void_p),
    "cuLaunchKernel": (c_void_p, *(7 * (c_uint,)), c_void_p, c_void_p, c_void_p),
}
"""What only these checks call; as :data:`devit_engines.cuda.ctypes_driver.PROTOTYPES`."""
_NO_JIT = "in a container, mount the driver's libnvidia-ptxjitcompiler.so.1 too"
_CURES = {
    209: "this driver compiles nothing for its GPU: install the driver again",
    218: "this is a bug, report it with the driver's version",
    221: _NO_JIT,
    222: "update the driver to one of CUDA 11.4 or newer",
}


class DeviceCalls:
    """The functions of the driver that no engine of ours needs."""

    def __init__(self) -> None:
        """Load the driver's library.

        Raises:
            EngineError: It is missing, or too old.
        """
        self._driver = CtypesDriver(PROTOTYPES | KERNEL_PROTOTYPES)

    def __call__(self, function: str, *arguments: int) -> tuple[int, ...]:
        """Perform a function; returns what it returns through pointers.

        Raises:
            EngineError: CUDA refuses.
            DeviceLostError: The GPU's context is lost.
        """
        code, *outputs = self._driver.call(function, *arguments)
        if code != 0:
            found = f"{function}: expected success, found {self._driver.error_name(code)} ({code})"
            kind = DeviceLostError if code in LOST else EngineError
            raise kind(f"{found}: {_CURES.get(code, 'run devit doctor')}")
        return tuple(outputs)

    def describe(self) -> Gpu:
        """Name the first GPU; a context must be current or have been."""
        name = ctypes.create_string_buffer(256)
        self("cuDeviceGetName", ctypes.addressof(name), len(name), 0)
        (version,), (memory_bytes,) = self("cuDriverGetVersion"), self("cuDeviceTotalMem", 0)
        return Gpu(
            name.value.decode(),
            f"sm_{self.attribute(_MAJOR)}{self.attribute(_MINOR)}",
            f"{version // 1000}.{version % 1000 // 10}",
            memory_bytes >> 20,
            bool(self.attribute(_INTEGRATED)),
        )

    def attribute(self, number: int) -> int:
        """One of the first GPU's attributes."""
        return self("cuDeviceGetAttribute", number, 0)[0]

    def free_bytes(self) -> int:
        """Free memory of the GPU whose context is current."""
        return self("cuMemGetInfo")[0]


class Kernels:
    """The module of :data:`PTX` in the current context; :meth:`close` it before the context ends."""

    def __init__(self) -> None:
        """Let the driver compile it.

        Raises:
            EngineError: It cannot.
        """
        self._call = DeviceCalls()
        text = ctypes.create_string_buffer(PTX.read_bytes())  # which ends in NUL, as the driver wants
        (self._module,) = self._call("cuModuleLoadData", ctypes.addressof(text))

    def launch(self, name: str, count: int, stream: int, *parameters: ctypes._CData) -> None:
        """Queue a kernel with at least ``count`` threads; its parameters are copied at once."""
        text = ctypes.create_string_buffer(name.encode())
        (function,) = self._call("cuModuleGetFunction", self._module, ctypes.addressof(text))
        pointers = (c_void_p * max(len(parameters), 1))(*map(ctypes.addressof, parameters))
        grid, block = (math.ceil(count / _THREADS), 1, 1), (_THREADS, 1, 1)
        self._call("cuLaunchKernel", function, *grid, *block, 0, stream, ctypes.addressof(pointers), 0)

    def affine(self, source: int, target: int, count: int, stream: int) -> None:
        """Queue ``target[i] = SCALE * source[i] + SHIFT``, ``count`` uint8 to float32, both addresses of the GPU."""
        parameters = c_uint64(source), c_uint64(target), c_float(SCALE), c_float(SHIFT), c_uint32(count)
        self.launch("affine", count, stream, *parameters)

    def close(self) -> None:
        """Unload the module; twice is allowed."""
        module, self._module = self._module, 0
        if module:
            self._call("cuModuleUnload", module)


class KernelPlan:
    """The kernel as :class:`devit_engines.trt.engine.Plan`."""

    def __init__(self) -> None:
        """Let the driver compile it."""
        self._kernels = Kernels()
        self._addresses = (0, 0)

    def signature(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Images to one number for each of their bytes."""
        return ("UINT8", (1, *IMAGE_SHAPE)), ("FLOAT", (1, math.prod(IMAGE_SHAPE)))

    def bind(self, input_shape: tuple[int, ...], input_address: int, output_address: int) -> None:
        """Keep the addresses."""
        self._addresses = input_address, output_address

    def enqueue(self, stream: int) -> None:
        """Queue one run on a stream."""
        self._kernels.affine(*self._addresses, math.prod(IMAGE_SHAPE), stream)

    def information(self) -> str:
        """The kernel itself."""
        return PTX.read_text()

    def close(self) -> None:
        """Unload it; twice is allowed."""
        self._kernels.close()


class KernelEngine(TrtEngine):
    """The engine that runs TensorRT's plans, with the kernel in their place: same buffers, stream and graph."""

    def __init__(
        self, open_cuda: Callable[[], Cuda], *, host_memory: HostMemory = "pinned", use_graph: bool = True
    ) -> None:
        """Load the kernel; the rest is as in :class:`devit_engines.trt.engine.TrtEngine`."""
        spec = EngineSpec("the kernel", IMAGE_SHAPE, math.prod(IMAGE_SHAPE))
        super().__init__(b"", spec, open_cuda, host_memory=host_memory, use_graph=use_graph)

    def _load_plan(self, content: bytes, trt: ModuleType | None) -> Plan:
        return KernelPlan()


def expected(values: UInt8Array) -> Float32Array:
    """What the kernel makes of uint8 values, in their shape."""
    return values.astype(np.float32) * np.float32(SCALE) + np.float32(SHIFT)
