"""What a device's own files say of it: model, GPU, release, power mode, clocks."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

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

NO_GPU = "cpu"
_TREES = ("proc/device-tree", "sys/firmware/devicetree/base")
_TOOLKITS = ("usr/local/cuda", "usr/local/cuda-*")
_GPU_CLOCK = re.compile(r"gpu$|ga10b$|gv11b$|gp10b$|^gpu-gpc-0$")
"""Folders of /sys/class/devfreq: 17000000.gpu and .ga10b on Orin, gpu-gpc-0 on Thor, the others on older boards."""


@dataclass(frozen=True)
class Board:
    """What an engine may depend on."""

    name: str
    """The device-tree model where there is one, else machine and CPU model."""
    compute_capability: str
    """``sm_87`` and the like, or ``cpu`` where no known GPU is on board."""
    l4t: str | None
    """Jetson Linux release, e.g. ``36.4.3``; absent on anything but a Jetson."""

    @property
    def is_jetson(self) -> bool:
        """Whether a Jetson's release or chip was found."""
        return self.l4t is not None or self.compute_capability != NO_GPU


@dataclass(frozen=True)
class PowerMode:
    """What ``nvpmodel`` is set to."""

    number: int
    name: str | None
    """As the board's own ``nvpmodel.conf`` calls it; numbers mean something else on every board."""
    is_default: bool
    """Whether nobody has chosen a mode yet, so that the board starts in this one."""

    def __str__(self) -> str:
        """For people: ``MAXN_SUPER (mode 2)``."""
        mode = f"mode {self.number}{', by default' if self.is_default else ''}"
        return mode if self.name is None else f"{self.name} ({mode})"


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


def detect_board(root: Path = Path("/")) -> Board:
    """Read the board from the files under ``root``; those that are absent are no error."""
    model, release = " ".join(_device_tree(root, "model").split()), _l4t_release(root)
    return Board(model or _machine(root), _capability(root, model, release), release)


def power_mode(root: Path = Path("/")) -> PowerMode | None:
    """Read the power mode, or None where there is no ``nvpmodel`` or a container hides its files."""
    configuration = read_text(root / "etc/nvpmodel.conf")
    names = {int(number): name for number, name in re.findall(r"<\s*POWER_MODEL ID=(\d+) NAME=(\S+)", configuration)}
    if chosen := re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status")):
        number = int(chosen[1])
    elif default := re.search(r"^<\s*PM_CONFIG DEFAULT=(\d+)", configuration, re.MULTILINE):
        number = int(default[1])
    else:
        return None
    return PowerMode(number, names.get(number), is_default=chosen is None)


def clocks(root: Path = Path("/")) -> list[Clock]:
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


def read_text(path: Path) -> str:
    """Read a small file of the system; empty where it is absent or may not be read."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


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


def _capability(root: Path, model: str, release: str | None) -> str:
    chips = _device_tree(root, "compatible")
    for chip, capability in SOC_CAPABILITIES.items():
        if chip in chips:
            return capability
    for word, capability in COMPUTE_CAPABILITIES:
        if word in model:
            return capability
    if model or release is None:
        return NO_GPU
    return RELEASE_CAPABILITIES.get(release.partition(".")[0], NO_GPU)


def _device_tree(root: Path, name: str) -> str:
    """Read a property of the device tree; the kernel ends each of its strings with a NUL."""
    found = (read_text(root / tree / name).strip("\0 \n") for tree in _TREES)
    return next(filter(None, found), "")


def _machine(root: Path) -> str:
    """Machine and CPU model; ARM kernels name no model, so the machine has to do there."""
    match = re.search(r"^model name\s*:\s*(?P<model>.+?)\s*$", read_text(root / "proc/cpuinfo"), re.MULTILINE)
    return platform.machine() if match is None else f"{platform.machine()} {match['model']}"


def _l4t_release(root: Path) -> str | None:
    """Read ``# R36 (release), REVISION: 4.3, ...`` as ``36.4.3``."""
    pattern = r"# R(?P<release>\d+) \(release\), REVISION: (?P<revision>[\d.]+)"
    match = re.match(pattern, read_text(root / "etc/nv_tegra_release"))
    return None if match is None else f"{match['release']}.{match['revision']}"


def _clock(name: str, lowest: Path, highest: Path, *, per_mhz: int) -> Clock | None:
    values = [read_text(path).strip() for path in (lowest, highest)]
    if not all(value.isdecimal() for value in values):
        return None
    low, high = (round(int(value) / per_mhz) for value in values)
    return Clock(name, low, high)
