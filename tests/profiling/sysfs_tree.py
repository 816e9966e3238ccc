"""Made-up sysfs trees of Jetsons' power monitor chips, with the names and units of the kernel's drivers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

SUM = "sum of shunt voltages"
DRIVERS = "sys/bus/i2c/drivers"


def iio_chip(root: Path, device: str, rails_mw: Sequence[tuple[str, int]], number: int = 0) -> Path:
    """An INA3221 under L4T 32: channels 0 to 2."""
    folder = root / DRIVERS / "ina3221x" / device / f"iio:device{number}"
    files = {"name": "ina3221x"}
    for channel, (name, power_mw) in enumerate(rails_mw):
        files[f"rail_name_{channel}"] = name
        files[f"in_power{channel}_input"] = str(power_mw)
        files[f"in_voltage{channel}_input"] = "5000"
    return write(folder, files)


def hwmon_chip(
    root: Path, device: str, rails: Sequence[tuple[str, int, int]], *, number: int = 3, **attributes: int
) -> Path:
    """An INA3221 under L4T 34 and newer: channels 1 to 3 with label, mV and mA; attributes of the chip."""
    folder = root / DRIVERS / "ina3221" / device / "hwmon" / f"hwmon{number}"
    files = {"name": "ina3221", "in7_label": SUM, "in7_input": "280", "curr4_input": "99999"}
    for channel, (label, voltage_mv, current_ma) in enumerate(rails, 1):
        files[f"in{channel}_label"] = label
        files[f"in{channel}_input"] = str(voltage_mv)
        files[f"curr{channel}_input"] = str(current_ma)
        files[f"in{channel + 3}_input"] = "40"  # the shunt's voltage
    files |= {name: str(value) for name, value in attributes.items()}
    return write(folder, files)


def ina238_chip(root: Path, device: str, power_uw: int, *, number: int = 7, label: str = "") -> Path:
    """The INA238 on the carrier of a Thor: microwatts, and mostly no label."""
    folder = root / DRIVERS / "ina238" / device / "hwmon" / f"hwmon{number}"
    files = {"name": "ina238", "in1_input": "19800", "curr1_input": "849", "power1_input": str(power_uw)}
    return write(folder, files | ({"label": label} if label else {}))


def orin_nano(root: Path, **attributes: int) -> Path:
    """One chip with the rails of an Orin Nano at rest: 4359, 448 and 1373 mW."""
    rails = (("VDD_IN", 4976, 876), ("VDD_CPU_GPU_CV", 4976, 90), ("VDD_SOC", 4976, 276))
    return hwmon_chip(root, "1-0040", rails, **attributes)


def break_file(path: Path) -> None:
    """Let reading a file give an I/O error, as a switched-off channel does: the kernel's own, from address 0."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def write(folder: Path, files: Mapping[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    return folder
