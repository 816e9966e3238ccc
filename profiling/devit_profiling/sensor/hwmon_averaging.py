"""Sets how many conversions the chips average, and sets it back, whatever ends the program that did it.

A chip that averages 512 conversions of 0.84 ms follows a step of the load with a time constant of 0.43 s. For a period
of 20 ms, 16 of them are as many as fit. What was found is written to a file before anything is changed. The file is
removed when all is as it was; the next start finds it where a program was killed by force, and sets back from it.

Two facts of the driver (Linux, ``drivers/hwmon/ina3221.c``) decide the order of what is written here. Reading
``update_interval`` gives the time of all conversions once (newer kernels) or times ``samples`` (older ones), while
writing it divides by ``samples`` in both. With ``samples`` at 1 the two agree, so intervals are read and written then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import exclusive_lock, make_folder, read_json, write_json
from devit_contract.errors import DevitError, EnergyError, InputError
from devit_profiling.sensor.hwmon_rails import Chip

STATE_FILE = "sensor.json"
SAMPLES = (1, 4, 16, 64, 128, 256, 512, 1024)
"""What an INA3221 can average."""
_BUSY = "another program samples with --fast-sensor now: wait for its end, or leave it out here"


class ChipState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A chip as it was found."""

    device: str
    samples: int
    update_interval_ms: int | None
    """As read; absent where the driver has none."""
    once_ms: int | None = None
    """The interval with ``samples`` at 1; only where the interval is about to be changed too."""


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state file."""

    schema: int
    chips: tuple[ChipState, ...]


@contextmanager
def fast_averaging(chips: Sequence[Chip], period_ms: int, folder: Path) -> Iterator[list[str]]:
    """Let every chip average no longer than a period; set back at the end of the block.

    Signals that would end the process at once must be blocked meanwhile.

    Args:
        chips: Of this machine.
        period_ms: Of the readings.
        folder: For the state file; one that is empty after a reboot, as the chips' settings are.

    Yields:
        What was changed, one sentence a chip.

    Raises:
        EnergyError: No chip's averaging can be set, permission is missing, or another program has set it.
        InputError: The state cannot be written.
    """
    settable = [chip for chip in chips if (chip.folder / "samples").exists()]
    if not settable:
        raise EnergyError(
            "--fast-sensor: expected a chip whose averaging can be set (hwmon attribute samples; L4T 34 or newer), "
            "found none: leave --fast-sensor out"
        )
    for chip in settable:
        _check_permission(chip)
    make_folder(folder)
    with exclusive_lock(folder, busy=EnergyError(f"{folder}: {_BUSY}")):
        set_back(chips, folder)
        found = {chip.device: _found(chip) for chip in settable}
        _remember(folder, found)
        try:
            yield [_hasten(chip, period_ms, found, folder) for chip in settable]
        finally:
            set_back(chips, folder)


def set_back_left_over(chips: Sequence[Chip], folder: Path) -> str:
    """Set back what a program that was killed has left.

    Returns:
        What was done, or why not, in one sentence; empty where there was nothing to do.
    """
    if not (folder / STATE_FILE).exists():
        return ""
    try:
        with exclusive_lock(folder, busy=EnergyError(f"{folder}: {_BUSY}")):
            set_back(chips, folder)
    except DevitError as err:
        return f"the averaging of the sensor is not the one the board started with: {err}"
    return "the averaging that a killed program had left was set back"


def set_back(chips: Sequence[Chip], folder: Path) -> None:
    """Give every chip what the state file says, and remove the file; without a file there is nothing to do.

    Raises:
        EnergyError: A chip does not take it; the file stays.
        ManifestError: The file is broken.
        InputError: It cannot be read or removed.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return
    here = {chip.device: chip for chip in chips}
    for state in read_json(path, State, schema=1, hint=f"remove {path} and start the board anew").chips:
        if state.device in here:  # else its driver is gone, and with it what was set
            _restore(here[state.device], state)
    try:
        path.unlink()
    except OSError as err:
        raise InputError(f"{path}: cannot be removed ({err.strerror}): remove it by hand") from err


def _hasten(chip: Chip, period_ms: int, found: dict[str, ChipState], folder: Path) -> str:
    """Choose as many samples as fit into a period, never more than there were."""
    before = found[chip.device]
    _write(chip, "samples", 1)
    once_ms = _read(chip, "update_interval") if before.update_interval_ms is not None else None
    if once_ms is not None and once_ms > period_ms:
        found[chip.device] = msgspec.structs.replace(before, once_ms=once_ms)
        _remember(folder, found)
        _write(chip, "update_interval", period_ms)
        once_ms = _read(chip, "update_interval")
    # Less than half a millisecond reads as 0; where nothing is known, one sample is the only sure choice.
    fitting = period_ms // max(once_ms, 1) if once_ms is not None else 1
    samples = max(count for count in SAMPLES if count <= max(1, min(before.samples, fitting)))
    if samples > 1:
        _write(chip, "samples", samples)
    text = f"{chip.device} averages {samples} conversions instead of {before.samples}"
    if found[chip.device].once_ms is not None:
        text += f", of {once_ms} ms instead of {found[chip.device].once_ms} ms"
    return f"{text}, as --fast-sensor asks"


def _restore(chip: Chip, state: ChipState) -> None:
    if state.once_ms is not None:
        _write(chip, "samples", 1)
        _write(chip, "update_interval", state.once_ms)
    _write(chip, "samples", state.samples)
    if (samples := _read(chip, "samples")) != state.samples:
        raise EnergyError(
            f"{chip.folder / 'samples'}: expected {state.samples} as before, found {samples}: start the board anew"
        )


def _found(chip: Chip) -> ChipState:
    interval_ms = _read(chip, "update_interval") if (chip.folder / "update_interval").exists() else None
    return ChipState(chip.device, _read(chip, "samples"), interval_ms)


def _remember(folder: Path, found: dict[str, ChipState]) -> None:
    write_json(folder / STATE_FILE, State(1, tuple(found.values())))


def _check_permission(chip: Chip) -> None:
    path = chip.folder / "samples"
    if not os.access(path, os.W_OK):
        raise EnergyError(f"{path}: --fast-sensor may not write it: run as root, or leave --fast-sensor out")


def _read(chip: Chip, attribute: str) -> int:
    path = chip.folder / attribute
    try:
        return int(path.read_bytes())
    except (OSError, ValueError) as err:
        raise EnergyError(f"{path}: expected a number, found none ({err}): leave --fast-sensor out") from err


def _write(chip: Chip, attribute: str, value: int) -> None:
    path = chip.folder / attribute
    try:
        with path.open("w", encoding="ascii") as file:
            file.write(f"{value}\n")
    except OSError as err:
        raise EnergyError(f"{path}: cannot be set to {value} ({err.strerror}): run as root") from err
