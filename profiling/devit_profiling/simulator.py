"""A program that prints what ``tegrastats`` would, for machines that are no Jetson; every line says SIMULATED.

Its GPU is as busy as the process that it watches keeps one CPU core, so power follows work. The figures are those of
measured boards (``simulated_boards.py``), the sensor lags and steps as theirs does; they are not a measurement of
anything.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from devit_profiling.board_table import AGX_ORIN, BOARDS, ORIN_NANO, Board
from devit_profiling.simulated_boards import POWER
from devit_profiling.tegrastats import SIMULATED


class SimulatedBoard:
    """A board at work in the caller's time: the same seed and calls give the same lines."""

    def __init__(self, board: Board, *, seed: int = 0, started: datetime = datetime(2026, 1, 1)) -> None:
        """Let the board idle.

        Args:
            board: Whose rails, steps and lag to use; one of ``SIMULATED_BOARDS``.
            seed: Of the noise.
            started: Local date and time at ``time_s`` 0, for the stamps.
        """
        self._board = board
        self._power = POWER[board.key]
        self._shape = _SHAPES[board.key]
        self._random = random.Random(seed)
        self._started = started
        self._power_mw = {rail: float(power) for rail, power in self._power.idle_mw.items()}
        self._warmth = 0.0
        self._last_s: float | None = None
        self._lines = 0
        self._sum_mw = dict.fromkeys(self._power.idle_mw, 0)

    def line(self, time_s: float, load: float) -> str:
        """Give the line at ``time_s`` on the caller's clock, without a line end.

        Args:
            time_s: Now, not before that of the last call. The first call shows the idle board.
            load: Share of the GPU in use since the last call, 0 to 1; more counts as 1.
        """
        load = min(max(load, 0.0), 1.0)
        elapsed_s = 0.0 if self._last_s is None else time_s - self._last_s
        self._last_s = time_s
        self._pass(elapsed_s, load)
        rails_mw = {rail: self._reading_mw(rail) for rail in self._power_mw}
        self._lines += 1
        for rail, power_mw in rails_mw.items():
            self._sum_mw[rail] += power_mw
        # The mark follows the stamp, so that a line that is cut off keeps it.
        return (
            f"{self._started + timedelta(seconds=time_s):%m-%d-%Y %H:%M:%S} {SIMULATED} "
            f"RAM {self._shape.ram_mb} SWAP {self._shape.swap_mb} (cached 0MB) CPU [{self._cores(load)}] "
            f"GR3D_FREQ {round(100 * load)}% {self._zones()} {self._rails(rails_mw)}"
        )

    def _pass(self, elapsed_s: float, load: float) -> None:
        """Move power and warmth towards where the load drives them, as first-order lags do."""
        kept = math.exp(-elapsed_s / self._board.tau_s)
        for rail, power_mw in self._power_mw.items():
            idle_mw = self._power.idle_mw[rail]
            target_mw = idle_mw + load * (self._power.load_mw[rail] - idle_mw)
            self._power_mw[rail] = target_mw + (power_mw - target_mw) * kept
        self._warmth = load + (self._warmth - load) * math.exp(-elapsed_s / _WARMING_TAU_S)

    def _reading_mw(self, rail: str) -> int:
        step_mw = self._board.code_step_mw[rail]
        power_mw = self._power_mw[rail] * (1 + self._random.gauss(0.0, _NOISE))
        return round(power_mw / step_mw) * step_mw

    def _cores(self, load: float) -> str:
        busy = f"{round(100 * load)}%@{self._shape.busy_mhz if load > _IDLE_LOAD else self._shape.idle_mhz}"
        return ",".join([busy] + [f"0%@{self._shape.idle_mhz}"] * (self._shape.cores - 1))

    def _zones(self) -> str:
        rise_c = _RISE_C * self._warmth
        return " ".join(f"{zone}@{round(8 * (idle_c + rise_c)) / 8:g}C" for zone, idle_c in self._shape.idle_c.items())

    def _rails(self, rails_mw: Mapping[str, int]) -> str:
        """Print instant and average; the second is the mean since the start, as in tegrastats."""
        return " ".join(f"{rail} {mw}mW/{self._sum_mw[rail] // self._lines}mW" for rail, mw in rails_mw.items())


class CpuMeter:
    """How busy a process keeps the CPU, read from ``/proc/PID/stat``."""

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        """Watch the process that has this id now; ``root`` holds ``proc``."""
        self._stat = root / "proc" / str(pid) / "stat"
        self._first = self._last = self._read()
        self._last_s: float | None = None

    def share(self, time_s: float) -> float | None:
        """Give the CPU time used since the last call in seconds per second: 1.0 is one core.

        Returns:
            0.0 on the first call; ``None`` once the process has ended.
        """
        now = self._read()
        if now is None or self._first is None or now.started_ticks != self._first.started_ticks:
            return None
        used_ticks = now.used_ticks - (self._last.used_ticks if self._last is not None else 0)
        elapsed_s = 0.0 if self._last_s is None else time_s - self._last_s
        self._last, self._last_s = now, time_s
        return used_ticks / _TICKS_PER_S / elapsed_s if elapsed_s > 0 else 0.0

    def _read(self) -> _Ticks | None:
        """Read the counters; ``None`` for a process that is gone, or dead and not yet buried."""
        try:
            content = self._stat.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # proc(5): the name, field 2, may hold blanks and brackets; field 3 is the state.
        fields = content[content.rindex(")") + 1 :].split()
        if fields[0] in "ZX":
            return None
        return _Ticks(used_ticks=int(fields[11]) + int(fields[12]), started_ticks=int(fields[19]))


def main(argv: Sequence[str] | None = None) -> int:
    """Print lines until the watched process ends or nobody reads them."""
    options = _parser().parse_args(argv)
    # An end by signal or by a closed pipe is this program's ordinary end: no traceback, no message.
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    started_s = time.monotonic()
    board = SimulatedBoard(BOARDS[options.board], seed=options.seed, started=datetime.now())
    meter = CpuMeter(os.getppid() if options.watch_pid is None else options.watch_pid)
    meter.share(0.0)
    period_s = options.interval * _PERIOD_FACTOR / 1000
    due_s = period_s
    while not _reader_left(until_s=started_s + due_s):
        now_s = time.monotonic() - started_s
        load = meter.share(now_s)
        if load is None:
            break
        sys.stdout.write(board.line(now_s, load) + "\n")
        sys.stdout.flush()
        due_s = max(due_s + period_s, now_s)  # lines that are missed are not made up for
    return 0


@dataclass(frozen=True)
class _Ticks:
    used_ticks: int
    started_ticks: int


@dataclass(frozen=True)
class _Shape:
    """What stands in a board's lines beside its rails."""

    ram_mb: str
    swap_mb: str
    cores: int
    idle_mhz: int
    busy_mhz: int
    idle_c: Mapping[str, float]


# Lines without root of L4T 36, as in the recordings orin_nano_l4t36_01_idle_log and agx_orin_l4t36_03.
_SHAPES = {
    ORIN_NANO.key: _Shape(
        ram_mb="1697/7620MB (lfb 42x4MB)",
        swap_mb="0/3810MB",
        cores=6,
        idle_mhz=729,
        busy_mhz=1344,
        idle_c={"cpu": 40.25, "soc2": 39.125, "soc0": 40.375, "gpu": 40.875, "tj": 41.0, "soc1": 41.0},
    ),
    AGX_ORIN.key: _Shape(
        ram_mb="6879/62841MB (lfb 3x4MB)",
        swap_mb="0/31421MB",
        cores=12,
        idle_mhz=729,
        busy_mhz=2201,
        idle_c={"cpu": 47.625, "soc2": 44.25, "soc0": 45.75, "gpu": 43.25, "tj": 47.625, "soc1": 45.125},
    ),
}

SIMULATED_BOARDS = tuple(_SHAPES)
"""Keys of the boards whose lines can be simulated."""

_PERIOD_FACTOR = 1.06  # recorded periods are 1.00 to 1.09 times the interval that was asked for
_NOISE = 0.003
_RISE_C = 12.0  # recorded rises under load are 5 to 15 C over minutes
_WARMING_TAU_S = 90.0
_IDLE_LOAD = 0.02
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _reader_left(until_s: float) -> bool:
    """Wait until the monotonic clock shows ``until_s``; true at once if the reader of the output closes it."""
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always told
    while (left_s := until_s - time.monotonic()) > 0:
        if poller.poll(math.ceil(left_s * 1000)):
            return True
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simulated-tegrastats", description="Print lines of a simulated tegrastats, marked SIMULATED."
    )
    parser.add_argument(
        "--board",
        choices=sorted(SIMULATED_BOARDS),
        default=ORIN_NANO.key,
        help="board to simulate (default: %(default)s)",
    )
    parser.add_argument(
        "--interval",
        type=_positive,
        default=1000,
        metavar="MS",
        help="nominal period in milliseconds; lines come 6 %% slower, as on a Jetson (default: %(default)s)",
    )
    parser.add_argument(
        "--watch-pid",
        type=_positive,
        metavar="PID",
        help="process whose CPU time is the GPU's load and whose end is the end (default: the parent process)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: %(default)s)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
