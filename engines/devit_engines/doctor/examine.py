"""The whole examination: every finding in the order of the table, and whether the machine can do the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from devit_contract.errors import EngineError
from devit_engines.board import has_fp8
from devit_engines.doctor import hardware, memory
from devit_engines.doctor.cuda_access import access, instance, toolkit
from devit_engines.doctor.finding import PYTHON_FLOOR, Finding, Machine, major, read_machine
from devit_engines.doctor.interpreter import Interpreter
from devit_engines.doctor.libraries import find_libraries, libraries
from devit_engines.doctor.trt_install import tensorrt

_EXPECTED = {
    "JetPack": "6.0 or later",
    "Python": "3.10 or later",
    "engines": "TensorRT or ONNX Runtime",
    "board": "one that this JetPack is made for",
}
"""What would not have been refused."""


def examine(root: Path, python: Interpreter, store: Path, free_bytes: int) -> list[Finding]:
    """Examine the machine whose files are below ``root``, and the Python that would build and run engines.

    The store's folder is for people; ``free_bytes`` is the room on its disk.
    """
    machine, files = read_machine(root, python), find_libraries(root)
    runtime, runtime_version = onnx_runtime(python)
    trt, trt_version = tensorrt(machine, files)
    nvidia_files = libraries(machine, files)
    cuda, cuda_works = access(machine, files)
    if not cuda_works or (nvidia_files is not None and nvidia_files.state != "good"):
        trt_version = None
    found = [
        hardware.board(machine),
        instance(machine),
        hardware.release(machine),
        hardware.power(machine),
        hardware.modes(machine),
        hardware.clock(machine),
        hardware.over_current(machine),
        memory.memory(machine),
        memory.headless(machine),
        hardware.disk(store, free_bytes),
        interpreter(python),
        runtime,
        trt,
        nvidia_files,
        toolkit(machine),
        cuda,
        engines(machine, trt_version, runtime_version),
    ]
    return [finding for finding in found if finding is not None]


def refuse(findings: Sequence[Finding]) -> None:
    """Stop where something was refused.

    Raises:
        EngineError: It names the first refusal, and its cure.
    """
    for finding in findings:
        if finding.state == "refused":
            raise EngineError(
                f"{finding.name}: expected {_EXPECTED[finding.name]}, found {finding.found}: {finding.cure}"
            )


def interpreter(python: Interpreter) -> Finding:
    """Judge the Python itself."""
    place = "no virtual environment"
    if python.is_venv:
        place = f"a virtual environment {'with' if python.sees_system_packages else 'without'} the system's packages"
    text = f"{python.label}, {place}"
    if python.version >= PYTHON_FLOOR:
        return Finding("Python", text)
    return Finding("Python", text, "refused", "install devit for a later Python")


def onnx_runtime(python: Interpreter) -> tuple[Finding, str | None]:
    """Find ONNX Runtime, and its version for the sum of all."""
    packages = python.packages("onnxruntime", "onnxruntime-gpu")
    if not packages:
        return Finding("ONNX Runtime", "none", "warning", "run pip install onnxruntime"), None
    first = packages[0]
    # On a Jetson, onnxruntime-gpu from PyPI falls back to the CPU without a word; devit asks for the CPU anyway.
    suffix = "" if first.name == "onnxruntime" else f" ({first.name}: devit uses its CPU provider)"
    return Finding("ONNX Runtime", f"{first.version}{suffix}"), first.version


def engines(machine: Machine, trt_version: str | None, runtime_version: str | None) -> Finding:
    """Sum up: what engines can be built with here."""
    if trt_version is not None and major(trt_version) >= 10 and has_fp8(machine.board.compute_capability):
        trt_version += " (with FP8)"
    names = {"TensorRT": trt_version, "ONNX Runtime": runtime_version}
    usable = [f"{name} {version}" for name, version in names.items() if version is not None]
    if not usable:
        return Finding("engines", "neither", "refused", "run pip install onnxruntime")
    if trt_version is None and machine.board.is_jetson:
        text = f"{usable[0]} on the CPU; not TensorRT, as warned above"
        return Finding("engines", text, "warning", "follow the lines on TensorRT, libraries and CUDA to use the GPU")
    return Finding("engines", f"built and run by {' or '.join(usable)}")
