"""A device's power samples with the rule of its board: the total, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from devit_profiling.boards import Board, board_of_model, guess_board, total_mw
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
    total_w: Float64Array
    """Shape ``(n,)``."""
    not_measured: str
    """Why there is no total; empty where there is one."""
    sensor_notes: tuple[str, ...] = ()
    """What the sensor's own program left out or changed."""

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
    points = []
    if board is not None:
        totals = ((sample.monotonic_ns, total_mw(board, sample.sample.rails_mw)) for sample in log.samples)
        points = [(stamp_ns / 1e9, power_mw / 1e3) for stamp_ns, power_mw in totals if power_mw is not None]
    return Power(
        device=device,
        log=log,
        board=board,
        is_board_guessed=is_guessed,
        is_simulated=SIMULATED in model.upper() or any(sample.sample.is_simulated for sample in log.samples),
        time_s=np.array([time_s for time_s, _ in points], np.float64),
        total_w=np.array([power_w for _, power_w in points], np.float64),
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
    rails = ", ".join(rail_names(log)) or "none"
    if board is None:
        return f"board {device.description.board_model!r} is not in the table, so no total is known; its rails: {rails}"
    return f"expected the rails {', '.join(board.total_rails)} of {board.title}, found these: {rails}"
