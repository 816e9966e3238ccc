"""From a simulated board's true power to readings: the lag of the sensor, its ripple and its converter."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from devit_profiling.sensor.board_table import Board
from devit_profiling.simulator.power import POWER, Piece

RIPPLE_LSB = 0.5
"""Root mean square of the readings' ripple in LSB of the converter.

Of the last 88 lines of the recording agx_orin_l4t36_02_log, whose load is steady: 0.28, 0.49, 0.64 and 0.46 LSB on
its four rails, without their straight line and without what the converter itself causes.
"""


@dataclass(frozen=True)
class Sensor:
    """How readings differ from true power."""

    tau_s: float
    """Time constant of its averaging, a first-order lag; 0 for none."""
    gain: Mapping[str, float]
    """By rail: factor of the readings."""
    offset_mw: Mapping[str, float]
    """By rail: offset of the readings."""


def lag_sensor(board: Board) -> Sensor:
    """Make the sensor that the measuring method assumes: the table's time constant, no other error."""
    idle_mw = POWER[board.key].idle_mw
    # Thor's GPU rail reads one LSB below zero without power.
    zero_mw = {rail: min(float(power_mw), 0.0) for rail, power_mw in idle_mw.items()}
    return Sensor(board.tau_s, dict.fromkeys(idle_mw, 1.0), zero_mw)


class Readings:
    """A sensor at work: it follows the true power and gives readings in whole LSB of its converter."""

    def __init__(
        self, board: Board, sensor: Sensor, settled_mw: Sequence[float], seed: int, ripple_lsb: float = RIPPLE_LSB
    ) -> None:
        """Start settled at a power by rail.

        The ripple's mean is zero; it is white before the sensor's averaging, and none of it counts as true energy.
        """
        self._tau_s = sensor.tau_s
        self._seen_mw = list(settled_mw)
        self._rails = [
            (float(board.lsb_mw[rail]), sensor.gain[rail], sensor.offset_mw[rail]) for rail in POWER[board.key].idle_mw
        ]
        self._ripple_lsb = ripple_lsb
        self._random = random.Random(f"ripple {seed}")
        self._ripples = [self._random.gauss(0.0, ripple_lsb) for _ in self._rails]
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
        self._draw_ripple()
        readings = []
        for seen_mw, ripple, (lsb_mw, gain, offset_mw) in zip(self._seen_mw, self._ripples, self._rails, strict=True):
            readings.append(int(round((gain * seen_mw + offset_mw) / lsb_mw + ripple) * lsb_mw))
        return tuple(readings)

    def _draw_ripple(self) -> None:
        """Replace the part of the ripple that the averaging has forgotten since the last reading."""
        if self._ripple_lsb == 0:
            return
        kept = math.exp(-self._since_s / self._tau_s) if self._tau_s > 0 else 0.0
        self._since_s = 0.0
        fresh_lsb = self._ripple_lsb * math.sqrt(1 - kept**2)
        gauss = self._random.gauss
        self._ripples = [kept * ripple + gauss(0.0, fresh_lsb) for ripple in self._ripples]
