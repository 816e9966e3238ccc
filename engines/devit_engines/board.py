"""Which device this is: the part of an engine's key that no file in the bundle can know."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

COMPUTE_CAPABILITIES = (
    # jetson_stats, jtop/core/jetson_variables.py, CUDA_TABLE: tegra234 (all of the Orin family) is 8.7.
    ("Orin", "sm_87"),
    # PTX ISA 9.0 (CUDA 13.0) renamed Jetson Thor's sm_101 to sm_110.
    ("Thor", "sm_110"),
)
"""A word of the device-tree model, and what its GPU is called."""

NO_GPU = "cpu"
_MODEL_FILES = ("proc/device-tree/model", "sys/firmware/devicetree/base/model")


@dataclass(frozen=True)
class Board:
    """What an engine may depend on."""

    name: str
    """The device-tree model where there is one, else machine and CPU model."""
    compute_capability: str
    """``sm_87`` and the like, or ``cpu`` where no known GPU is on board."""
    l4t: str | None
    """Jetson Linux release, e.g. ``36.4.3``; absent on anything but a Jetson."""


def detect_board(root: Path = Path("/")) -> Board:
    """Read the board from the files under ``root``; those that are absent are no error."""
    model = _device_tree_model(root)
    capability = next((sm for word, sm in COMPUTE_CAPABILITIES if model is not None and word in model), NO_GPU)
    return Board(model or _machine(root), capability, _l4t_release(root))


def _device_tree_model(root: Path) -> str | None:
    for name in _MODEL_FILES:
        # The kernel ends the string with a NUL.
        if text := _text(root / name).strip("\0 \n"):
            return text
    return None


def _machine(root: Path) -> str:
    """Machine and CPU model; ARM kernels name no model, so the machine has to do there."""
    match = re.search(r"^model name\s*:\s*(?P<model>.+?)\s*$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return platform.machine() if match is None else f"{platform.machine()} {match['model']}"


def _l4t_release(root: Path) -> str | None:
    """Read ``# R36 (release), REVISION: 4.3, ...`` as ``36.4.3``."""
    pattern = r"# R(?P<release>\d+) \(release\), REVISION: (?P<revision>[\d.]+)"
    match = re.match(pattern, _text(root / "etc/nv_tegra_release"))
    return None if match is None else f"{match['release']}.{match['revision']}"


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
