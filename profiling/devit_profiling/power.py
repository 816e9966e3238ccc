"""A device's power samples with the rule of its board: the total, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from devit_profiling.board_table import Board
from devit_profiling.boards import board_of_model, guess_board, total_mw, why_no_total
from devit_profiling.energy import Float64Array
from devit_profiling.record import DeviceRecord, Recording
from devit_profiling.sensor_lines import parse_sensor_log, sensor_notes
from devit_profiling.tegrastats import SIMULATED, Log


@dataclass(frozen=True)
class Power:
    """A device's samples, ready to be integrated."""

    device: DeviceRecord
    log: Log
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

    @property
    def total_w(self) -> Float64Array:
        """Readings of the total, shape ``(n,)``."""
        total_w: Float64Array = self.rails_w.sum(axis=1)
        return total_w

    @property
    def scope(self) -> str:
        """What the total covers; empty where there is none."""
        return self.board.scope if self.board is not None and not self.not_measured else ""


def power_of(recording: Recording, device: DeviceRecord) -> Power:
    """Read a device's log and find the board whose rule makes the total."""
    lines = recording.lines[device.name]
    log = parse_sensor_log(lines)
    model = device.description.board_model
    board, is_guessed = board_of_model(model), False
    if board is None and log.samples:
        board = guess_board(log.samples[0].sample)
        is_guessed = board is not None
    rails = board.total_rails if board is not None else ()
    points = []
    if board is not None:
        whole = [sample for sample in log.samples if total_mw(board, sample.sample.rails_mw) is not None]
        points = [(sample.monotonic_ns / 1e9, [sample.sample.rails_mw[rail] for rail in rails]) for sample in whole]
    return Power(
        device=device,
        log=log,
        board=board,
        is_board_guessed=is_guessed,
        is_simulated=SIMULATED in model.upper() or any(sample.sample.is_simulated for sample in log.samples),
        time_s=np.array([time_s for time_s, _ in points], np.float64),
        rails_w=np.array([rails_mw for _, rails_mw in points], np.float64).reshape(len(points), len(rails)) / 1e3,
        not_measured=_why_no_total(device, log, board, has_total=bool(points)),
        sensor_notes=sensor_notes(lines),
    )


def rail_names(log: Log) -> tuple[str, ...]:
    """List the rails of a log in the order of its lines."""
    return tuple(dict.fromkeys(rail for sample in log.samples for rail in sample.sample.rails_mw))


def _why_no_total(device: DeviceRecord, log: Log, board: Board | None, *, has_total: bool) -> str:
    if not log.samples:
        if device.sensor_problem:
            return device.sensor_problem
        return f"{log.foreign_lines} lines came from the sampler, none of them is a sample of tegrastats or hwmon-power"
    if has_total:
        return ""
    return why_no_total(board, device.description.board_model, rail_names(log))
