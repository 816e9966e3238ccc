"""From a simulated board's true power to readings: the sensor's averaging, its errors and its converter."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from devit_profiling.sensor.board_table import Board
from devit_profiling.simulator.boards import POWER
from devit_profiling.simulator.power import Piece

RIPPLE_STEPS = 0.5
"""Default root mean square of the readings' ripple in converter steps.

Of the last 88 lines of the recording agx_orin_l4t36_02_log, whose load is steady: 0.28, 0.49, 0.64 and 0.46 steps on
its four rails, without their straight line and without what the steps themselves cause.
"""


@dataclass(frozen=True)
class Sensor:
    """How readings differ from true power."""

    title: str
    tau_s: float
    """Time constant of its averaging, a first-order lag; 0 for none."""
    gain: Mapping[str, float]
    """By rail: what a reading is multiplied by."""
    offset_mw: Mapping[str, float]
    """By rail: what is added to a reading."""


def lag(board: Board, seed: int) -> Sensor:
    """Make the sensor that the method of measuring takes for granted: the table's time constant, no other error."""
    del seed  # nothing is drawn
    return Sensor("lag", board.tau_s, dict.fromkeys(POWER[board.key].idle_mw, 1.0), _zero_mw(board))


def recursive_average(board: Board, seed: int) -> Sensor:
    """Make a sensor that the method knows nothing of: drawn averaging, gain and offset.

    The chip keeps ``old + (new - old) / N`` of every conversion, with N of its eight settings. Gain is off by up to
    3 %, and the offset is up to two steps of the converter, on each rail for itself.
    """
    draw = random.Random(f"sensor {seed}")
    samples = draw.choice(_AVERAGES)
    # What is left of the old after one conversion, 1 - 1/N, as a lag; a single sample keeps nothing.
    tau_s = -_CONVERSION_S / math.log(1 - 1 / samples) if samples > 1 else 0.0
    gain = {rail: 1 + draw.uniform(-_MAX_GAIN, _MAX_GAIN) for rail in POWER[board.key].idle_mw}
    zero_mw, step_mw = _zero_mw(board), board.lsb_mw
    offset_mw = {rail: zero_mw[rail] + draw.uniform(-_MAX_OFFSET, _MAX_OFFSET) * step_mw[rail] for rail in zero_mw}
    return Sensor(f"average of {samples}", tau_s, gain, offset_mw)


SENSORS: Mapping[str, Callable[[Board, int], Sensor]] = MappingProxyType({"lag": lag, "average": recursive_average})
"""The sensors to choose from, made for a board and a seed."""


class Readings:
    """A sensor at work: it sees the true power and gives readings in whole steps of its converter."""

    def __init__(
        self, board: Board, sensor: Sensor, settled_mw: Sequence[float], ripple_steps: float, seed: int
    ) -> None:
        """Have it settled at a power.

        Args:
            board: Whose rails and converter steps to use.
            sensor: Its lag and errors.
            settled_mw: By rail.
            ripple_steps: Root mean square of the ripple, whose mean is zero, in steps of the converter. It is white
                before the sensor's averaging, and none of it counts as true energy.
            seed: Of the ripple.
        """
        self._tau_s = sensor.tau_s
        self._seen_mw = list(settled_mw)
        self._rails = [
            (float(board.lsb_mw[rail]), sensor.gain[rail], sensor.offset_mw[rail]) for rail in POWER[board.key].idle_mw
        ]
        self._ripple_steps = ripple_steps
        self._random = random.Random(f"ripple {seed}")
        self._ripples = [self._random.gauss(0.0, ripple_steps) for _ in self._rails]
        self._since_s = 0.0

    def see(self, piece: Piece) -> None:
        """Follow the power along a straight line, exactly as a first-order lag does."""
        kept = math.exp(-piece.duration_s / self._tau_s) if self._tau_s > 0 else 0.0
        lag_share = self._tau_s / piece.duration_s
        for rail, (from_mw, to_mw) in enumerate(zip(piece.from_mw, piece.to_mw, strict=True)):
            behind_mw = (to_mw - from_mw) * lag_share
            self._seen_mw[rail] = to_mw - behind_mw + (self._seen_mw[rail] - from_mw + behind_mw) * kept
        self._since_s += piece.duration_s

    def read_mw(self) -> tuple[int, ...]:
        """Give the reading of every rail, in the order of the board's lines; it may be negative."""
        self._let_ripple()
        readings = []
        for seen_mw, ripple_steps, (step_mw, gain, offset_mw) in zip(
            self._seen_mw, self._ripples, self._rails, strict=True
        ):
            steps = round((gain * seen_mw + offset_mw) / step_mw + ripple_steps)
            readings.append(int(steps * step_mw))
        return tuple(readings)

    def _let_ripple(self) -> None:
        """Draw anew what the averaging has not kept since the last reading."""
        if self._ripple_steps == 0:
            return
        kept = math.exp(-self._since_s / self._tau_s) if self._tau_s > 0 else 0.0
        self._since_s = 0.0
        fresh_steps = self._ripple_steps * math.sqrt(1 - kept**2)
        gauss = self._random.gauss
        self._ripples = [kept * ripple + gauss(0.0, fresh_steps) for ripple in self._ripples]


def _zero_mw(board: Board) -> dict[str, float]:
    """Give what each rail reads without power: Thor's GPU rail reads one step below zero."""
    return {rail: min(float(idle_mw), 0.0) for rail, idle_mw in POWER[board.key].idle_mw.items()}


_AVERAGES = (1, 4, 16, 64, 128, 256, 512, 1024)  # settings of the INA3221
_CONVERSION_S = 6 * 140e-6  # three channels, two quantities each, at the chip's shortest conversion time
_MAX_GAIN = 0.03
_MAX_OFFSET = 2.0  # steps of the converter: 80 uV, at 40 uV a step
