"""Findings on memory: what is left, and what a desktop that nobody looks at takes of it."""

from __future__ import annotations

import re
from pathlib import Path

from devit_contract.machine import memory_bytes, more_memory, read_text
from devit_engines.doctor.finding import Finding, Machine

BUILDER_MEMORY_GB = 2.0
"""A TensorRT builder takes 1.2 GB of host memory for its kernel library alone (NVIDIA/TensorRT issue 3657)."""

_TARGETS = ("etc/systemd/system/default.target", "usr/lib/systemd/system/default.target")
_GRAPHICAL = "graphical.target"
_MANAGER = "etc/systemd/system/display-manager.service"
_RUNNING = "sys/fs/cgroup/system.slice"
_GRAPHICAL_MB, _MANAGER_MB = 865, 200
_SERVICES_MB = {"snapd.service": 30, "packagekit.service": 8}
"""What they take at most, as the two above (NVIDIA/skills, jetson-headless-mode)."""


def memory(machine: Machine) -> Finding | None:
    """Say what memory is left; None if the kernel does not report it."""
    found = memory_bytes(machine.root)
    if not {"MemTotal", "MemAvailable"} <= found.keys():
        return None
    total_gb, available_gb = (found[name] / 1e9 for name in ("MemTotal", "MemAvailable"))
    text = f"{available_gb:.1f} of {total_gb:.1f} GB available{_swaps(machine.root)}"
    if not _is_short(machine):
        return Finding("memory", text)
    cure = f"free {BUILDER_MEMORY_GB:g} GB for TensorRT's builder: {more_memory(machine.root)}"
    return Finding("memory", text, "warning", cure)


def headless(machine: Machine) -> Finding | None:
    """Say what could be saved without a desktop; None on anything but a Jetson, and where nothing could.

    In a container the links are those of its image, and say nothing of the board.
    """
    taken_mb = _taken_mb(machine.root) if machine.board.is_jetson and not machine.in_container else {}
    if not taken_mb:
        return None
    text = ", ".join(f"{name} up to {size_mb} MB" for name, size_mb in taken_mb.items())
    if not _is_short(machine):
        return Finding("desktop", text)
    services = " ".join(name for name in taken_mb if name != _GRAPHICAL)
    steps = ["sudo systemctl set-default multi-user.target"] if _GRAPHICAL in taken_mb else []
    steps += [f"sudo systemctl disable --now {services}"] if services else []
    cure = f"run {' && '.join(steps)}, which frees up to {sum(taken_mb.values())} MB, if nobody works at its screen"
    return Finding("desktop", text, "warning", cure)


def _is_short(machine: Machine) -> bool:
    # ONNX Runtime optimises a graph in tens of MB: only a TensorRT builder is this hungry.
    available = memory_bytes(machine.root).get("MemAvailable")
    return machine.board.is_jetson and available is not None and available < BUILDER_MEMORY_GB * 1e9


def _taken_mb(root: Path) -> dict[str, int]:
    """Find what a headless board has no use for: links and control groups, which any user may read."""
    links = (root / name for name in _TARGETS)
    target = next((link.readlink().name for link in links if link.is_symlink()), "")
    taken_mb = {_GRAPHICAL: _GRAPHICAL_MB} if target == _GRAPHICAL else {}
    services_mb = dict(_SERVICES_MB)
    manager = root / _MANAGER
    if manager.is_symlink():
        services_mb = {manager.readlink().name: _MANAGER_MB} | services_mb
    return taken_mb | {name: size for name, size in services_mb.items() if (root / _RUNNING / name).is_dir()}


def _swaps(root: Path) -> str:
    """Sum up ``/proc/swaps``; zram is memory itself, compressed, and no room beside it."""
    sizes_bytes = {"zram": 0, "swap": 0}
    for name, size_kb in re.findall(r"^(/\S*)\s+\S+\s+(\d+)", read_text(root / "proc/swaps"), re.MULTILINE):
        sizes_bytes["zram" if name.startswith("/dev/zram") else "swap"] += int(size_kb) * 1024
    found = [f"{kind} {size_bytes / 1e9:.1f} GB" for kind, size_bytes in sizes_bytes.items() if size_bytes]
    return "".join(f", {each}" for each in found) or ", no swap"
