"""Findings on the board: what it is, its release, how fast it is set, what slowed it down, what disk is left."""

from __future__ import annotations

from pathlib import Path

from devit_contract.machine import clocks, over_current_events, power_mode, power_modes
from devit_engines.board import NO_GPU
from devit_engines.doctor.finding import Finding, Machine

STORE_ROOM_GB = 1.0
"""Four ViT-S engines of three variants, 30 to 90 MB each."""

_LAST_JETPACK = {"sm_53": "4", "sm_62": "4", "sm_72": "5"}
"""Boards for which NVIDIA makes no newer JetPack, by their GPU."""


def board(machine: Machine) -> Finding:
    """Name the board and its GPU."""
    known = machine.board
    if not known.is_jetson:
        return Finding("board", f"{known.name}, no GPU that devit uses")
    if known.compute_capability == NO_GPU:
        cure = (
            "start the container with --security-opt systempaths=unconfined, so that it sees the device tree"
            if machine.in_container
            else "none needed: its engines are stored under the name of its CPU, and TensorRT knows its GPU"
        )
        return Finding("board", f"{known.name}, a Jetson with an unknown GPU", "warning", cure)
    return Finding("board", f"{known.name}, {known.compute_capability}")


def release(machine: Machine) -> Finding | None:
    """Judge the JetPack; None on anything but a Jetson."""
    l4t, jetpack = machine.board.l4t, machine.jetpack
    if l4t is None:
        return None
    if jetpack is None:
        cure = "none needed: every engine is checked with golden images, whatever TensorRT builds it"
        return Finding("JetPack", f"unknown to this version of devit (L4T {l4t})", "warning", cure)
    label = f"{jetpack.version} (L4T {l4t})"
    if not jetpack.is_supported:
        reason = f"Python {jetpack.python}, and TensorRT {jetpack.tensorrt} has no LayerNormalization"
        last = _LAST_JETPACK.get(machine.board.compute_capability)
        cure = (
            "flash JetPack 6.0 or later"
            if last is None
            else f"JetPack {last} is the last one for this board: take an Orin or a Thor"
        )
        return Finding("JetPack", f"{label}: {reason}", "refused", cure)
    doubt = "" if jetpack.is_confirmed else ", unconfirmed"
    return Finding("JetPack", f"{label}, brings CUDA {jetpack.cuda}, TensorRT {jetpack.tensorrt}{doubt}")


def power(machine: Machine) -> Finding | None:
    """Name the power mode; None on anything but a Jetson."""
    if not machine.board.is_jetson:
        return None
    mode = power_mode(machine.root)
    if mode is not None:
        return Finding("power mode", str(mode))
    mounts = "-v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro"
    cure = (
        f"start the container with {mounts}"
        if machine.in_container
        else "run sudo nvpmodel -q, and note what it says beside every measurement"
    )
    return Finding("power mode", "unknown, as nvpmodel's files are absent", "warning", cure)


def modes(machine: Machine) -> Finding | None:
    """Name the power modes that the board offers; None where its files say nothing of them."""
    found = power_modes(machine.root) if machine.board.is_jetson else None
    if found is None:
        return None
    names = ", ".join(f"{mode.number} {mode.name}" for mode in found.offered)
    text = f"{names}, by {found.configuration}; a name caps clocks, not watts"
    if found.has_super_beside:
        text += "; Super modes need a board flashed with its Super configuration"
    if any(mode.name == "MAXN_SUPER" for mode in found.offered) and "Orin Nano" in machine.board.name:
        text += "; 25W did 8 to 35 % more work per joule than MAXN_SUPER"
    return Finding("power modes", text)


def over_current(machine: Machine) -> Finding | None:
    """Say how often the board has slowed itself down since its boot; None where it does not count that."""
    found = over_current_events(machine.root) if machine.board.is_jetson else None
    if found is None:
        return None
    text = f"{found} since the boot"
    if not found.total:
        return Finding("over-current", text)
    cure = (
        "take a supply and a cable that hold the board's voltage under load"
        if found.under_voltage
        else "choose a lower power mode (sudo nvpmodel -m NUMBER), or a supply with more current"
    )
    return Finding("over-current", text, "warning", f"{cure}: each event slows the board down for a moment")


def clock(machine: Machine) -> Finding | None:
    """Say whether clocks are locked; None on anything but a Jetson."""
    if not machine.board.is_jetson:
        return None
    found = clocks(machine.root)
    if not found:
        return Finding("clocks", "unknown", "warning", "run sudo jetson_clocks --show")
    text = ", ".join(map(str, found))
    if all(each.is_locked for each in found):
        return Finding("clocks", f"locked: {text}")
    cure = "run sudo jetson_clocks before building or measuring: clocks decide latency and joules"
    return Finding("clocks", f"not locked: {text}", "warning", cure)


def disk(store: Path, free_bytes: int) -> Finding:
    """Say whether the disk of the engine store has room."""
    free_gb = free_bytes / 1e9
    text = f"{free_gb:.1f} GB free for engines in {store}"
    if free_gb >= STORE_ROOM_GB:
        return Finding("disk", text)
    return Finding("disk", text, "warning", "run devit engines prune, or choose another place with --store")
