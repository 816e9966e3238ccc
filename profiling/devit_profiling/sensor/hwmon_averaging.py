"""Lets the chips average fewer conversions, and restores them however the program ends.

Experimental: no board has run it.

A chip that averages 512 conversions of 0.84 ms follows a step of the load with a time constant of 0.43 s. For a period
of 20 ms, 16 of them are as many as fit. The chips' state is written to a file before anything is changed. The file is
removed when the state is restored; after a kill, the next start finds the file and restores from it.

Two facts of the driver (Linux, ``drivers/hwmon/ina3221.c``) decide the order of what is written here. Reading
``update_interval`` gives the time of all conversions once (newer kernels) or times ``samples`` (older ones), while
writing it divides by ``samples`` in both. With ``samples`` at 1 the two agree, so intervals are read and written then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import exclusive_lock, make_folder, read_json, remove_file, write_json
from devit_contract.errors import DevitError, EnergyError
from devit_profiling.sensor.hwmon_rails import Chip

STATE_FILE = "sensor.json"
SAMPLES = (1, 4, 16, 64, 128, 256, 512, 1024)
"""Numbers of conversions that an INA3221 can average."""


class ChipState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A chip before anything was changed."""

    device: str
    samples: int
    update_interval_ms: int | None
    """As read; absent where the driver has none."""
    once_ms: int | None = None
    """The interval with ``samples`` at 1; only where the interval is about to be changed too."""


class SensorState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state file: what to restore."""

    schema: int
    chips: tuple[ChipState, ...]


@contextmanager
def fast_averaging(chips: Sequence[Chip], period_ms: int, folder: Path) -> Iterator[list[str]]:
    """Let every chip average no longer than a period; restore it at the end of the block.

    Signals that would end the process at once must be blocked meanwhile. The folder of the state file is lost at a
    reboot as the chips' settings are.

    Yields:
        What was changed, one sentence a chip.

    Raises:
        EnergyError: No chip's averaging can be set, permission is missing, or another program has set it.
        InputError: The state file cannot be written.
    """
    settable = [chip for chip in chips if (chip.folder / "samples").exists()]
    if not settable:
        raise EnergyError(
            "--fast-sensor: expected a chip whose averaging can be set (hwmon attribute samples; L4T 34 or newer), "
            "found none: leave --fast-sensor out"
        )
    for path in (chip.folder / "samples" for chip in settable):
        if not os.access(path, os.W_OK):
            raise EnergyError(f"{path}: --fast-sensor may not write it: run as root, or leave --fast-sensor out")
    make_folder(folder)
    with _lock(folder):
        restore(chips, folder)
        before = {chip.device: _state_of(chip) for chip in settable}
        _keep(folder, before)
        try:
            yield [_speed_up(chip, period_ms, before, folder) for chip in settable]
        finally:
            restore(chips, folder)


def restore_stale(chips: Sequence[Chip], folder: Path) -> str:
    """Restore the averaging that a killed program has left.

    Returns:
        What was done, or why not, in one sentence; empty where there was nothing to do.
    """
    if not (folder / STATE_FILE).exists():
        return ""
    try:
        with _lock(folder):
            restore(chips, folder)
    except DevitError as err:
        return f"the averaging of the sensor is not the one the board started with: {err}"
    return "the averaging that a killed program had left is restored"


def restore(chips: Sequence[Chip], folder: Path) -> None:
    """Restore every chip from the state file, and remove the file; do nothing without a file.

    Raises:
        EnergyError: A chip does not take it; the file stays.
        ManifestError: The file is broken.
        InputError: It cannot be read or removed.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return
    here = {chip.device: chip for chip in chips}
    for state in read_json(path, SensorState, schema=1, hint=f"remove {path} and restart the board").chips:
        if state.device in here:  # else its driver is gone, and its settings with it
            _restore_chip(here[state.device], state)
    remove_file(path)


def _speed_up(chip: Chip, period_ms: int, states: dict[str, ChipState], folder: Path) -> str:
    """Choose as many samples as fit into a period, never more than before."""
    before = states[chip.device]
    _write(chip, "samples", 1)
    once_ms = _read(chip, "update_interval") if before.update_interval_ms is not None else None
    if once_ms is not None and once_ms > period_ms:
        states[chip.device] = msgspec.structs.replace(before, once_ms=once_ms)
        _keep(folder, states)
        _write(chip, "update_interval", period_ms)
        once_ms = _read(chip, "update_interval")
    # Less than half a millisecond reads as 0; where nothing is known, one sample is the only sure choice.
    fitting = period_ms // max(once_ms, 1) if once_ms is not None else 1
    samples = max(count for count in SAMPLES if count <= max(1, min(before.samples, fitting)))
    if samples > 1:
        _write(chip, "samples", samples)
    text = f"{chip.device} averages {samples} conversions instead of {before.samples}"
    if states[chip.device].once_ms is not None:
        text += f", of {once_ms} ms instead of {states[chip.device].once_ms} ms"
    return f"{text}, as --fast-sensor asks"


def _restore_chip(chip: Chip, state: ChipState) -> None:
    if state.once_ms is not None:
        _write(chip, "samples", 1)
        _write(chip, "update_interval", state.once_ms)
    _write(chip, "samples", state.samples)
    if (samples := _read(chip, "samples")) != state.samples:
        raise EnergyError(
            f"{chip.folder / 'samples'}: expected {state.samples} as before, found {samples}: restart the board"
        )


def _state_of(chip: Chip) -> ChipState:
    interval_ms = _read(chip, "update_interval") if (chip.folder / "update_interval").exists() else None
    return ChipState(chip.device, _read(chip, "samples"), interval_ms)


def _keep(folder: Path, states: dict[str, ChipState]) -> None:
    write_json(folder / STATE_FILE, SensorState(1, tuple(states.values())))


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


def _lock(folder: Path) -> AbstractContextManager[int]:
    busy = "another program samples with --fast-sensor: wait for its end, or leave the option out"
    return exclusive_lock(folder, busy=EnergyError(f"{folder}: {busy}"))
