"""Of the simulated driver: what it says of its GPU, and modules of PTX, whose kernels it runs."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.engines.fakes import ptx

if TYPE_CHECKING:
    from tests.engines.fakes.driver import CudaFault, Fault

NAME = "SIMULATED GPU"
INVALID_VALUE, INVALID_PTX, UNSUPPORTED_PTX_VERSION, INVALID_HANDLE, NOT_FOUND, LAUNCH_FAILED = (
    1,
    218,
    222,
    400,
    500,
    719,
)
C_TYPES: dict[str, Any] = {"u64": ctypes.c_uint64, "u32": ctypes.c_uint32, "f32": ctypes.c_float}
MOST_BLOCKS, MOST_THREADS = (2**31 - 1, 65535, 65535), 1024
PTX_SINCE = {(5, 0): 8000, (6, 0): 9000, (7, 0): 11000, (7, 4): 11040, (8, 5): 12060, (9, 0): 13000}
"""Version of PTX to the CUDA that brought it; PTX ISA, release history."""


class KernelCalls:
    """Mixed into the simulated driver."""

    if TYPE_CHECKING:
        version: int
        can_map: bool
        memory_bytes: int
        faults: set[Fault]
        misuse: list[str]
        _handles: itertools.count[int]

        def enqueue(self, stream: int, work: Callable[[], None]) -> None: ...
        def view(self, address: int, size_bytes: int) -> memoryview: ...
        def _wrong(self, code: int, text: str) -> CudaFault: ...
        def _fault(self, code: int) -> CudaFault: ...
        def _check_unsafe(self, what: str) -> None: ...
        def _check_context(self, what: str) -> None: ...
        def _check_device(self, device: int) -> None: ...
        def _check_idle(self, what: str) -> None: ...
        def _free_bytes(self) -> int: ...

    def __init__(self) -> None:
        self.modules: dict[int, ptx.Ptx] = {}
        self.functions: dict[int, tuple[int, str]] = {}
        """Handle to module and name."""

    def _cuDeviceGetName(self, target: int, size: int, device: int) -> tuple[int, ...]:
        self._check_device(device)
        if size <= len(NAME):
            raise self._wrong(INVALID_VALUE, f"{size} bytes for the name of a GPU")
        ctypes.memmove(target, NAME.encode() + b"\0", len(NAME) + 1)
        return ()

    def _cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, ...]:
        self._check_device(device)
        known = {18: 1, 19: int(self.can_map), 75: 8, 76: 7}
        if attribute not in known:
            raise self._wrong(INVALID_VALUE, f"attribute {attribute}, which the simulation does not know")
        return (known[attribute],)

    def _cuDeviceTotalMem(self, device: int) -> tuple[int, ...]:
        self._check_device(device)
        return (self.memory_bytes,)

    def _cuMemGetInfo(self) -> tuple[int, ...]:
        self._check_context("cuMemGetInfo")
        return self._free_bytes(), self.memory_bytes

    def _cuModuleLoadData(self, image: int) -> tuple[int, ...]:
        self._check_unsafe("cuModuleLoadData")
        if image == 0:
            raise self._wrong(INVALID_VALUE, "a module of a null pointer")
        text = ctypes.string_at(image)  # up to the NUL; without one, what follows is no PTX
        try:
            module = ptx.parse(text.decode("ascii"))
        except ValueError as err:
            raise self._wrong(INVALID_PTX, str(err)) from err
        if PTX_SINCE.get(module.version, 99000) > self.version:
            raise self._fault(UNSUPPORTED_PTX_VERSION)
        handle = next(self._handles)
        self.modules[handle] = module
        return (handle,)

    def _cuModuleUnload(self, module: int) -> tuple[int, ...]:
        self._check_unsafe("cuModuleUnload")
        if module not in self.modules:
            raise self._wrong(INVALID_HANDLE, f"{module:#x} unloaded, which is no module")
        self._check_idle("a module unloaded")
        del self.modules[module]
        self.functions = {handle: found for handle, found in self.functions.items() if found[0] != module}
        return ()

    def _cuModuleGetFunction(self, module: int, name: int) -> tuple[int, ...]:
        self._check_context("cuModuleGetFunction")
        if module not in self.modules:
            raise self._wrong(INVALID_HANDLE, f"a function of {module:#x}, which is no module")
        wanted = ctypes.string_at(name).decode()
        if wanted not in self.modules[module].entries:
            raise self._wrong(NOT_FOUND, f"a function {wanted} that the module has not")
        for handle, found in self.functions.items():
            if found == (module, wanted):
                return (handle,)
        handle = next(self._handles)
        self.functions[handle] = module, wanted
        return (handle,)

    def _cuLaunchKernel(self, function: int, *rest: int) -> tuple[int, ...]:
        grid, block, (shared, stream, parameters, extra) = rest[:3], rest[3:6], rest[6:]
        self._check_context("cuLaunchKernel")
        if function not in self.functions:
            raise self._wrong(INVALID_HANDLE, f"{function:#x} launched, which is no function")
        module, name = self.functions[function]
        is_small = all(1 <= size <= most for size, most in zip(grid, MOST_BLOCKS, strict=True))
        if not is_small or min(block) < 1 or block[0] * block[1] * block[2] > MOST_THREADS:
            raise self._wrong(INVALID_VALUE, f"a grid {grid} of blocks {block}")
        if shared or extra or grid[1:] != (1, 1) or block[1:] != (1, 1):
            raise self._wrong(INVALID_VALUE, "a launch that the simulation does not play")
        entry = self.modules[module].entries[name]
        values = self._parameters(entry, parameters)
        self.enqueue(stream, lambda: self._run_kernel(entry, values, grid[0], block[0]))
        return ()

    def _parameters(self, entry: ptx.Entry, address: int) -> dict[str, Any]:
        """Copy the parameters, each from where its pointer says, as a launch does."""
        if address == 0 and entry.parameters:
            raise self._wrong(INVALID_VALUE, "a launch without parameters of a kernel that has some")
        pointers = (ctypes.c_void_p * len(entry.parameters)).from_address(address)
        values: dict[str, Any] = {}
        for pointer, (name, kind) in zip(pointers, entry.parameters.items(), strict=True):
            if not pointer:
                raise self._wrong(INVALID_VALUE, f"a null pointer for the parameter {name}")
            values[name] = C_TYPES[kind].from_address(pointer).value
        return values

    def _run_kernel(self, entry: ptx.Entry, values: dict[str, Any], grid: int, block: int) -> None:
        if "aborts" in self.faults:
            os.abort()
        if "launch-fails" in self.faults:
            raise self._fault(LAUNCH_FAILED)
        try:
            ptx.run(entry, values, grid, block, self.view)
        except ptx.Trap:
            if "trap-ignored" not in self.faults:
                raise self._fault(LAUNCH_FAILED) from None
