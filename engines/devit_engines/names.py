"""The closed sets that options and files choose from, and the reference to one model of a bundle."""

from __future__ import annotations

from typing import Literal, get_args

BackendName = Literal["tensorrt", "ort"]
BackendChoice = Literal["auto", "tensorrt", "ort"]
Precision = Literal["fp16", "fp32"]
"""``fp16``: the fastest rung that passes the accuracy check; ``fp32``: that one alone."""
CudaBinding = Literal["auto", "pycuda", "cuda-bindings", "ctypes"]
"""Python's way to CUDA, see :mod:`devit_engines.cuda.open`."""
HostMemory = Literal["pinned", "mapped"]
"""``pinned``: images and features are copied; ``mapped``: the GPU reads and writes the CPU's memory, which saves the
copies if both share it, as on a Jetson."""
ModelRef = int | Literal["baseline"]
"""Index of a submodel, or the bundle's baseline model."""

BACKEND_CHOICES: tuple[BackendChoice, ...] = get_args(BackendChoice)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CUDA_BINDINGS: tuple[CudaBinding, ...] = get_args(CudaBinding)


def role_of(model: ModelRef) -> tuple[Literal["baseline", "submodel"], int | None]:
    """Give the role and the index by which a manifest names a model's files."""
    return ("baseline", None) if model == "baseline" else ("submodel", model)


def name_of(model: ModelRef) -> str:
    """Name a model for people.

    >>> name_of(0), name_of("baseline")
    ('submodel 0', 'baseline')
    """
    return model if model == "baseline" else f"submodel {model}"
