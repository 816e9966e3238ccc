"""Fits a board's total to an external meter: a straight line through the steady-state segments of both logs.

Readings are averaged over a segment before the line is fitted, since noise in single readings would flatten it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from devit_contract.arrays import Float64Array
from devit_contract.errors import EnergyError, InputError
from devit_profiling.calibrate.align import GRID_S, Aligned, align
from devit_profiling.calibrate.meter_log import MeterLog, read_meter_log
from devit_profiling.figures.energy import rising
from devit_profiling.figures.interval import NORMAL_95, quantile_95, step_error
from devit_profiling.figures.power import Power, power_of
from devit_profiling.figures.settling import time_constant
from devit_profiling.record.calibration import SCHEMA, Calibration
from devit_profiling.record.record import Recording
from devit_profiling.record.run_folder import read_recording

_MIN_SAMPLES = 20
_SEGMENT_S = 2.5
_PARTS = 5
_MAX_CHANGE = 0.05
"""Of the whole range: greatest distance between the fifths of a steady segment."""
_MIN_RANGE = 0.1
_MIN_RANGE_LSB = 4.0
_MIN_ON_A_SIDE = 2


def calibrate(
    run: Path, device: str, meter_log: Path, meter: str, meter_error_percent: float | None = None
) -> Calibration:
    """Fit the line from a device's log in a run to a meter's log of the same time.

    ``meter`` is its name and where it is connected; its own error is that at 95 %, if it is known.

    Raises:
        InputError: A file cannot be used, or the run has no such device.
        ManifestError: A raw file of the run breaks its format.
        EnergyError: The line is not determined: no steps of the load, too little overlap, no power samples.
    """
    recording = read_recording(run)
    power = _power(recording, device, run)
    log = read_meter_log(meter_log)
    if log.time_s.size < _MIN_SAMPLES:
        raise EnergyError(
            f"{meter_log}: expected at least {_MIN_SAMPLES} samples of the meter, found {log.time_s.size}: record it "
            "for the whole run"
        )
    return _with_line(recording, power, log, meter, meter_error_percent)


def _power(recording: Recording, device: str, run: Path) -> Power:
    records = {record.name: record for record in recording.run.devices}
    if device not in records:
        names = ", ".join(records)
        raise InputError(f"{run}: expected a device {device!r}, found {names}: choose one of these with --device")
    power = power_of(recording, records[device])
    if power.not_measured or power.time_s.size < _MIN_SAMPLES:
        why = power.not_measured or f"{power.time_s.size} power samples"
        raise EnergyError(
            f"{run}: {device}: expected at least {_MIN_SAMPLES} samples of its total, found {why}: measure again"
        )
    return power


def _with_line(
    recording: Recording, power: Power, log: MeterLog, meter: str, meter_error_percent: float | None
) -> Calibration:
    board = power.board
    assert board is not None  # a total was found
    name = power.device.name
    rises = rising(power.time_s)
    time_s, rails_w = power.time_s[rises], power.rails_w[rises]
    readings_w: Float64Array = rails_w.sum(axis=1)
    if _range_w(readings_w) < _least_range_w(readings_w, board.total_lsb_mw):
        raise EnergyError(
            f"{name}: expected steps of the load in its power, found {readings_w.min():.2f} W to "
            f"{readings_w.max():.2f} W throughout: calibrate with a run that has idle and loaded phases"
        )
    constant = time_constant(readings_w, time_s, recording.run.phases, name, board.tau_s)
    aligned = align(readings_w, time_s, log, constant.tau_s)
    segments = _steady_segments(aligned, time_s, rails_w, board.total_lsb_mw)
    line = _fit_line(segments, name, _least_range_w(readings_w, board.total_lsb_mw))
    return Calibration(
        schema=SCHEMA,
        device=name,
        board_model=power.device.description.board_model,
        scope=board.scope,
        meter=meter,
        made_utc=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S}",
        run=recording.run.name,
        is_simulated=power.is_simulated,
        **line,
        alignment=aligned.alignment,
        meter_error_percent=meter_error_percent,
    )


@dataclass(frozen=True)
class _SteadySegments:
    """Means over steady-state segments, each of shape ``(n,)``."""

    readings_w: Float64Array
    meter_w: Float64Array
    resolution_w: Float64Array
    """Standard error from the converter's resolution, where the readings of a segment stay within one LSB."""


def _least_range_w(readings_w: Float64Array, lsb_mw: tuple[int, ...]) -> float:
    """Give the least range of power that determines a gain: a tenth of its mean, and four LSB of the converter."""
    return max(_MIN_RANGE * abs(float(readings_w.mean())), _MIN_RANGE_LSB * math.hypot(*lsb_mw) / 1000)


def _range_w(readings_w: Float64Array) -> float:
    """Give the range of power, neighbours averaged and a twentieth at either end left out: ripple does not count."""
    smooth_w = np.convolve(readings_w, np.full(_PARTS, 1 / _PARTS), "valid")
    low_w, high_w = np.percentile(smooth_w, (5, 95))
    return float(high_w - low_w)


def _steady_segments(
    aligned: Aligned, time_s: Float64Array, rails_w: Float64Array, lsb_mw: tuple[int, ...]
) -> _SteadySegments:
    """Cut both logs into segments and keep those in which both are steady."""
    size = round(_SEGMENT_S / GRID_S)
    count = aligned.time_s.size // size
    shape = (count, _PARTS, size // _PARTS)
    board_w = aligned.board_w[: count * size].reshape(shape).mean(axis=2)  # (count, parts)
    meter_w = aligned.meter_w[: count * size].reshape(shape).mean(axis=2)
    steady = (np.ptp(board_w, axis=1) < _MAX_CHANGE * np.ptp(aligned.board_w)) & (
        np.ptp(meter_w, axis=1) < _MAX_CHANGE * np.ptp(aligned.meter_w)
    )
    starts_s = aligned.time_s[0] + np.arange(count) * _SEGMENT_S
    resolution_w = np.zeros(count)
    for place in np.flatnonzero(steady):
        inside = (time_s >= starts_s[place]) & (time_s < starts_s[place] + _SEGMENT_S)
        if np.count_nonzero(inside) < _MIN_ON_A_SIDE:
            steady[place] = False  # a pause of the sampler
            continue
        resolution_w[place] = step_error(rails_w[inside], lsb_mw, effective=1.0).constant_w
    return _SteadySegments(board_w.mean(axis=1)[steady], meter_w.mean(axis=1)[steady], resolution_w[steady])


def _fit_line(segments: _SteadySegments, name: str, least_range_w: float) -> dict[str, Any]:
    """Fit by least squares; half-widths by Student's t, and by the converter's resolution, which no repeat shows.

    Returns:
        The fields of :class:`Calibration` that describe the line.
    """
    x_w, y_w = segments.readings_w, segments.meter_w
    low_w, high_w = (float(x_w.min()), float(x_w.max())) if x_w.size else (0.0, 0.0)
    third_w = (high_w - low_w) / 3
    sides = np.count_nonzero(x_w <= low_w + third_w), np.count_nonzero(x_w >= high_w - third_w)
    if high_w - low_w < least_range_w or min(sides) < _MIN_ON_A_SIDE:
        raise EnergyError(
            f"{name}: expected at least {_MIN_ON_A_SIDE} segments of {_SEGMENT_S} s of steady power both at rest and "
            f"under load, in the meter's log too, found {x_w.size} from {low_w:.2f} W to {high_w:.2f} W: measure with "
            "longer phases, and record the meter for the whole run"
        )
    centre_w, freedom = float(x_w.mean()), x_w.size - 2
    from_centre_w = x_w - centre_w
    square = float(from_centre_w @ from_centre_w)
    gain = float(from_centre_w @ y_w) / square
    left_w = y_w - y_w.mean() - gain * from_centre_w
    scatter_w = math.sqrt(float(left_w @ left_w) / freedom)
    student, hidden_w = quantile_95(freedom), NORMAL_95 * gain * float(segments.resolution_w.mean())
    return dict(
        gain=gain,
        offset_w=float(y_w.mean()) - gain * centre_w,
        residual_w=float(np.sqrt(np.mean(left_w**2))),
        low_w=low_w,
        high_w=high_w,
        centre_w=centre_w,
        level_95_w=math.hypot(student * scatter_w / math.sqrt(x_w.size), hidden_w),
        # The converter's errors at rest and under load are independent.
        gain_95=math.hypot(student * scatter_w / math.sqrt(square), math.sqrt(2) * hidden_w / (high_w - low_w)),
        segments=int(x_w.size),
    )
