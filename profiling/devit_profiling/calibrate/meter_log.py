"""The log of an external power meter: a CSV file with the columns ``time_s`` and ``power_w``.

The first line names the columns; others beside the two are left alone, as are empty lines and lines that begin with
``#``. Times are seconds on any clock, rising, from any start; powers are watts. Decimal points are points. UTF-16
and gzip are read too.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from devit_contract.arrays import Float64Array
from devit_contract.errors import InputError
from devit_profiling.log.text import open_lines

TIME_COLUMN, POWER_COLUMN = "time_s", "power_w"


@dataclass(frozen=True)
class MeterLog:
    """Power samples of an external meter."""

    time_s: Float64Array
    """On the meter's clock, shape ``(n,)``, strictly rising."""
    power_w: Float64Array
    """Shape ``(n,)``."""


def read_meter_log(path: Path) -> MeterLog:
    """Read a log.

    Raises:
        InputError: It cannot be read, lacks a column, or a line holds no number or goes back in time.
    """
    with open_lines(str(path)) as text:
        lines = [(number, line) for number, line in enumerate(text, 1) if line.strip() and line[0] != "#"]
    if text.damage:
        raise InputError(text.damage)
    rows = list(csv.reader(line for _, line in lines))
    header = [name.strip() for name in rows[0]] if rows else []
    if TIME_COLUMN not in header or POWER_COLUMN not in header:
        raise InputError(
            f"{path}: expected the columns {TIME_COLUMN} and {POWER_COLUMN}, found {', '.join(header) or 'none'}: "
            f"name them in the first line, e.g. {TIME_COLUMN},{POWER_COLUMN}"
        )
    places = header.index(TIME_COLUMN), header.index(POWER_COLUMN)
    points = [_point(path, number, row, places) for (number, _), row in zip(lines[1:], rows[1:], strict=False)]
    for (number, _), before, after in zip(lines[2:], points, points[1:], strict=False):
        if after[0] <= before[0]:
            raise InputError(
                f"{path}: line {number}: expected a time after {before[0]} s, found {after[0]} s: sort the log by time"
            )
    time_s, power_w = np.array(points, np.float64).reshape(-1, 2).T
    return MeterLog(time_s, power_w)


def _point(path: Path, number: int, row: list[str], places: tuple[int, int]) -> tuple[float, float]:
    try:
        time_s, power_w = (float(row[place]) for place in places)
    except (IndexError, ValueError) as err:
        raise InputError(f"{path}: line {number}: expected two numbers, found {','.join(row)!r}: correct it") from err
    if not (math.isfinite(time_s) and math.isfinite(power_w)):
        raise InputError(f"{path}: line {number}: expected finite numbers, found {','.join(row)!r}: correct it")
    return time_s, power_w
