"""Which GPU this machine has, and what else an engine depends on, from the machine's own files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from devit_contract.machine import ROOT, board_model, cpu_model, device_tree, l4t_release, read_text
from devit_engines.cuda.mig import UNKNOWN, chosen_instance, count_instances, list_gpus

SOC_CAPABILITIES = {
    # jetson_stats, jtop/core/jetson_variables.py, CUDA_TABLE.
    "tegra210": "sm_53",
    "tegra186": "sm_62",
    "tegra194": "sm_72",
    "tegra234": "sm_87",
    # PTX ISA 9.0 (CUDA 13.0) renamed Jetson Thor's sm_101 to sm_110.
    "tegra264": "sm_110",
}
"""The last word of the device tree's ``compatible``, and what its GPU is called."""

COMPUTE_CAPABILITIES = (("Orin", "sm_87"), ("Thor", "sm_110"))
"""A word of the device-tree model, for trees whose ``compatible`` names no known chip."""

RELEASE_CAPABILITIES = {"36": "sm_87", "38": "sm_110"}
"""Releases that run on one family only. A container sees the release but, as Docker masks /sys/firmware, no model."""

FIRST_WITH_FP8 = 89
"""SM 8.9; TensorRT's support matrix, "Hardware and precision": Ada, Hopper and Blackwell, Thor (SM 11.0) among them."""

NO_GPU = "cpu"
_TOOLKITS = ("usr/local/cuda", "usr/local/cuda-*")


@dataclass(frozen=True)
class Board:
    """What an engine may depend on."""

    name: str
    """The device-tree model where there is one, else machine and CPU model."""
    compute_capability: str
    """``sm_87`` and the like, or ``cpu`` where no known GPU is on board."""
    l4t: str | None
    """Jetson Linux release, e.g. ``36.4.3``; absent on anything but a Jetson."""
    gpu_instance: str = ""
    """``MIG 2g.0gb`` where the GPU is divided and this process has that part; empty where it has all."""

    @property
    def device_name(self) -> str:
        """What an engine's key names: what TensorRT chose by timing the whole GPU does not fit a part of it."""
        return f"{self.name}, {self.gpu_instance}" if self.gpu_instance else self.name

    @property
    def is_jetson(self) -> bool:
        """Whether a Jetson's release or chip was found."""
        return self.l4t is not None or self.compute_capability != NO_GPU


def detect_board(root: Path = ROOT) -> Board:
    """Read the board from the files under ``root``; those that are absent are no error."""
    model, release = board_model(root), l4t_release(root)
    return Board(model or cpu_model(root), _capability(root, model, release), release, _gpu_instance(root))


def has_fp8(compute_capability: str) -> bool | None:
    """Tell whether a GPU has products of FP8; None where it is not known.

    >>> has_fp8("sm_110"), has_fp8("sm_87"), has_fp8("cpu")
    (True, False, None)
    """
    found = re.fullmatch(r"sm_(\d+)", compute_capability)
    return None if found is None else int(found[1]) >= FIRST_WITH_FP8


def toolkit_version(root: Path) -> str | None:
    """Read the version of the CUDA toolkit below ``root``, or None where there is none.

    CUDA 11.1 and later have ``version.json``, those before ``version.txt``.
    """
    for pattern in _TOOLKITS:
        for folder in sorted(root.glob(pattern)):
            # /usr/local/cuda is an absolute link: below another root it would lead to this machine's own.
            if not folder.resolve().is_relative_to(root.resolve()):
                continue
            if match := re.search(r'"cuda"\s*:\s*{[^}]*"version"\s*:\s*"([\d.]+)"', read_text(folder / "version.json")):
                return match[1]
            if match := re.search(r"CUDA Version ([\d.]+)", read_text(folder / "version.txt")):
                return match[1]
    return None


def _gpu_instance(root: Path) -> str:
    if not count_instances(root):
        return ""
    # nvidia-smi would tell of this machine, not of the one whose disk is mounted below another root.
    return chosen_instance(list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES", "")) if root == ROOT else UNKNOWN


def _capability(root: Path, model: str, release: str | None) -> str:
    chips = device_tree(root, "compatible")
    for chip, capability in SOC_CAPABILITIES.items():
        if chip in chips:
            return capability
    for word, capability in COMPUTE_CAPABILITIES:
        if word in model:
            return capability
    if model or release is None:
        return NO_GPU
    return RELEASE_CAPABILITIES.get(release.partition(".")[0], NO_GPU)
