"""Versions read without importing TensorRT: of the installed library, and of the one that built a plan."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress

from devit_contract.errors import EngineError
from devit_contract.extras import package_version

_PACKAGES = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings")
_LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8")
_MAGIC = b"ftrt"
_VERSION_AT = 24  # NVIDIA/TensorRT, samples/common/sampleEngines.cpp, printPlanVersion


def installed_version(load_library: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> str:
    """Read TensorRT's version from its package metadata, else from libnvinfer, without importing it."""
    for package in _PACKAGES:
        if version := package_version(package):
            return version
    for name in _LIBRARIES:
        with suppress(OSError):
            return _spelled_out(int(load_library(name).getInferLibVersion()))
    raise EngineError("TensorRT is not installed, neither its Python package nor libnvinfer: run devit doctor")


def plan_version(content: bytes) -> str | None:
    """The TensorRT that built a plan, e.g. ``10.3.0.26``; None where the bytes are no plan."""
    if len(content) < _VERSION_AT + 4 or not content.startswith(_MAGIC):
        return None
    return ".".join(str(part) for part in content[_VERSION_AT : _VERSION_AT + 4])


def check_plan(content: bytes, installed: str, name: str) -> None:
    """Refuse what is no plan or another version's, before the ``installed`` TensorRT sees it.

    Raises:
        EngineError: It cannot be run here.
    """
    found = plan_version(content)
    if found is None:
        raise EngineError(f"{name}: expected a TensorRT plan, found {content[:4]!r}: build it again with devit build")
    if found.split(".")[:3] != installed.split(".")[:3]:
        raise EngineError(
            f"{name}: built by TensorRT {found}, this device has TensorRT {installed}: run devit build on this device"
        )


def _spelled_out(number: int) -> str:
    """``getInferLibVersion`` as text: 8602 is 8.6.2, and 100300 is 10.3.0 (NvInferVersion.h, NV_TENSORRT_VERSION)."""
    unit = 10_000 if number >= 100_000 else 1_000
    return f"{number // unit}.{number % unit // 100}.{number % 100}"
