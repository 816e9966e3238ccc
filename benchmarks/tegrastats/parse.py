"""Lines of tegrastats read in a second, against the parser that jetson-stats ships.

python benchmarks/tegrastats/parse.py LOG... (default: the recordings of the tests)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from jtop.core.tegrastats import Tegrastats

from devit_profiling.sensor import tegrastats
from devit_profiling.sensor.tegrastats import parse_line

DATA = Path(__file__).parents[2] / "tests" / "data" / "tegrastats"
LOGS = ("orin_nano_l4t36_04_100ms_log.txt", "agx_orin_l4t36_02_log.txt", "orin_nano_l4t36_03_tensorrt_log.txt")
ROUNDS = 15


def measure(lines: Sequence[str], rounds: int) -> dict[str, object]:
    """Let both parsers read all lines in turns, A B A B; the first turn of each only warms up.

    CPU time of this process, so that other work on the machine counts as little as can be.
    """
    # jetson-stats reads lines in a method of its sampler, which is not started here. Any file passes for the program.
    theirs = Tegrastats(lambda stats: None, [sys.executable])._decode
    pairs = [(_us_per_line(parse_line, lines), _us_per_line(theirs, lines)) for _ in range(rounds + 1)][1:]
    ours_us, theirs_us = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    return {
        "lines": len(lines),
        "devit_us_per_line": round(ours_us, 1),
        "devit_lines_per_s": round(1e6 / ours_us),
        "jetson_stats_us_per_line": round(theirs_us, 1),
        "jetson_stats_lines_per_s": round(1e6 / theirs_us),
        "times_faster": round(statistics.median(ratios), 2),
        "times_faster_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    """Print a table, or the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="*", type=Path, default=[DATA / log for log in LOGS], metavar="LOG")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each parser (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    load_before = os.getloadavg()
    figures = {}
    for log in options.logs:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines(keepends=True) if parse_line(line)]
        figures[log.name] = measure(lines, options.rounds)
    machine = {
        "cpu": _cpu_name(),
        "python": platform.python_version(),
        "jetson-stats": version("jetson-stats"),
        "rounds": options.rounds,
        "load_before": load_before,
        "load_after": os.getloadavg(),
    }
    if options.json:
        print(json.dumps({"machine": machine, "logs": figures}, indent=2))  # noqa: T201 - this is the output
        return
    for name, figure in figures.items():
        print(name, json.dumps(figure))  # noqa: T201 - as above
    print(json.dumps(machine))  # noqa: T201 - as above


def _us_per_line(parse: Callable[[str], object], lines: Sequence[str]) -> float:
    """Read all lines once, with nothing remembered from the turn before."""
    for function in vars(tegrastats).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    start_s = time.process_time()
    for line in lines:
        parse(line)
    return (time.process_time() - start_s) / len(lines) * 1e6


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
