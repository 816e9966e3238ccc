"""Opens CUDA by one of Python's three ways to the driver API.

``auto`` is ctypes: ``libcuda.so.1`` belongs to the driver, so it is on every Jetson and always of the driver's version;
nothing has to be installed or compiled, and it can call everything that is needed here, graphs included. pycuda has to
be compiled on the device and knows no graphs; cuda-bindings is one more package. Both are there for programs that use
them anyway.
"""

from __future__ import annotations

from typing import get_args

from devit_contract.choices import CudaChoice
from devit_contract.errors import InputError
from devit_engines.cuda.api import Cuda
from devit_engines.cuda.bindings_driver import BindingsDriver
from devit_engines.cuda.ctypes_driver import CtypesDriver
from devit_engines.cuda.pycuda_driver import PycudaCuda


def open_cuda(binding: CudaChoice = "auto", device: int = 0) -> Cuda:
    """Open CUDA for this thread.

    Raises:
        InputError: There is no such binding.
        EngineError: Its package or the driver is missing, or there is no GPU.
    """
    if binding not in get_args(CudaChoice):
        raise InputError(f"unknown CUDA binding {binding}: choose one of {', '.join(get_args(CudaChoice))}")
    if binding == "pycuda":
        return PycudaCuda(device)
    return Cuda(BindingsDriver() if binding == "cuda-bindings" else CtypesDriver(), device)
