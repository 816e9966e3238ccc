"""What a simulated board truly draws: known at every instant, and its energy over any interval exactly.

Power is a straight line between two moments at which something changes, so its integral is a sum of trapezoids.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from devit_profiling.sensor.board_table import Board
from devit_profiling.simulator.boards import POWER


@dataclass(frozen=True)
class Piece:
    """A stretch of time in which every rail's power runs along a straight line."""

    start_s: float
    duration_s: float
    from_mw: tuple[float, ...]
    """By rail, in the order of the board's lines; so is ``to_mw``."""
    to_mw: tuple[float, ...]


@dataclass(frozen=True)
class Physics:
    """How the power of a board follows its load."""

    ramp_s: float = 0.0
    """Time in which rising clocks, and the power with them, go from idle to full load. They fall at once."""
    leakage_per_c: float = 0.0035
    """Growth of the power per degree: leakage adds 0.2 to 0.5 % a degree."""
    rise_c: float = 12.0
    """Of the junction from idle to settled full load; recorded rises are 5 to 15 C over minutes."""
    warming_tau_s: float = 90.0
    specimen: float = 1.0
    """Power of this board as a multiple of the table's: no two are alike."""

    @classmethod
    def drawn(cls, seed: int, ramp_s: float = 0.0) -> Physics:
        """Draw a specimen and its leakage."""
        draw = random.Random(f"board {seed}")
        leakage_per_c, specimen = draw.uniform(*_LEAKAGE_PER_C), draw.uniform(*_SPECIMEN)
        return cls(ramp_s=ramp_s, leakage_per_c=leakage_per_c, specimen=specimen)


class TruePower:
    """The rails of a board at work. Cool and idle, or warm and fully loaded, it draws what the board's table says."""

    def __init__(self, board: Board, physics: Physics, *, keeps_history: bool) -> None:
        """Let the board idle, cool, from the first call of :meth:`work` on.

        Args:
            board: Whose rails to use.
            physics: How they follow the load.
            keeps_history: Whether the energy of past intervals can be asked for; memory then grows with the time.
        """
        power = POWER[board.key]
        self._rails = tuple(power.idle_mw)
        self._total_rails = board.total_rails
        self._physics = physics
        # No rail gives power back: one that reads negative at idle draws nothing, and its sensor is off.
        self._idle_mw = tuple(max(float(power.idle_mw[rail]), 0.0) for rail in self._rails)
        hot = 1 + physics.leakage_per_c * physics.rise_c
        self._rise_mw = tuple(
            power.load_mw[rail] / hot - idle for rail, idle in zip(self._rails, self._idle_mw, strict=True)
        )
        self._now_s: float | None = None
        self._drive = 0.0  # how far clocks have risen, 0 to 1
        self._warmth = 0.0  # 0 cool, 1 settled at full load
        self._keeps_history = keeps_history
        self._history: list[Piece] = []

    @property
    def rails_mw(self) -> tuple[float, ...]:
        """Power of each rail now."""
        grown = self._physics.specimen * (1 + self._physics.leakage_per_c * self.rise_c)
        return tuple(
            (idle + self._drive * rise) * grown for idle, rise in zip(self._idle_mw, self._rise_mw, strict=True)
        )

    @property
    def rise_c(self) -> float:
        """Warming since the cool start."""
        return self._physics.rise_c * self._warmth

    def work(self, until_s: float, load: float) -> list[Piece]:
        """Go on with a constant load, a share from 0 to 1, and tell how the power went; the first call sets the clock.

        Args:
            until_s: On the caller's clock, not before the last call's.
            load: What the GPU is asked for. Power falls to it at once, and rises to it as the clocks do.
        """
        if self._now_s is None:
            self._now_s = until_s
        pieces = []
        if load < self._drive:
            self._drive = load
        rise_s = (load - self._drive) * self._physics.ramp_s
        if self._drive < load and rise_s < until_s - self._now_s:
            if self._now_s + rise_s > self._now_s:
                pieces.append(self._piece(self._now_s + rise_s, load))
            self._drive = load
        if until_s > self._now_s:
            risen = (until_s - self._now_s) / self._physics.ramp_s if self._drive < load else 0.0
            pieces.append(self._piece(until_s, min(self._drive + risen, load)))
        if self._keeps_history:
            self._history += pieces
        return pieces

    def rails_j(self, start_s: float, end_s: float) -> Mapping[str, float]:
        """Give the exact energy of every rail between two moments that the board has lived through.

        Raises:
            ValueError: It has not, or keeps no history.
        """
        history = self._history
        if not history or start_s < history[0].start_s or self._now_s is None or end_s > self._now_s:
            raise ValueError(f"expected an interval that was simulated and kept, found {start_s} s to {end_s} s")
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

    def _piece(self, until_s: float, drive: float) -> Piece:
        """Run along a straight line to another drive, and to the warmth that has come by then."""
        assert self._now_s is not None  # set by work()
        start_s, from_mw = self._now_s, self.rails_mw
        duration_s = until_s - start_s
        mean_drive = (self._drive + drive) / 2
        kept = math.exp(-duration_s / self._physics.warming_tau_s)
        self._warmth = mean_drive + (self._warmth - mean_drive) * kept
        self._drive = drive
        self._now_s = until_s
        return Piece(start_s, duration_s, from_mw, self.rails_mw)


_LEAKAGE_PER_C = (0.002, 0.005)
_SPECIMEN = (0.95, 1.05)
