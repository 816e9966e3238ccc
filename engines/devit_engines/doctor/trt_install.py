"""Which TensorRT this Python would import, where it comes from, and why that may fail.

``import tensorrt`` finds one of three: Debian's packages (for the system's Python alone), a wheel that brings its own
libraries (PyPI: ``tensorrt-cu12``, ``tensorrt-cu13``), or a wheel that takes the system's (from NVIDIA's archives).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from devit_contract.machine import board_compatible
from devit_engines.doctor.finding import PYTHON_FLOOR, Finding, Machine, major, numbers
from devit_engines.doctor.interpreter import Package
from devit_engines.doctor.jetpack import TENSORRT_11, takes_tensorrt_11
from devit_engines.doctor.libraries import Libraries

NAME = "TensorRT"
_OWN_LIBRARIES = ("tensorrt-cu12-libs", "tensorrt-cu13-libs", "tensorrt-libs")
_WHEELS = ("tensorrt-cu12", "tensorrt-cu13", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings", "tensorrt-bindings")
_APT = "sudo apt install tensorrt python3-libnvinfer"
_FIRST_WITH_ORIN = (10, 16, 1)
"""First wheel with kernels for Orin (SM 87), for JetPack 7: release notes of TensorRT 10.16.1."""


@dataclass(frozen=True)
class SystemBinding:
    """A binding that Debian's packages, or an image, put beside the system's Python."""

    version: str
    python: str
    """``3.10``, or empty where the folder serves every Python 3."""


def system_bindings(root: Path) -> list[SystemBinding]:
    """Find bindings in the folders of the system's Pythons below ``root``."""
    found = []
    for place in ("usr/lib", "usr/local/lib"):
        for path in sorted((root / place).glob("python3*/dist-packages/tensorrt-*.dist-info")):
            python = path.parent.parent.name.removeprefix("python").removeprefix("3").removeprefix(".")
            if match := re.fullmatch(r"tensorrt-([\d.]+)\.dist-info", path.name):
                found.append(SystemBinding(match[1], python and f"3.{python}"))
    return found


def tensorrt(machine: Machine, libraries: Libraries) -> tuple[Finding, str | None]:
    """Judge the TensorRT of this Python.

    Returns:
        The finding, and the version where the engines of this Python can be built with it.
    """
    python = machine.python
    wheels = python.packages(*_OWN_LIBRARIES, *_WHEELS)
    bindings = python.packages("tensorrt") or wheels
    system = system_bindings(machine.root)
    if wheels:
        finding = _own_libraries(machine, wheels, bindings[0], libraries)
    elif bindings:
        finding = _systems_libraries(machine, bindings[0], libraries)
    elif system:
        finding = _hidden(machine, system[0])
    else:
        finding = _none(machine, libraries)
    usable = bindings and finding.state == "good"
    return finding, bindings[0].version if usable else None


def _own_libraries(machine: Machine, wheels: list[Package], binding: Package, libraries: Libraries) -> Finding:
    text = f"{binding.version}, a wheel from PyPI"
    installed = sorted({"tensorrt", *(package.name for package in wheels)})
    uninstall = f"pip uninstall {' '.join(installed)}"
    if unfit := _why_unfit(machine, binding):
        where = "" if libraries.tensorrt else f", then {_APT}"
        return Finding(NAME, f"{text}, {unfit}", "warning", f"run {uninstall}{where}")
    if libraries.tensorrt is not None:
        text += f", in front of the system's {libraries.tensorrt}"
        return Finding(NAME, text, "warning", f"keep one of them: run {uninstall}, or sudo apt remove 'libnvinfer*'")
    if not any(package.name in _OWN_LIBRARIES for package in wheels):
        return Finding(NAME, f"{text}, without its libraries", "warning", f"run {uninstall}, and install it again")
    return Finding(NAME, f"{text}{_tensorrt_11(machine, binding)}")


def _why_unfit(machine: Machine, binding: Package) -> str:
    """Say why a wheel's own libraries have no kernels for this GPU; empty where they may have."""
    if machine.board.compute_capability != "sm_87":
        return ""
    if numbers(binding.version) < _FIRST_WITH_ORIN:
        # Read off a user's report, forums.developer.nvidia.com 364236: "Target GPU SM 87 is not supported".
        return "without kernels for this GPU (SM 87)"
    return "made for JetPack 7" if major(machine.board.l4t or "") == 36 else ""


def _tensorrt_11(machine: Machine, binding: Package) -> str:
    """Say what NVIDIA says of TensorRT 11 on this board: nothing is refused, as every engine is checked."""
    l4t = machine.board.l4t
    if l4t is None:
        return ""
    is_supported = takes_tensorrt_11(l4t, machine.board.name, board_compatible(machine.root))
    if major(binding.version) < 11:
        return f"; {TENSORRT_11} (SBSA package) is supported here" if is_supported else ""
    if is_supported and numbers(binding.version) >= numbers(TENSORRT_11):
        return ""
    return f"; unconfirmed here: NVIDIA supports {TENSORRT_11} on AGX Orin and Thor with JetPack 7.2.2"


def _systems_libraries(machine: Machine, binding: Package, libraries: Libraries) -> Finding:
    debian = (machine.root / "usr/lib").resolve() in binding.folder.resolve().parents
    text = f"{binding.version}, {'apt' if debian else 'a wheel'}, for Python {machine.python.label}"
    if libraries.tensorrt is None:
        return Finding(NAME, f"{text}, but no libnvinfer", "warning", f"run {_APT}")
    if major(libraries.tensorrt) != major(binding.version):
        text += f", but libnvinfer is {libraries.tensorrt}"
        cure = "sudo apt install --reinstall tensorrt python3-libnvinfer" if debian else "pip uninstall tensorrt"
        return Finding(NAME, text, "warning", f"run {cure}")
    return Finding(NAME, f"{text}{_tensorrt_11(machine, binding)}")


def _hidden(machine: Machine, binding: SystemBinding) -> Finding:
    """Say why this Python does not see a binding that is installed."""
    python = machine.python
    if binding.python not in ("", python.label):
        text = f"{binding.version}, apt, for Python {binding.python}, but this is Python {python.label}"
        cure = f"make the environment again: /usr/bin/python{binding.python} -m venv --system-site-packages .venv"
        if numbers(binding.python) < PYTHON_FLOOR:
            cure = "none before JetPack 6.0: devit needs Python 3.10 or later"
        return Finding(NAME, text, "warning", cure)
    if not python.sees_system_packages:
        text = f"{binding.version}, apt, which this virtual environment does not see"
        # On an environment that is there, venv rewrites pyvenv.cfg and keeps every package.
        cure = f"run /usr/bin/python{python.label} -m venv --system-site-packages {shlex.quote(str(python.prefix))}"
        return Finding(NAME, text, "warning", cure)
    text = f"{binding.version}, apt, of the system's Python {python.label}, which this is not"
    cure = f"make the environment again: /usr/bin/python{python.label} -m venv --system-site-packages .venv"
    return Finding(NAME, text, "warning", cure)


def _none(machine: Machine, libraries: Libraries) -> Finding:
    if libraries.tensorrt is not None:
        text = f"libnvinfer {libraries.tensorrt} without its Python binding"
        return Finding(NAME, text, "warning", "run sudo apt install python3-libnvinfer")
    if machine.board.is_jetson:
        return Finding(NAME, "none", "warning", f"run {_APT}")
    return Finding(NAME, "none: engines run on ONNX Runtime")
