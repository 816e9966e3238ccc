"""What this machine's own files say of it: model, release, power modes, clocks, over-current events, heat, memory.

Every function reads below a root folder, ``/`` unless a test or a simulated board gives another. Files that are absent
are no error: containers and ordinary computers lack most of them.
"""

from __future__ import annotations

import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from devit_contract.artefacts.regular import read_regular
from devit_contract.errors import InputError

ROOT = Path("/")
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
_ALERT = "-throttle-alert"
_TREES = ("proc/device-tree", "sys/firmware/devicetree/base")
_GPU_CLOCK = re.compile(r"gpu$|ga10b$|gv11b$|gp10b$|^gpu-gpc-0$")
"""Folders of /sys/class/devfreq: 17000000.gpu and .ga10b on Orin, gpu-gpc-0 on Thor, the others on older boards."""

_SUPER = "_super.conf"
_FREES_MEMORY_L4T = 39


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


@dataclass(frozen=True)
class PowerModes:
    """What ``nvpmodel.conf`` offers."""

    configuration: str
    """Name of the file itself, which ``/etc/nvpmodel.conf`` is a link to."""
    offered: tuple[PowerMode, ...]
    """In the order of the file."""
    has_super_beside: bool
    """Whether files with Super modes are installed beside it, which is not one of them."""


class OverCurrentEvents(msgspec.Struct, frozen=True):
    """How often a board has slowed itself down for its power supply's sake, by cause.

    The names are NVIDIA's for the three events of Orin and Thor (Jetson Linux developer guide, "Platform Power and
    Performance"); on Xavier the numbers of the same files mean something else.
    """

    under_voltage: Count = 0
    """``oc1``: the input voltage was too low."""
    average: Count = 0
    """``oc2``: the mean current was too high."""
    instantaneous: Count = 0
    """``oc3``: the current was too high for a moment."""

    def since(self, before: OverCurrentEvents | None) -> OverCurrentEvents | None:
        """Give what has come since an earlier count; ``None`` where there is none, or where a reboot lies between."""
        if before is None:
            return None
        now, then = msgspec.structs.astuple(self), msgspec.structs.astuple(before)
        if any(count < earlier for count, earlier in zip(now, then, strict=True)):
            return None
        return OverCurrentEvents(*(count - earlier for count, earlier in zip(now, then, strict=True)))

    @property
    def total(self) -> int:
        """Events of any cause."""
        return self.under_voltage + self.average + self.instantaneous

    def __str__(self) -> str:
        """For people: ``2 under-voltage, 37 instantaneous over-current``; ``none``."""
        counts = {
            "under-voltage": self.under_voltage,
            "average over-current": self.average,
            "instantaneous over-current": self.instantaneous,
        }
        return ", ".join(f"{count} {cause}" for cause, count in counts.items() if count) or "none"


class Throttling(msgspec.Struct, frozen=True):
    """How a board is slowed down now, as of some seconds ago."""

    alerts: Count = 0
    """Throttle alerts that are on."""
    clock_share: Share = 1.0
    """The highest clock that is allowed, as a share of the highest in the same power mode since the agent's start; of
    GPU and CPU the lower one."""
    is_simulated: bool = False
    """Whether a folder stands for the board."""


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
    configuration = read_text(_nvpmodel_conf(root))
    names = _mode_names(configuration)
    if chosen := re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status")):
        number = int(chosen[1])
    elif default := re.search(r"^<\s*PM_CONFIG DEFAULT=(\d+)", configuration, re.MULTILINE):
        number = int(default[1])
    else:
        return None
    return PowerMode(number, names.get(number, ""), is_default=chosen is None)


def power_modes(root: Path = ROOT) -> PowerModes | None:
    """Read which modes ``nvpmodel`` offers, or None where its file is absent or lists none.

    Which file of ``/etc/nvpmodel`` is linked is chosen at each boot, by the device tree: that of a board flashed with a
    Super configuration says so.
    """
    path = _nvpmodel_conf(root)
    names = _mode_names(read_text(path))
    if not names:
        return None
    is_super = path.name.endswith(_SUPER)
    beside = not is_super and any(root.glob(f"etc/nvpmodel/*{_SUPER}"))
    return PowerModes(path.name, tuple(PowerMode(number, name) for number, name in names.items()), beside)


def over_current_events(root: Path = ROOT) -> OverCurrentEvents | None:
    """Read the events since the boot, or None where the kernel does not count them, or does not answer.

    Any user may read them.
    """
    for chip in root.glob("sys/class/hwmon/*/name"):
        if read_text(chip).strip() == "soctherm_oc":
            counts = [read_text(chip.with_name(f"oc{number}_event_cnt")).strip() for number in (1, 2, 3)]
            return OverCurrentEvents(*map(int, counts)) if all(map(str.isdecimal, counts)) else None
    return None


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


def throttle_alerts(root: Path = ROOT) -> int | None:
    """Count the throttle alerts that are on; ``None`` where the kernel has none, as on other computers.

    NVIDIA's kernels have a cooling device for each clock domain that firmware lowers for heat. Fans and
    ``hot-surface-alert`` are cooling devices too, and slow nothing down.
    """
    alerts = [
        kind for kind in root.glob("sys/class/thermal/cooling_device*/type") if read_text(kind).strip().endswith(_ALERT)
    ]
    states = [read_text(kind.with_name("cur_state")).strip() for kind in alerts]
    return sum(state.isdecimal() and int(state) > 0 for state in states) if alerts else None


def highest_clocks_mhz(root: Path = ROOT) -> dict[str, int]:
    """Read the highest allowed clock of ``GPU`` and ``CPU``; of several CPU clusters that of the slowest.

    The kernel lowers it for heat. The present clocks say nothing: they fall wherever there is little to do.
    """
    found: dict[str, int] = {}
    for clock in clocks(root):
        found[clock.name] = min(found.get(clock.name, clock.max_mhz), clock.max_mhz)
    return found


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


def more_memory(root: Path = ROOT) -> str:
    """Say how to have more memory, what helps most first.

    Below L4T 39 memory of an ended CUDA process stays with the GPU's driver, and counts as used, until caches are
    dropped (NVIDIA/skills, jetson-memory-audit).
    """
    release = l4t_release(root)
    is_kept = release is not None and int(release.partition(".")[0]) < _FREES_MEMORY_L4T
    first = (
        "run sudo sync && sudo sysctl -w vm.drop_caches=3, which frees what ended CUDA programs left, "
        if is_kept
        else ""
    )
    return f"{first}close other programs, or add swap"


def process_start_ns() -> int:
    """Tell when this process started, on the monotonic clock, or a little later."""
    ticks = int(Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19])
    start_s = (ticks + 1) / os.sysconf("SC_CLK_TCK")  # since the boot
    return time.monotonic_ns() - max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - round(start_s * 1e9))


def _nvpmodel_conf(root: Path) -> Path:
    """Follow the link that ``etc/nvpmodel.conf`` is, within the root; boards have an absolute one."""
    path = root / "etc/nvpmodel.conf"
    if not path.is_symlink():
        return path
    target = path.readlink()
    return root / target.relative_to("/") if target.is_absolute() else path.parent / target


def _mode_names(configuration: str) -> dict[int, str]:
    return {int(number): name for number, name in re.findall(r"<\s*POWER_MODEL ID=(\d+) NAME=(\S+)", configuration)}


def _clock(name: str, lowest: Path, highest: Path, *, per_mhz: int) -> Clock | None:
    values = [read_text(path).strip() for path in (lowest, highest)]
    if not all(value.isdecimal() for value in values):
        return None
    low, high = (round(int(value) / per_mhz) for value in values)
    return Clock(name, low, high)
