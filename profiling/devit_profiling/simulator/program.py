"""A program that prints what ``tegrastats`` would, for machines that are no Jetson; every line says SIMULATED.

Its GPU is as busy as the process that it watches keeps one CPU core, so power follows work.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from devit_profiling.sensor.board_table import BOARDS, ORIN_NANO
from devit_profiling.simulator.board import SIMULATED_BOARDS, Cadence, SimulatedBoard
from devit_profiling.simulator.power import Physics
from devit_profiling.simulator.sensor import RIPPLE_STEPS, SENSORS


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
    board = _board(options)
    meter = CpuMeter(os.getppid() if options.watch_pid is None else options.watch_pid)
    meter.share(0.0)
    cadence = Cadence(options.interval, seed=options.seed, pauses_per_min=options.pauses)
    due_s = cadence.period_s
    truth = _Truth(options.truth, board, started_s) if options.truth is not None else None
    while not _reader_left(until_s=started_s + due_s):
        now_s = time.monotonic() - started_s
        load = meter.share(now_s)
        if load is None:
            break
        sys.stdout.write(board.line(now_s, load) + "\n")
        sys.stdout.flush()
        if truth is not None:
            truth.tell(now_s)
        due_s = max(due_s + cadence.gap_s(), now_s)  # lines that are missed are not made up for
    return 0


class _Truth:
    """Tells the board's true energy, for who measures the measuring: a line for every line."""

    def __init__(self, path: Path, board: SimulatedBoard, started_s: float) -> None:
        self._file = path.open("w", encoding="ascii", buffering=1)
        self._board = board
        self._started_s = started_s
        self._energy_j, self._last_s = 0.0, 0.0
        self._file.write("monotonic_ns,energy_j\n")

    def tell(self, now_s: float) -> None:
        """Write the moment and the energy since the start; in between the power is constant or a ramp."""
        if self._last_s > 0:
            self._energy_j += self._board.true_j(self._last_s, now_s)
        self._last_s = now_s
        self._file.write(f"{round((self._started_s + now_s) * 1e9)},{self._energy_j:.9f}\n")


@dataclass(frozen=True)
class _Ticks:
    used_ticks: int
    started_ticks: int


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _board(options: argparse.Namespace) -> SimulatedBoard:
    return SimulatedBoard(
        BOARDS[options.board],
        seed=options.seed,
        sensor=options.sensor,
        ripple_steps=options.ripple,
        physics=Physics.drawn(options.seed, ramp_s=options.ramp),
        keeps_history=options.truth is not None,
        started=datetime.now(),
    )


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
        help="nominal period in milliseconds; lines come 0 to 9 %% slower, as on a Jetson (default: %(default)s)",
    )
    parser.add_argument(
        "--watch-pid",
        type=_positive,
        metavar="PID",
        help="process whose CPU time is the GPU's load and whose end is the end (default: the parent process)",
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FILE",
        help="CSV file to write the true energy since the first line to",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all that is drawn (default: 0)")
    parser.add_argument(
        "--sensor",
        choices=sorted(SENSORS),
        default="lag",
        help="lag: a first-order lag; average: drawn averaging, gain and offset (default: %(default)s)",
    )
    for name, unit, default, text in (
        ("--ripple", "STEPS", RIPPLE_STEPS, "root mean square of the ripple, in steps of the converter"),
        ("--ramp", "S", 0.0, "seconds in which clocks rise from idle to full load"),
        ("--pauses", "N", 0.0, "pauses of up to 3 s, a minute"),
    ):
        parser.add_argument(name, type=_amount, default=default, metavar=unit, help=f"{text} (default: %(default)s)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


def _amount(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected 0 or more, found {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
