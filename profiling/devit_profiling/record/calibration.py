"""The line from a board's total to an external meter: what it is worth, where it holds, and where it is kept.

One file a device, ``NAME.json`` in a folder of the operator's machine. Gain and offset are a specimen's own, so the
file holds for the device and the board that it was made on, and for nothing else.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from devit_contract.arrays import Float64Array
from devit_contract.artefacts.files import read_json, write_json
from devit_contract.errors import ManifestError

SCHEMA = 1
_Watts = TypeVar("_Watts", float, Float64Array)


class Alignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the meter's clock was laid on the device's."""

    offset_s: float
    """The meter's clock less the device's monotonic clock; the difference in how fast both follow is in it."""
    overlap_s: float
    """Time that both logs cover."""
    explained: float
    """Share of the variance of the board's log that the meter's explains there, 0 to 1."""


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``watts = offset_w + gain * reading`` of one device."""

    schema: int
    device: str
    board_model: str
    scope: str
    """Of the readings: what the board's own total covers."""
    meter: str
    """Name of the meter, and where it sits."""
    made_utc: str
    run: str
    """Name of the run whose log was used."""
    is_simulated: bool
    gain: float
    offset_w: float
    residual_w: float
    """Root mean square of what the line leaves."""
    low_w: float
    """Readings between this and the next were calibrated."""
    high_w: float
    centre_w: float
    """Reading at which the line is known best."""
    level_95_w: float
    """Half-width of 95 % of the line there."""
    gain_95: float
    """Half-width of 95 % of the gain."""
    stretches: int
    """Pieces of steady power that the line was fitted to."""
    alignment: Alignment
    meter_error_percent: float | None = None
    """The meter's own, as its owner stated it; absent where none was stated, and then in no figure."""

    def __post_init__(self) -> None:
        """Refuse what is no line of a power sensor."""
        if not (self.gain > 0 and math.isfinite(self.gain) and math.isfinite(self.offset_w)):
            raise ValueError(f"expected a gain above 0 and a finite offset, found {self.gain} and {self.offset_w}")

    def watts(self, reading_w: _Watts) -> _Watts:
        """Correct a reading, or many."""
        return self.offset_w + self.gain * reading_w

    def reading_w(self, watts: float) -> float:
        """Give the reading that was corrected to this."""
        return (watts - self.offset_w) / self.gain

    def half_95_w(self, watts: float) -> float:
        """Half-width of 95 % of a corrected mean power by the fit, and by the meter where its error was stated."""
        slope_w = self.gain_95 * (self.reading_w(watts) - self.centre_w)
        return math.hypot(self.level_95_w, slope_w, (self.meter_error_percent or 0.0) / 100 * watts)

    def doubt(self, watts: float) -> str | None:
        """Doubt a corrected mean power outside of what was calibrated; a twentieth of the range is let pass."""
        spare_w = (self.high_w - self.low_w) / 20
        if self.low_w - spare_w <= self.reading_w(watts) <= self.high_w + spare_w:
            return None
        low_w, high_w = self.watts(self.low_w), self.watts(self.high_w)
        return (
            f"mean power of {watts:.2f} W lies outside of {low_w:.2f} W to {high_w:.2f} W, where this device was "
            "calibrated: calibrate again at this load"
        )


def default_folder() -> Path:
    """Where calibrations are kept: ``devit/calibrations`` in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "devit" / "calibrations"


def calibration_path(folder: Path, device: str) -> Path:
    """Name a device's file."""
    return folder / f"{device}.json"


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write it.

    Raises:
        InputError: The file cannot be written.
    """
    write_json(path, calibration)


def find_calibration(folder: Path | None, device: str, board_model: str) -> Calibration | None:
    """Read a device's calibration; ``None`` where it has none.

    Args:
        folder: Where to look; ``None``: nowhere.
        device: Its name in the fleet.
        board_model: What it says of itself.

    Raises:
        InputError: The file cannot be read.
        ManifestError: It breaks its format, or was made on another device or board.
    """
    path = calibration_path(folder, device) if folder is not None else None
    if path is None or not path.exists():
        return None
    hint = f"calibrate again with profile calibrate, or remove {path}"
    found = read_json(path, Calibration, schema=SCHEMA, hint=hint)
    if (found.device, found.board_model) != (device, board_model):
        raise ManifestError(
            f"{path}: expected a calibration of {device}, {board_model}, found one of {found.device}, "
            f"{found.board_model}: {hint}"
        )
    return found
