"""Every benchmark that gives rows: all in full, or all in a minute to see that none is broken.

python -m benchmarks.all            # writes benchmarks/results/, then RESULTS.md, results.json and plots/
python -m benchmarks.all --smoke    # writes nothing here
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from benchmarks.common.rows import RESULTS, Results

ROOT = Path(__file__).parents[1]
LIMIT_S = 4 * 3600.0
SMOKE_LIMIT_S = 300.0


@dataclass(frozen=True)
class Benchmark:
    """One run of a module, which saves ``NAME.json``."""

    name: str
    module: str
    full: tuple[str, ...] = ()
    smoke: tuple[str, ...] | None = ("--duration", "0.1")
    """What makes it so short that its figures mean nothing; ``None`` where it cannot be, and tests run it."""

    def is_there(self) -> bool:
        """Whether this checkout has it."""
        return (ROOT / f"{self.module.replace('.', '/')}.py").is_file()


BENCHMARKS = (
    Benchmark(
        "peers",
        "benchmarks.peers.run",
        ("--all-peers",),
        ("--all-peers", "--models", "real", "--devices", "2", "--duration", "0.1"),
    ),
    Benchmark("links", "benchmarks.links.run", smoke=("--duration", "0.1", "--images", "20", "--links", "1")),
    Benchmark("loadgen", "benchmarks.loadgen.run", smoke=("--duration", "0.1", "--small")),
    Benchmark(
        "loadgen_accuracy",
        "benchmarks.loadgen.run",
        ("--mode", "accuracy"),
        ("--mode", "accuracy", "--scenario", "Offline", "--duration", "0.1", "--small"),
    ),
    Benchmark("headline", "benchmarks.headline.run", smoke=("--duration", "0.3", "--small", "--family", "DeDeiTs")),
    Benchmark("growth", "benchmarks.growth.run", smoke=("--devices", "4", "--duration", "0.2")),
    Benchmark("standby", "benchmarks.standby.run", smoke=("--duration", "0.1", "--rounds", "1")),
    Benchmark("footprint", "benchmarks.footprint.run", smoke=("--rounds", "1")),
    Benchmark("versions", "benchmarks.versions.run", smoke=("--duration", "0.1", "--cells", "null")),
    Benchmark("report_8h", "benchmarks.report_8h.run", smoke=("--samples", "6000")),
    Benchmark("paced", "benchmarks.network.paced", smoke=("--duration", "0.1", "--paces", "0.5")),
    Benchmark(
        "shares",
        "benchmarks.network.shares",
        smoke=("--duration", "0.1", "--cases", "paced", "files", "--in-flight", "50"),
    ),
    Benchmark("round_trip", "benchmarks.network.round_trip"),
    Benchmark(
        "round_trip_unpinned", "benchmarks.network.round_trip", ("--unpinned",), ("--unpinned", "--duration", "0.1")
    ),
    Benchmark("tiny", "benchmarks.network.tiny", smoke=None),
    Benchmark("throughput", "benchmarks.network.throughput", smoke=("--duration", "0.1", "--devices", "3")),
    Benchmark("fusion", "benchmarks.network.fusion", smoke=("--duration", "0.1", "--heads", "4x192x100")),
    Benchmark("int8", "benchmarks.engines.int8", smoke=("--duration", "0.1", "--small")),
    Benchmark("record", "benchmarks.record.run", smoke=("--duration", "0.2", "--frames", "200")),
    Benchmark("variants", "benchmarks.accuracy.variants", smoke=("--images", "100")),
    Benchmark("running", "benchmarks.certain.running", smoke=("--duration", "0.1", "--parts", "cpu")),
)


def run(benchmark: Benchmark, *, smoke: bool, folder: Path) -> str:
    """Run one, and say in one line what is wrong with it; empty if nothing is."""
    (folder / f"{benchmark.name}.json").unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        benchmark.module,
        *((benchmark.smoke or ()) if smoke else benchmark.full),
        "--save",
    ]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"DEVIT_BENCHMARK_RESULTS": str(folder)},
            timeout=SMOKE_LIMIT_S if smoke else LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {SMOKE_LIMIT_S if smoke else LIMIT_S:g} s"
    if done.returncode:
        return f"ended with exit code {done.returncode}"
    return fault(folder / f"{benchmark.name}.json")


def fault(path: Path) -> str:
    """Say in one line what is wrong with a file of results; empty if nothing is."""
    if not path.exists():
        return f"saved no {path.name}"
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.MsgspecError as err:
        return f"{path.name}: {err}"
    if not results.rows:
        return f"{path.name}: no rows"
    for row in results.rows:
        if not (math.isfinite(row.p50) and row.samples > 0):
            return f"{path.name}: {row.figure}, {row.side}: p50 {row.p50} of {row.samples} samples"
        if row.wanted and row.holds is None:
            return f"{path.name}: {row.figure}, {row.side}: wanted {row.wanted}, but does it hold?"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description="Run all benchmarks.")
    parser.add_argument("--smoke", action="store_true", help="see that they work, and keep no figures")
    names = [each.name for each in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="run these alone")
    chosen = parser.parse_args(argv)
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="devit-") as place:
        for each in BENCHMARKS:
            if each.name not in chosen.only or (chosen.smoke and each.smoke is None):
                continue
            if not each.is_there():
                _tell(f"{each.name}: not in this checkout")
                continue
            start_s = time.monotonic()
            found = run(each, smoke=chosen.smoke, folder=Path(place) if chosen.smoke else RESULTS)
            _tell(f"{each.name}: {found or 'done'} ({time.monotonic() - start_s:.0f} s)")
            faults += [f"{each.name}: {found}"] if found else []
    if not chosen.smoke:
        from benchmarks.results import write

        write()
    for line in faults:
        _tell(f"error: {line}")
    return 1 if faults else 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - a script's progress


if __name__ == "__main__":
    sys.exit(main())
