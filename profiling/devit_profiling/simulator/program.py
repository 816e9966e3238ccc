"""``simulated-tegrastats``: prints lines of a simulated ``tegrastats``, each with the word SIMULATED.

Its GPU is as busy as the process that it watches keeps one CPU core, so power follows work.
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
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from devit_profiling.sensor.board_table import BOARDS, ORIN_NANO
from devit_profiling.simulator.board import SIMULATED_BOARDS, SimulatedBoard
from devit_profiling.simulator.over_current import SimulatedCounters

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CpuLoad:
    """How busy a process keeps the CPU, read from ``/proc/PID/stat``."""

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        """Watch the process that has this id now; ``root`` holds ``proc``."""
        self._stat = root / "proc" / str(pid) / "stat"
        self._last = self._read()
        self._last_s: float | None = None

    def share(self, time_s: float) -> float | None:
        """Give the CPU time used since the last call in seconds per second: 1.0 is one core.

        Returns:
            0.0 on the first call; ``None`` once the process has ended.
        """
        now = self._read()
        if now is None or self._last is None or now[1] != self._last[1]:
            return None
        used_ticks = now[0] - self._last[0]
        elapsed_s = 0.0 if self._last_s is None else time_s - self._last_s
        self._last, self._last_s = now, time_s
        return used_ticks / _TICKS_PER_S / elapsed_s if elapsed_s > 0 else 0.0

    def _read(self) -> tuple[int, int] | None:
        """Read the ticks that it has used, and those at its start; ``None`` for a process that is gone or a zombie."""
        try:
            content = self._stat.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # proc(5): the name, field 2, may hold blanks and brackets; field 3 is the state.
        fields = content[content.rindex(")") + 1 :].split()
        if fields[0] in "ZX":
            return None
        return int(fields[11]) + int(fields[12]), int(fields[19])


def main(argv: Sequence[str] | None = None) -> int:
    """Print lines until the watched process ends or the reader closes."""
    options = _parser().parse_args(argv)
    # A signal or a closed pipe ends this program as usual: no traceback, no message.
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    board = SimulatedBoard(BOARDS[options.board], seed=options.seed, started=datetime.now())
    watch_pid = os.getppid() if options.watch_pid is None else options.watch_pid
    counters = SimulatedCounters(options.root, options.over_current) if options.root is not None else None
    print_lines(board, period_s(options.interval, options.seed), watch_pid, time.monotonic(), counters)
    return 0


def print_lines(
    board: SimulatedBoard,
    interval_s: float,
    watch_pid: int,
    started_s: float,
    counters: SimulatedCounters | None = None,
) -> None:
    """Print a line every interval, as busy as the watched process is, from ``started_s`` on the monotonic clock."""
    cpu = CpuLoad(watch_pid)
    cpu.share(0.0)
    due_s, last_s = interval_s, 0.0
    while not _reader_left(until_s=started_s + due_s):
        now_s = time.monotonic() - started_s
        load = cpu.share(now_s)
        if load is None:
            return
        if counters is not None:
            counters.work(now_s - last_s, load)
        last_s = now_s
        sys.stdout.write(board.line(now_s, load) + "\n")
        sys.stdout.flush()
        due_s = max(due_s + interval_s, now_s)  # lines that are missed are not made up for


def period_s(interval_ms: float, seed: int) -> float:
    """Draw the period of one process of tegrastats: 1.00 to 1.09 times the interval, as recorded."""
    return interval_ms / 1000 * random.Random(f"cadence {seed}").uniform(1.0, 1.09)


def _reader_left(until_s: float) -> bool:
    """Wait until the monotonic clock shows ``until_s``; true at once if the reader of the output closes it."""
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always reported
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
        "--root",
        type=Path,
        metavar="DIR",
        help="where sys is written with counters of over-current events (default: nowhere)",
    )
    parser.add_argument(
        "--over-current",
        type=float,
        default=0.9,
        metavar="LOAD",
        help="least load of the GPU, 0 to 1, that causes over-current events (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all that is drawn (default: 0)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
