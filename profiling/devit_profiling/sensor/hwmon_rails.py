"""The power monitor chips of a Jetson in sysfs: which rails they measure, and a reader that keeps their files open.

==================== ================================================================ =================================
driver               files of a rail                                                  power
==================== ================================================================ =================================
``ina3221x``         ``iio:deviceN/rail_name_0``, ``in_power0_input`` (mW); 0 to 2    as it is; L4T 32 and older
``ina3221``          ``hwmon/hwmonN/in1_label``, ``in1_input`` (mV), ``curr1_input``  mV x mA / 1000; L4T 34 and newer
                     (mA); 1 to 3
``ina238``           ``hwmon/hwmonN/power1_input`` (uW)                               uW / 1000; board input of a Thor
==================== ================================================================ =================================

All are below ``/sys/bus/i2c/drivers/DRIVER/BUS-ADDRESS``. The number of an hwmon or iio folder changes from boot to
boot, so rails are known by their labels. Voltage and current are two reads a fraction of a millisecond apart.
Kernel documentation: hwmon/ina3221, hwmon/ina238. The Thor's VIN: rbonghi/jetson_stats, pull request 900.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

_NUMBER_BYTES = 32
_UNCONNECTED = "NC"
_SUM_WORD = "shunt"
"""The channel with the sum of the shunt voltages is no rail; its label says so, and its number differs by release."""
_BOARD_INPUT = "VIN"


@dataclass(frozen=True)
class Rail:
    """A rail and the files of its power."""

    name: str
    place: str
    """Where it is measured, for people: ``1-0040 channel 2``."""
    files: tuple[Path, ...]
    """The product of their numbers is the power."""
    divisor: int
    """From that product to milliwatts."""


@dataclass(frozen=True)
class Chip:
    """A chip whose averaging can be set, where its driver offers that."""

    device: str
    """Bus and address, which stay the same from boot to boot: ``1-0040``."""
    folder: Path
    """Of its hwmon or iio attributes."""


@dataclass(frozen=True)
class PowerChips:
    """The power monitor chips of a machine and their rails."""

    rails: tuple[Rail, ...]
    chips: tuple[Chip, ...]
    notes: tuple[str, ...]
    """What was left out, and why."""


def find_rails(root: Path = Path("/")) -> PowerChips:
    """Find the chips below ``root``, which holds ``sys``; every rail is read once as a check."""
    chips = tuple(Chip(device.name, folder) for device, folder in _folders(root))
    notes: list[str] = []
    rails: dict[str, Rail] = {}
    for rail in [rail for chip in chips for rail in _rails_of(chip, notes)]:
        if rail.name in rails:
            notes.append(f"{rail.name} ({rail.place}) is left out: {rails[rail.name].place} has that name too")
        elif problem := _problem_of(rail):
            notes.append(f"{rail.name} ({rail.place}) is left out: {problem}")
        else:
            rails[rail.name] = rail
    return PowerChips(tuple(rails.values()), chips, tuple(notes))


class RailReader:
    """Reads rails again and again without opening anything: a context manager."""

    def __init__(self, rails: Sequence[Rail]) -> None:
        """Keep the rails; nothing is opened yet."""
        self._rails = rails
        self._opened = ExitStack()
        self._readings: list[tuple[str, tuple[int, ...], int]] = []
        self.problems: dict[str, str] = {}
        """Rail to the reason why the last reading lacks it."""

    def __enter__(self) -> RailReader:
        """Open the files; ``OSError`` where one of them cannot be opened any more."""
        with ExitStack() as opened:
            for rail in self._rails:
                descriptors = tuple(_opened(path, opened) for path in rail.files)
                self._readings.append((rail.name, descriptors, rail.divisor))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files."""
        self._opened.close()

    def read(self) -> tuple[int, list[tuple[str, int]]]:
        """Read all rails.

        Returns:
            Middle of the reading on the monotonic clock in nanoseconds, and rails with milliwatts. A rail that
            cannot be read this time is missing, and :attr:`problems` says why.
        """
        rails_mw: list[tuple[str, int]] = []
        self.problems.clear()
        start_ns = time.monotonic_ns()
        for name, descriptors, divisor in self._readings:
            try:
                power = 1
                for descriptor in descriptors:
                    power *= int(os.pread(descriptor, _NUMBER_BYTES, 0))
            except (OSError, ValueError) as err:
                self.problems[name] = _reason(err)
                continue
            rails_mw.append((name, round(power / divisor)))
        return (start_ns + time.monotonic_ns()) // 2, rails_mw


def _opened(path: Path, files: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    files.callback(os.close, descriptor)
    return descriptor


def _folders(root: Path) -> Iterator[tuple[Path, Path]]:
    """Give the chips' own folders and those of their attributes, in the order of bus and address."""
    drivers = root / "sys/bus/i2c/drivers"
    for driver, pattern in (("ina3221x", "iio:device*"), ("ina3221", "hwmon/hwmon*"), ("ina238", "hwmon/hwmon*")):
        for device in sorted((drivers / driver).glob("*-*")):
            for folder in sorted(device.glob(pattern)):
                yield device, folder


def _rails_of(chip: Chip, notes: list[str]) -> Iterator[Rail]:
    folder, device = chip.folder, chip.device
    if (folder / "power1_input").exists():  # an INA238: one channel, and mostly without a label
        yield Rail(_word(_text(folder / "label")) or _BOARD_INPUT, device, (folder / "power1_input",), 1000)
        return
    for channel in range(3):
        if _is_rail(label := _text(folder / f"rail_name_{channel}")):
            yield Rail(_word(label), f"{device} channel {channel}", (folder / f"in_power{channel}_input",), 1)
    for channel in range(1, 4):
        place, current = f"{device} channel {channel}", folder / f"curr{channel}_input"
        label = _text(folder / f"in{channel}_label")
        if _is_rail(label):
            yield Rail(_word(label), place, (folder / f"in{channel}_input", current), 1000)
        elif not label and current.exists():
            notes.append(f"{place} is left out: it has no label")


def _is_rail(label: str) -> bool:
    return bool(label) and label.upper() != _UNCONNECTED and _SUM_WORD not in label.lower()


def _problem_of(rail: Rail) -> str:
    """Read a rail once: a channel that is switched off, or a chip that does not answer, gives an error."""
    try:
        with RailReader([rail]) as reader:
            reader.read()
            return reader.problems.get(rail.name, "")
    except OSError as err:
        return _reason(err)


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror or str(error) if isinstance(error, OSError) else "it gives no number"
    return f"reading it fails ({text})"


def _text(path: Path) -> str:
    """Read an attribute; empty where there is none."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip(" \n\0")
    return ""


def _word(label: str) -> str:
    """Make one word of a label, as the lines need it."""
    return re.sub(r"\W", "_", label, flags=re.ASCII)
