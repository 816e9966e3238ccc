"""A device's power samples with the rule of its board: the total, or why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from devit_contract.arrays import Float64Array
from devit_profiling.figures.interval import offset_95_w
from devit_profiling.record.calibration import Calibration
from devit_profiling.record.record import DeviceRecord, Recording
from devit_profiling.sensor.board_table import Board
from devit_profiling.sensor.boards import BoardTotal, total_mw, why_no_total
from devit_profiling.sensor.sensor_lines import SensorLog, parse_sensor_log


@dataclass(frozen=True)
class Power:
    """A device's samples, ready to be integrated."""

    device: DeviceRecord
    log: SensorLog
    board: Board | None
    is_board_guessed: bool
    is_simulated: bool
    time_s: Float64Array
    """Arrival of the samples with a total on the device's monotonic clock, shape ``(n,)``."""
    rails_w: Float64Array
    """Readings of the rails that make the total, shape ``(n, rails)``."""
    not_measured: str
    """Why there is no total; empty where there is one."""
    sensor_notes: tuple[str, ...] = ()
    """What the sensor's own program left out or changed."""
    board_notes: tuple[str, ...] = ()
    """Why the total is not that of the named board, or not calibrated."""

    @property
    def total_w(self) -> Float64Array:
        """The total, shape ``(n,)``: readings, or what a calibration makes of them."""
        total_w: Float64Array = self.rails_w.sum(axis=1)
        return self.calibration.watts(total_w) if self.calibration is not None else total_w

    @property
    def calibration(self) -> Calibration | None:
        """What the total is corrected by."""
        return self.device.calibration

    @property
    def gain(self) -> float:
        """What a watt of the readings makes in the total."""
        return self.calibration.gain if self.calibration is not None else 1.0

    @property
    def step_mw(self) -> tuple[float, ...]:
        """What one step of the converter of each rail makes in the total, in milliwatts."""
        return tuple(self.gain * step_mw for step_mw in self.board.total_lsb_mw) if self.board is not None else ()

    def fixed_95_w(self, mean_w: float) -> float:
        """Half-width of 95 % in watts of what is wrong alike in all windows of a mean power, and that is known of.

        It is the sensor's offset, or what a calibration leaves open. No repeat shows it.
        """
        return self.calibration.half_95_w(mean_w) if self.calibration is not None else offset_95_w(self.step_mw)

    def readings(self) -> Iterator[tuple[int, dict[str, int]]]:
        """Give every sample's time on the device's clock in ns, and the mW of its rails and of "total", their sum.

        The sum is that of the board's rule, calibrated, where a sample has one.
        """
        for sample in self.log.samples:
            power_mw = dict(sample.rails_mw)
            total = total_mw(self.board, power_mw) if self.board is not None else None
            if total is not None and self.calibration is not None:
                total = round(1000 * self.calibration.watts(total / 1000))
            if total is not None:
                power_mw["total"] = total
            yield sample.monotonic_ns, power_mw

    @property
    def scope(self) -> str:
        """What the total covers; empty where there is none."""
        if self.board is None or self.not_measured:
            return ""
        calibrated = f", calibrated against {self.calibration.meter}" if self.calibration is not None else ""
        return f"{self.board.scope}{calibrated}"


def power_of(recording: Recording, device: DeviceRecord) -> Power:
    """Read a device's log and find the board whose rule makes the total."""
    log = parse_sensor_log(recording.lines[device.name])
    total = BoardTotal(device.description)
    whole = [sample for sample in log.samples if total.add(sample) is not None]
    notes = [total.note] if total.note else []
    if device.calibration is not None and total.board is not None and device.calibration.scope != total.board.scope:
        notes.append(f"not calibrated: the calibration is of another scope, {device.calibration.scope}")
        device = msgspec.structs.replace(device, calibration=None)
    rails = total.board.total_rails if total.board is not None else ()
    rails_mw = np.fromiter((sample.rails_mw[rail] for sample in whole for rail in rails), np.float64)
    return Power(
        device=device,
        log=log,
        board=total.board,
        is_board_guessed=total.is_guessed,
        is_simulated=total.is_simulated,
        time_s=np.fromiter((sample.monotonic_ns / 1e9 for sample in whole), np.float64),
        rails_w=rails_mw.reshape(len(whole), len(rails)) / 1e3,
        not_measured=_why_no_total(device, log, total.board, has_total=bool(whole)),
        sensor_notes=log.notes,
        board_notes=tuple(notes),
    )


def rail_names(log: SensorLog) -> tuple[str, ...]:
    """List the rails of a log in the order of its lines."""
    return tuple(dict.fromkeys(rail for sample in log.samples for rail in sample.rails_mw))


def _why_no_total(device: DeviceRecord, log: SensorLog, board: Board | None, *, has_total: bool) -> str:
    if not log.samples:
        if device.sensor_problem:
            return device.sensor_problem
        return f"none of {log.unparsed_lines} lines of the sampler is a sample of tegrastats or hwmon-power"
    if has_total:
        return ""
    return why_no_total(board, device.description.board_model, rail_names(log))
