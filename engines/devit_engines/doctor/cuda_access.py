"""How this Python would reach the GPU: which CUDA the driver speaks, and which binding fits it."""

from __future__ import annotations

from devit_engines.board import toolkit_version
from devit_engines.cuda.mig import UNKNOWN, count_instances
from devit_engines.doctor.finding import Finding, Machine, major
from devit_engines.doctor.interpreter import Interpreter, Package
from devit_engines.doctor.libraries import Libraries


def toolkit(machine: Machine) -> Finding | None:
    """Compare the toolkit with the driver; None where there is no NVIDIA GPU."""
    if not _has_nvidia(machine):
        return None
    version, driver = toolkit_version(machine.root), _driver_cuda(machine)
    speaks = "" if driver is None else f"the driver speaks {driver}"
    if version is None:
        return Finding("CUDA", f"no toolkit{speaks and f', {speaks}'}")
    text = f"toolkit {version}{speaks and f', {speaks}'}"
    if driver is None or major(version) <= major(driver):
        return Finding("CUDA", text)
    take = "an image" if machine.in_container else "a toolkit"
    return Finding("CUDA", text, "warning", f"take {take} of CUDA {driver}: a newer one fails with error 35")


def access(machine: Machine, libraries: Libraries) -> tuple[Finding | None, bool]:
    """Judge the bindings to CUDA.

    Returns:
        The finding, None where there is no NVIDIA GPU, and whether one binding at least works.
    """
    name = "CUDA binding"
    if not _has_nvidia(machine):
        return None, False
    if not libraries.has("libcuda.so.1") and not libraries.has("libcuda.so"):
        cure = (
            "start the container with --runtime nvidia"
            if machine.in_container
            else "run sudo apt install --reinstall nvidia-l4t-cuda"
        )
        return Finding(name, "none, as there is no libcuda.so.1", "warning", cure), False
    driver = _driver_cuda(machine) or toolkit_version(machine.root)
    found, unfit = ["ctypes"], None
    for package in _bindings(machine.python):
        if package.name != "pycuda" and driver and major(package.version) > major(driver):
            unfit = f"{package.name} {package.version}"
        else:
            found.append(f"{package.name} {package.version}")
    if unfit is None:
        return Finding(name, ", ".join(found)), True
    # A binding of CUDA 13 on JetPack 6's driver: cudaErrorInsufficientDriver, 35.
    text = f"{unfit} fails on a driver of CUDA {driver} (error 35); {', '.join(found)} works"
    fitting = "cuda-python==12.6.*" if major(driver or "") == 12 else f"cuda-bindings=={major(driver or '')}.*"
    return Finding(name, text, "warning", f"run pip uninstall cuda-bindings, then pip install '{fitting}'"), True


def instance(machine: Machine) -> Finding | None:
    """Say which part of the GPU this process gets; None where MIG can't divide it, as anywhere but on Thor."""
    found, parts = machine.board.gpu_instance, count_instances(machine.root)
    if not found:
        is_thor = machine.board.compute_capability == "sm_110"
        return Finding("MIG", "no instances: the GPU is whole, unless its MIG mode is on") if is_thor else None
    text = f"{parts} instance{'s' if parts != 1 else ''}, {found.removeprefix('MIG ')} for this process"
    if found != UNKNOWN:
        return Finding("MIG", f"{text}; engines are built for that part")
    text = f"{parts} instance{'s' if parts != 1 else ''}, and unknown which one this process gets"
    cure = "see that nvidia-smi -L answers, and CUDA_VISIBLE_DEVICES is unset or one of its UUIDs that start with MIG-"
    return Finding("MIG", text, "warning", cure)


def _bindings(python: Interpreter) -> list[Package]:
    """Find the packages with bindings; up to 12.6 cuda-python held them, since then cuda-bindings does."""
    return python.packages("pycuda") + (python.packages("cuda-bindings") or python.packages("cuda-python"))


def _has_nvidia(machine: Machine) -> bool:
    return machine.board.is_jetson or (machine.root / "proc/driver/nvidia/version").is_file()


def _driver_cuda(machine: Machine) -> str | None:
    """Highest CUDA that the driver speaks; on a Jetson the driver is part of the release."""
    return None if machine.jetpack is None else machine.jetpack.cuda
