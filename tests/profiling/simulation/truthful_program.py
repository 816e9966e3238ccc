"""``simulated-tegrastats`` that also writes the board's true energy: arguments BOARD, FILE.csv, PID, interval in ms."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.profiling.simulation.reference_board import ReferenceBoard

from devit_profiling.sensor.board_table import BOARDS, Board
from devit_profiling.simulator.program import period_s, print_lines


class TruthfulBoard(ReferenceBoard):
    """Writes a row with every line: the moment, and the true energy since the start."""

    def __init__(self, board: Board, path: Path, started_s: float) -> None:
        super().__init__(board)
        self._file = path.open("w", encoding="ascii", buffering=1)
        self._started_s = started_s
        self._energy_j, self._last_s = 0.0, 0.0
        self._file.write("monotonic_ns,energy_j\n")

    def line(self, time_s: float, load: float) -> str:
        text = super().line(time_s, load)
        if self._last_s > 0:
            self._energy_j += self.true_j(self._last_s, time_s)
        self._last_s = time_s
        self._file.write(f"{round((self._started_s + time_s) * 1e9)},{self._energy_j:.9f}\n")
        return text


def main() -> None:
    key, path, pid, _, interval_ms = sys.argv[1:]  # a sampler appends --interval
    started_s = time.monotonic()
    print_lines(TruthfulBoard(BOARDS[key], Path(path), started_s), period_s(int(interval_ms), 0), int(pid), started_s)
