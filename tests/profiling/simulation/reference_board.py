"""A simulated board whose true energy is known exactly, with the errors that the measuring method must bear."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from devit_profiling.sensor.board_table import Board
from devit_profiling.simulator.board import SimulatedBoard
from devit_profiling.simulator.power import POWER, Physics, Piece, TruePower
from devit_profiling.simulator.program import period_s
from devit_profiling.simulator.sensor import RIPPLE_LSB, Readings, Sensor, lag_sensor

_AVERAGES = (1, 4, 16, 64, 128, 256, 512, 1024)  # settings of the INA3221
_CONVERSION_S = 6 * 140e-6  # three channels, two quantities each, at the chip's shortest conversion time
_MAX_GAIN = 0.03
_MAX_OFFSET_LSB = 2.0  # 80 uV, at 40 uV an LSB
_MAX_PAUSE_S = 3.0


class RecordedPower(TruePower):
    """True power that is kept, so that its energy over any past interval is a sum of trapezoids; clocks may ramp."""

    def __init__(self, board: Board, physics: Physics, ramp_s: float = 0.0) -> None:
        """Let rising clocks, and the power with them, take ``ramp_s`` from idle to full load; they fall at once."""
        super().__init__(board, physics)
        self._rails = tuple(POWER[board.key].idle_mw)
        self._total_rails = board.total_rails
        self._ramp_s = ramp_s
        self._history: list[Piece] = []

    def work(self, until_s: float, load: float) -> list[Piece]:
        if self._now_s is None:
            self._now_s = until_s
        pieces = []
        if load < self._drive:
            self._drive = load
        rise_s = (load - self._drive) * self._ramp_s
        if self._drive < load and rise_s < until_s - self._now_s:
            if self._now_s + rise_s > self._now_s:
                pieces.append(self._piece(self._now_s + rise_s, load))
            self._drive = load
        if until_s > self._now_s:
            risen = (until_s - self._now_s) / self._ramp_s if self._drive < load else 0.0
            pieces.append(self._piece(until_s, min(self._drive + risen, load)))
        self._history += pieces
        return pieces

    def rails_j(self, start_s: float, end_s: float) -> Mapping[str, float]:
        """Give the exact energy of every rail between two moments of the past.

        Raises:
            ValueError: The board did not work then.
        """
        history = self._history
        if not history or start_s < history[0].start_s or self._now_s is None or end_s > self._now_s:
            raise ValueError(f"expected an interval that was simulated, found {start_s} s to {end_s} s")
        parts_j: list[list[float]] = [[] for _ in self._rails]
        first = bisect_right(history, start_s, key=lambda piece: piece.start_s) - 1
        for piece in history[first:]:
            if piece.start_s >= end_s:
                break
            cut_s = max(start_s - piece.start_s, 0.0), min(end_s - piece.start_s, piece.duration_s)
            middle = (cut_s[0] + cut_s[1]) / 2 / piece.duration_s
            for parts, from_mw, to_mw in zip(parts_j, piece.from_mw, piece.to_mw, strict=True):
                parts.append((from_mw + (to_mw - from_mw) * middle) * (cut_s[1] - cut_s[0]))
        return {rail: math.fsum(parts) / 1000 for rail, parts in zip(self._rails, parts_j, strict=True)}

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Give the exact energy of the board's total between two moments; raises as :meth:`rails_j` does."""
        rails_j = self.rails_j(start_s, end_s)
        return math.fsum(rails_j[rail] for rail in self._total_rails)


def recursive_average(board: Board, seed: int) -> Sensor:
    """Make a sensor that the method knows nothing of: drawn averaging, gain and offset.

    The chip keeps ``old + (new - old) / N`` of every conversion, with N of its eight settings. Gain is off by up to
    3 %, and the offset is up to two LSB of the converter, on each rail for itself.
    """
    draw = random.Random(f"sensor {seed}")
    samples = draw.choice(_AVERAGES)
    # What is left of the old after one conversion, 1 - 1/N, as a lag; a single sample keeps nothing.
    tau_s = -_CONVERSION_S / math.log(1 - 1 / samples) if samples > 1 else 0.0
    gain = {rail: 1 + draw.uniform(-_MAX_GAIN, _MAX_GAIN) for rail in POWER[board.key].idle_mw}
    offset_mw = {
        rail: zero_mw + draw.uniform(-_MAX_OFFSET_LSB, _MAX_OFFSET_LSB) * board.lsb_mw[rail]
        for rail, zero_mw in lag_sensor(board).offset_mw.items()
    }
    return Sensor(tau_s, gain, offset_mw)


class ReferenceBoard(SimulatedBoard):
    """A board at work, its true energy, and its energy as its sensor's gain and offset show it."""

    def __init__(
        self,
        board: Board,
        *,
        seed: int = 0,
        sensor: Sensor | None = None,
        ripple_lsb: float = RIPPLE_LSB,
        physics: Physics | None = None,
        ramp_s: float = 0.0,
    ) -> None:
        """Let the board idle; by default with the lag of the board's sensor, a drawn unit and no ramp."""
        self._sensor = sensor or lag_sensor(board)
        self._recorded = RecordedPower(board, physics or Physics.drawn(seed), ramp_s)
        readings = Readings(board, self._sensor, self._recorded.rails_mw, seed, ripple_lsb)
        super().__init__(board, power=self._recorded, readings=readings)

    def true_j(self, start_s: float, end_s: float) -> float:
        """Give the exact energy of the board's total between two moments of the past, in joules."""
        return self._recorded.energy_j(start_s, end_s)

    def seen_j(self, start_s: float, end_s: float, *, has_offset: bool = True) -> float:
        """Give the same as the sensor's gain and offset show it, without lag, ripple and converter.

        Repeated measurements can tell no more: what is constant does not scatter.
        """
        rails_j = self._recorded.rails_j(start_s, end_s)
        offset_s = (end_s - start_s) / 1000 if has_offset else 0.0
        gain, offset_mw = self._sensor.gain, self._sensor.offset_mw
        return sum(gain[rail] * rails_j[rail] + offset_mw[rail] * offset_s for rail in self._board.total_rails)


class PausingClock:
    """When lines come: at the period of one process of tegrastats, and now and then after a pause of up to 3 s."""

    def __init__(self, interval_ms: float, *, seed: int = 0, pauses_per_min: float = 0.0) -> None:
        """Draw the period."""
        self.period_s = period_s(interval_ms, seed)
        self._random = random.Random(f"cadence {seed}")
        self._random.random()  # this one drew the period
        self._chance = pauses_per_min * self.period_s / 60

    def gap_s(self) -> float:
        """Draw the time to the next line."""
        pause_s = self._random.uniform(0.0, _MAX_PAUSE_S) if self._random.random() < self._chance else 0.0
        return self.period_s + pause_s


@dataclass(frozen=True)
class LoadStep:
    """A part of a plan of work: a share of the GPU in use, until a moment."""

    until_s: float
    load: float


def play(board: SimulatedBoard, work: Iterable[LoadStep], clock: PausingClock) -> Iterator[tuple[float, float]]:
    """Have a board work to a plan in virtual time; stop wherever a line is due.

    Yields:
        The moment on the plan's clock, from 0 s, and the load; the board is there, to be read.
    """
    due_s = clock.period_s
    board.work(0.0, 0.0)
    for step in work:
        while due_s <= step.until_s:
            board.work(due_s, step.load)
            yield due_s, step.load
            due_s += clock.gap_s()
        board.work(step.until_s, step.load)
