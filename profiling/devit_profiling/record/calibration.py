"""The calibration of a board's total by an external meter: its line, range and uncertainty, and its file.

One file per device, ``NAME.json`` in a folder of the operator's machine. Gain and offset differ from unit to unit, so
a calibration is valid for its own device and board only.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from devit_contract.arrays import Float64Array
from devit_contract.artefacts.files import read_json
from devit_contract.errors import ManifestError

SCHEMA = 2
_Watts = TypeVar("_Watts", float, Float64Array)


class Alignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the meter's clock was aligned with the device's."""

    offset_s: float
    """The meter's clock less the device's monotonic clock, including the difference between the lags of both."""
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
    """What the board's own total covers."""
    meter: str
    """Name of the meter, and where it is connected."""
    made_utc: str
    run: str
    """Name of the run whose log was used."""
    is_simulated: bool
    gain: float
    offset_w: float
    residual_w: float
    """Root mean square of the residuals."""
    low_w: float
    """Least calibrated reading; ``high_w`` is the greatest."""
    high_w: float
    centre_w: float
    """Reading at which the line is known best."""
    level_95_w: float
    """Half-width of 95 % of the line there."""
    gain_95: float
    """Half-width of 95 % of the gain."""
    segments: int
    """Steady-state segments that the line was fitted to."""
    alignment: Alignment
    meter_error_percent: float | None = None
    """The meter's own error as its owner stated it; absent where none was stated, and then in no figure."""

    def __post_init__(self) -> None:
        """Refuse a line that no power sensor has."""
        if not (self.gain > 0 and math.isfinite(self.gain) and math.isfinite(self.offset_w)):
            raise ValueError(f"expected a gain above 0 and a finite offset, found {self.gain} and {self.offset_w}")

    def watts(self, reading_w: _Watts) -> _Watts:
        """Correct one reading or many."""
        return self.offset_w + self.gain * reading_w

    def reading_w(self, watts: float) -> float:
        """Give the reading that is corrected to these watts."""
        return (watts - self.offset_w) / self.gain

    def half_95_w(self, watts: float) -> float:
        """Half-width of 95 % of a corrected mean power by the fit, and by the meter where its error was stated."""
        slope_w = self.gain_95 * (self.reading_w(watts) - self.centre_w)
        return math.hypot(self.level_95_w, slope_w, (self.meter_error_percent or 0.0) / 100 * watts)

    def warning(self, watts: float) -> str | None:
        """Warn of a corrected mean power outside the calibrated range, with a tolerance of a twentieth of it."""
        spare_w = (self.high_w - self.low_w) / 20
        if self.low_w - spare_w <= self.reading_w(watts) <= self.high_w + spare_w:
            return None
        low_w, high_w = self.watts(self.low_w), self.watts(self.high_w)
        return (
            f"mean power of {watts:.2f} W is outside the calibrated range of this device, {low_w:.2f} W to "
            f"{high_w:.2f} W: calibrate again at this load"
        )


def default_folder() -> Path:
    """Where calibrations are kept: ``devit/calibrations`` in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "devit" / "calibrations"


def calibration_path(folder: Path, device: str) -> Path:
    """Give the path of a device's file."""
    return folder / f"{device}.json"


def find_calibration(folder: Path | None, device: str, board_model: str) -> Calibration | None:
    """Read a device's calibration; ``None`` where it has none, or there is no folder of calibrations.

    Raises:
        InputError: The file cannot be read.
        ManifestError: The file breaks its format, or was made on another device or board.
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
