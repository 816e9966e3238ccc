"""NVIDIA's shared libraries as files: which are there, which are empty, which one is missed by the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from devit_engines.doctor.elf import needed_libraries
from devit_engines.doctor.finding import Finding, Machine, major, numbers

FOLDERS = (
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu/nvidia",
    "usr/lib/aarch64-linux-gnu/tegra",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib",
)
"""Debian's places, those of Jetson Linux (nvidia from release 36 on, tegra before), and Yocto's."""

_PATTERNS = ("libcuda.so*", "libnvinfer*.so*", "libnvonnxparser.so*", "libnvdla_compiler.so*")
_CUDA_FOLDERS = ("usr/local/cuda/lib64", "usr/local/cuda/targets/aarch64-linux/lib")
_DLA_COMPILER = "libnvdla_compiler.so"
_LAST_WITH_DLA_COMPILER = (10, 11)
"""Last TensorRT in images for Jetsons alone (tensorrt:25.06-py3-igpu), for a libnvinfer that cannot be read."""
_DLA_IS_BACK = (11, 4, 1)
"""Release notes of TensorRT 11.4.1: DLA again, on AGX Orin with JetPack 7.2.2. Of its compiler they say nothing."""


@dataclass(frozen=True)
class Libraries:
    """The files that are there, by name; empty files are what a container has that was not given the host's."""

    sizes: dict[str, int]
    """File name to size in bytes."""
    absent: tuple[str, ...] = ()
    """Names of NVIDIA's libraries that libnvinfer needs and that are nowhere."""

    @property
    def empty(self) -> list[str]:
        """Names of the files of 0 bytes."""
        return [name for name, size in self.sizes.items() if size == 0]

    def has(self, name: str) -> bool:
        """Whether a library of this name, with any further version, is there and not empty."""
        return any(size and (found == name or found.startswith(f"{name}.")) for found, size in self.sizes.items())

    @property
    def tensorrt(self) -> str | None:
        """Version of libnvinfer, by its most exact file name: ``10.3.0``."""
        pattern = r"libnvinfer\.so\.(\d+(?:\.\d+)*)"
        found = [match[1] for name in self.sizes if (match := re.fullmatch(pattern, name))]
        return max(found, key=numbers, default=None)


def find_libraries(root: Path) -> Libraries:
    """Look for the libraries below ``root``; a link counts as what it leads to."""
    paths: dict[str, Path] = {}
    for folder in FOLDERS:
        for pattern in _PATTERNS:
            for path in sorted((root / folder).glob(pattern)):
                if _is_below(root, path):
                    paths.setdefault(path.name, path)
    found = Libraries({name: path.stat().st_size for name, path in paths.items()})
    if found.tensorrt is None:
        return found
    return replace(found, absent=tuple(_absent(root, found.tensorrt, paths[f"libnvinfer.so.{found.tensorrt}"])))


def libraries(machine: Machine, found: Libraries) -> Finding | None:
    """Judge the files; None on anything but a Jetson, where nothing mounts them."""
    if not machine.board.is_jetson:
        return None
    if found.empty:
        return Finding("libraries", f"0 bytes: {', '.join(found.empty)}", "warning", _cure_of_empty(machine))
    if found.absent:
        names = ", ".join(found.absent)
        text = f"libnvinfer {found.tensorrt} needs {names}, which is absent"
        if found.absent != (_DLA_COMPILER,):
            return Finding("libraries", text, "warning", _cure_of_empty(machine))
        return Finding("libraries", text, "warning", _cure_of_dla_compiler(machine, found))
    if not found.sizes:
        return Finding("libraries", "none of libcuda and libnvinfer", "warning", _cure_of_empty(machine))
    text = f"{len(found.sizes)} of CUDA's driver and TensorRT, none empty"
    if _may_want_dla(machine, found) and not found.has(_DLA_COMPILER):
        text += f"; unconfirmed: whether DLA of TensorRT {found.tensorrt} needs {_DLA_COMPILER}"
    return Finding("libraries", text)


def _absent(root: Path, version: str, libnvinfer: Path) -> Iterator[str]:
    """Look for what libnvinfer needs of NVIDIA's; where it cannot be read, by its version."""
    needed = needed_libraries(libnvinfer)
    if needed is None:
        needed = (_DLA_COMPILER,) if numbers(version)[:2] <= _LAST_WITH_DLA_COMPILER else ()
    for name in needed:
        places = (root / folder / name for folder in (*FOLDERS, *_CUDA_FOLDERS))
        if name.startswith("libnv") and not any(_is_below(root, place) for place in places):
            yield name


def _may_want_dla(machine: Machine, found: Libraries) -> bool:
    is_back = found.tensorrt is not None and numbers(found.tensorrt) >= _DLA_IS_BACK
    return is_back and machine.board.compute_capability == "sm_87"


def _is_below(root: Path, path: Path) -> bool:
    """Whether this is a file of the tree: absolute links below another root would lead to this machine's own files."""
    return path.is_file() and path.resolve().is_relative_to(root.resolve())


def _cure_of_empty(machine: Machine) -> str:
    if machine.in_container:
        return "start the container with --runtime nvidia; if it was, run sudo apt install nvidia-jetpack on the host"
    return "run sudo apt install --reinstall nvidia-l4t-cuda nvidia-jetpack"


def _cure_of_dla_compiler(machine: Machine, found: Libraries) -> str:
    l4t, install = machine.board.l4t, "run sudo apt install nvidia-l4t-dla-compiler"
    if _may_want_dla(machine, found):
        return f"{install}; unconfirmed: that JetPack 7.2.2 has this package, as JetPack 6 does"
    if l4t is not None and major(l4t) > 36:
        # wyoming-whisper-trt issue 1038, frigate pull request 23582: these hosts have none that could be mounted.
        return "take an image made for this JetPack: its host has no such library for older images"
    if machine.in_container:
        return f"start the container with --runtime nvidia; if it was, on the host {install}"
    return install
