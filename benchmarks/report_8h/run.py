"""The report of an eight-hour run: 288,000 power samples, one each 100 ms.

python -m benchmarks.report_8h.run
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.machine import Watch
from benchmarks.common.measure import arguments, tell
from benchmarks.common.rows import Results, Row, command, finish
from benchmarks.report_8h.made_run import write_run

SAMPLES = 288_000
MOST_S, MOST_MB = 20.0, 400.0
ABOUT = "profile report on a run of one simulated Orin Nano, in a process of its own"


def measure(samples: int) -> tuple[Row, ...]:
    """Make the run, then its report; the bounds hold for :data:`SAMPLES`."""
    with tempfile.TemporaryDirectory(prefix="devit-") as place:
        folder = Path(place) / "run"
        tell("report_8h: the run is made")
        write_run(folder, samples)
        tell("report_8h: its report is made")
        wall_s, cpu_s, peak_mb = _report(folder)
    tell("report_8h: done\n")
    is_whole = samples >= SAMPLES
    wanted_s, wanted_mb = (f"<= {MOST_S:g} s", f"<= {MOST_MB:g} MB") if is_whole else ("", "")
    name = f"report of {samples:,} samples"
    return (
        _row(f"{name}, time", "s", wall_s, samples, wanted_s, wall_s <= MOST_S if is_whole else None),
        _row(f"{name}, CPU time", "s", cpu_s, samples),
        _row(f"{name}, peak of memory", "MB", peak_mb, samples, wanted_mb, peak_mb <= MOST_MB if is_whole else None),
    )


def _row(figure: str, unit: str, value: float, samples: int, wanted: str = "", holds: bool | None = None) -> Row:
    return Row(figure=figure, side="devit", unit=unit, p50=round(value, 2), samples=samples, wanted=wanted, holds=holds)


def _report(folder: Path) -> tuple[float, float, float]:
    """Give wall and CPU time in seconds, and the largest resident set in MB (10^6 bytes)."""
    code = "from devit_pipeline.entry import profile; profile()"
    start_s = time.perf_counter()
    output = os.open(os.devnull, os.O_WRONLY)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", code, "report", str(folder)],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, output, 1)],
    )
    os.close(output)
    _, status, used = os.wait4(pid, 0)
    wall_s = time.perf_counter() - start_s
    if status:
        raise SystemExit(f"profile report {folder} ended with status {status}: see above")
    return wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 0.0, "not used: the run's length is --samples")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="power samples of the run (default: %(default)s)")
    chosen = parser.parse_args(argv)
    watch = Watch()
    rows = measure(chosen.samples)
    results = Results(
        benchmark="report_8h",
        about=ABOUT,
        command=command(),
        settings={"samples": chosen.samples, "interval ms": 100},
        versions={},
        machine=watch.machine(),
        rows=rows,
    )
    finish(results, chosen)


if __name__ == "__main__":
    main()
