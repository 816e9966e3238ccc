"""What this machine's own files say of it: model, release, power mode, clocks, memory.

Every function reads below a root folder, ``/`` unless a test or a simulated board gives another. Files that are absent
are no error: containers and ordinary computers lack most of them.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from devit_contract.artefacts.regular import read_regular
from devit_contract.errors import InputError

ROOT = Path("/")
_TREES = ("proc/device-tree", "sys/firmware/devicetree/base")
_GPU_CLOCK = re.compile(r"gpu$|ga10b$|gv11b$|gp10b$|^gpu-gpc-0$")
"""Folders of /sys/class/devfreq: 17000000.gpu and .ga10b on Orin, gpu-gpc-0 on Thor, the others on older boards."""


class PowerMode(msgspec.Struct, frozen=True, omit_defaults=True):
    """A setting of ``nvpmodel``."""

    number: int
    name: str = ""
    """As the board's own ``nvpmodel.conf`` calls it, for a number means something else on every board; empty where that
    file has no name for it."""
    is_default: bool = False
    """Whether no mode was ever chosen, so that the board starts in this one."""

    def __str__(self) -> str:
        """For people: ``MAXN_SUPER (mode 2)``."""
        mode = f"mode {self.number}{', by default' if self.is_default else ''}"
        return f"{self.name} ({mode})" if self.name else mode


@dataclass(frozen=True)
class Clock:
    """The range in which the kernel may set a clock."""

    name: str
    """``GPU`` or ``CPU``."""
    min_mhz: int
    max_mhz: int

    @property
    def is_locked(self) -> bool:
        """Whether the clock can't change, as after ``jetson_clocks``."""
        return self.min_mhz == self.max_mhz

    def __str__(self) -> str:
        """For people: ``GPU 306 to 1020 MHz``."""
        return f"{self.name} {'' if self.is_locked else f'{self.min_mhz} to '}{self.max_mhz} MHz"


def read_text(path: Path) -> str:
    """Read a small file of the system; empty where it is absent or may not be read."""
    try:
        return read_regular(path).decode("utf-8", errors="replace")
    except OSError:
        return ""


def board_model(root: Path = ROOT) -> str:
    """Read the device tree's model, e.g. ``NVIDIA Jetson Orin Nano Developer Kit``; empty where there is no tree."""
    return " ".join(device_tree(root, "model").split())


def device_tree(root: Path, name: str) -> str:
    """Read a property of the device tree; the kernel ends each of its strings with a NUL."""
    found = (read_text(root / tree / name).strip("\0 \n") for tree in _TREES)
    return next(filter(None, found), "")


def board_compatible(root: Path = ROOT) -> tuple[str, ...]:
    """Read what the device tree is compatible with, e.g. ``nvidia,p3768-0000+p3767-0005``; the whole machine first."""
    return tuple(filter(None, device_tree(root, "compatible").split("\0")))


def cpu_model(root: Path = ROOT) -> str:
    """Name the machine type and the CPU; ARM kernels name no CPU, so the type alone has to do there."""
    match = re.search(r"^model name\s*:\s*(?P<model>.+?)\s*$", read_text(root / "proc/cpuinfo"), re.MULTILINE)
    return platform.machine() if match is None else f"{platform.machine()} {match['model']}"


def l4t_release(root: Path = ROOT) -> str | None:
    """Read the release of Jetson Linux: ``# R36 (release), REVISION: 4.3, ...`` is ``36.4.3``."""
    pattern = r"# R(?P<release>\d+) \(release\), REVISION: (?P<revision>[\d.]+)"
    match = re.match(pattern, read_text(root / "etc/nv_tegra_release"))
    return None if match is None else f"{match['release']}.{match['revision']}"


def power_mode(root: Path = ROOT) -> PowerMode | None:
    """Read the power mode, or None where there is no ``nvpmodel`` or a container hides its files."""
    configuration = read_text(root / "etc/nvpmodel.conf")
    names = {int(number): name for number, name in re.findall(r"<\s*POWER_MODEL ID=(\d+) NAME=(\S+)", configuration)}
    if chosen := re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status")):
        number = int(chosen[1])
    elif default := re.search(r"^<\s*PM_CONFIG DEFAULT=(\d+)", configuration, re.MULTILINE):
        number = int(default[1])
    else:
        return None
    return PowerMode(number, names.get(number, ""), is_default=chosen is None)


def clocks(root: Path = ROOT) -> list[Clock]:
    """Read the clocks of GPU and CPUs, equal ones once; empty where the kernel shows none."""
    found = [
        _clock("GPU", folder / "min_freq", folder / "max_freq", per_mhz=1_000_000)
        for folder in sorted(root.glob("sys/class/devfreq/*"))
        if _GPU_CLOCK.search(folder.name)
    ] + [
        _clock("CPU", folder / "scaling_min_freq", folder / "scaling_max_freq", per_mhz=1_000)
        for folder in sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*"))
    ]
    return list(dict.fromkeys(clock for clock in found if clock is not None))


def memory_bytes(root: Path = ROOT) -> dict[str, int]:
    """Read ``/proc/meminfo`` by its own names, e.g. ``MemTotal``; a Jetson's GPU uses the same memory."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", read_text(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(size_kb) * 1024 for name, size_kb in lines}


def available_bytes(root: Path = ROOT) -> int:
    """Read how much memory the kernel can give without swapping.

    Raises:
        InputError: ``/proc/meminfo`` does not say.
    """
    try:
        return memory_bytes(root)["MemAvailable"]
    except KeyError as err:
        raise InputError(f"{root / 'proc/meminfo'}: no line MemAvailable: is this Linux?") from err


def _clock(name: str, lowest: Path, highest: Path, *, per_mhz: int) -> Clock | None:
    values = [read_text(path).strip() for path in (lowest, highest)]
    if not all(value.isdecimal() for value in values):
        return None
    low, high = (round(int(value) / per_mhz) for value in values)
    return Clock(name, low, high)
