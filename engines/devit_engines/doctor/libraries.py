"""NVIDIA's shared libraries as files: which are there, which are empty, which one is missed by the others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

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
_LAST_WITH_DLA_COMPILER = (10, 7)
"""Last TensorRT made for Jetson Linux alone: its libnvinfer needs libnvdla_compiler.so, later ones are a server's."""


@dataclass(frozen=True)
class Libraries:
    """The files that are there, by name; empty files are what a container has that was not given the host's."""

    sizes: dict[str, int]
    """File name to size in bytes."""

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
    sizes: dict[str, int] = {}
    for folder in FOLDERS:
        for pattern in _PATTERNS:
            for path in sorted((root / folder).glob(pattern)):
                # Absolute links below another root would lead to this machine's own files.
                if path.is_file() and path.resolve().is_relative_to(root.resolve()):
                    sizes.setdefault(path.name, path.stat().st_size)
    return Libraries(sizes)


def libraries(machine: Machine, found: Libraries) -> Finding | None:
    """Judge the files; None on anything but a Jetson, where nothing mounts them."""
    if not machine.board.is_jetson:
        return None
    if found.empty:
        return Finding("libraries", f"0 bytes: {', '.join(found.empty)}", "warning", _cure_of_empty(machine))
    needs_dla_compiler = found.tensorrt is not None and numbers(found.tensorrt)[:2] <= _LAST_WITH_DLA_COMPILER
    if needs_dla_compiler and not found.has("libnvdla_compiler.so"):
        text = f"libnvinfer {found.tensorrt} needs libnvdla_compiler.so, which is absent"
        return Finding("libraries", text, "warning", _cure_of_dla_compiler(machine))
    if not found.sizes:
        return Finding("libraries", "none of libcuda and libnvinfer", "warning", _cure_of_empty(machine))
    return Finding("libraries", f"{len(found.sizes)} of CUDA's driver and TensorRT, none empty")


def _cure_of_empty(machine: Machine) -> str:
    if machine.in_container:
        return "start the container with --runtime nvidia; if it was, run sudo apt install nvidia-jetpack on the host"
    return "run sudo apt install --reinstall nvidia-l4t-cuda nvidia-jetpack"


def _cure_of_dla_compiler(machine: Machine) -> str:
    l4t, install = machine.board.l4t, "run sudo apt install nvidia-l4t-dla-compiler"
    if l4t is not None and major(l4t) > 36:
        # wyoming-whisper-trt issue 1038, frigate pull request 23582: these hosts have none that could be mounted.
        return "take an image made for this JetPack: its host has no such library for older images"
    if machine.in_container:
        return f"start the container with --runtime nvidia; if it was, on the host {install}"
    return install
