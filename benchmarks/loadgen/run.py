"""MLPerf LoadGen drives the shipped cell through our client: LoadGen-driven, unofficial.

python -m benchmarks.loadgen.run [--scenario NAME ...] [--mode performance|accuracy] [--logs FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
from benchmarks.common.machine import Watch
from benchmarks.common.measure import arguments
from benchmarks.common.rows import Results, Row, finish
from benchmarks.loadgen.logs import read_answers, read_performance
from benchmarks.loadgen.one_test import Done, Mode, Scenario, Task, require_loadgen, run
from benchmarks.loadgen.test_set import BUNDLE, FOLDER, TestSet, first_thousand, whole

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Policy
from devit_contract.errors import DevitError, InputError
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_pipeline.local_cell import LocalCell, LocalDevice

ABOUT = "MLPerf LoadGen drives the shipped cell through our client: LoadGen-driven, unofficial"
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
DEVICES, CLASSES, DEADLINE_MS = 4, 10, 5000.0
NAMES = {
    "SingleStream": "one sample at a time",
    "MultiStream": "eight samples a query",
    "Offline": "all at once",
    "Server": "Poisson",
}


def measure(
    cell: LocalCell, tests: TestSet, chosen: argparse.Namespace, logs: Path
) -> tuple[list[Row], dict[str, str | float]]:
    """Run each scenario that is chosen, one after the other on the same cell."""
    rows: list[Row] = []
    settings: dict[str, str | float] = {}
    for scenario in chosen.scenario:
        folder = logs / f"{scenario}-{chosen.mode}"
        folder.mkdir(parents=True, exist_ok=True)
        task = Task(
            scenario=scenario,
            mode=chosen.mode,
            duration_s=chosen.duration,
            policy=chosen.policy,
            in_flight=chosen.in_flight,
            offered_per_s=chosen.rate,
            bound_ms=chosen.bound_ms,
            timeout_s=chosen.timeout,
            folder=folder,
            endpoint=cell.fleet.node.client_endpoint,
            keys=cell.client_keys,
            node_key=cell.fleet.node.public_key.encode(),
            images=tests.images,
        )
        done = run(task)
        settings[f"{scenario}: answers"] = ", ".join(
            f"{count:,} {state}" for state, count in sorted(done.states.items())
        )
        if chosen.mode == "accuracy":
            rows += _accuracy(scenario, folder, tests, done, chosen.policy)
        else:
            found, verdict = _performance(scenario, folder, done)
            rows += found
            settings[f"{scenario}: LoadGen says"] = verdict
        if scenario == "Server":
            settings["Server: offered, 1/s"] = round(done.offered_per_s, 1)
    return rows, settings


def _performance(scenario: Scenario, folder: Path, done: Done) -> tuple[list[Row], str]:
    found = read_performance(folder)
    _check_counts(folder, {"issued": done.issued, "answered": done.answered, "in LoadGen's log": found.samples})
    figure = f"LoadGen {scenario} ({NAMES[scenario]})"
    rate = Row(figure=f"{figure}, samples", side="devit", unit="1/s", p50=found.rate, samples=found.samples)
    if scenario == "Offline":  # latencies of samples that wait for all others say nothing
        return [rate], found.verdict
    latency = Row(
        figure=f"{figure}, latency", side="devit", unit="us", p50=found.p50_us, p99=found.p99_us, samples=found.queries
    )
    tail = Row(figure=f"{figure}, latency p90", side="devit", unit="us", p50=found.p90_us, samples=found.queries)
    return [latency, tail, rate], found.verdict


def _accuracy(scenario: Scenario, folder: Path, tests: TestSet, done: Done, policy: Policy) -> list[Row]:
    answers = read_answers(folder, len(tests.labels), CLASSES)
    _check_counts(folder, {"issued": done.issued, "answered": done.answered, "of the test set": len(tests.labels)})
    right = answers.argmax(axis=1) == tests.labels
    known = 100 * float(np.mean(tests.known))
    found = 100 * float(np.mean(right))
    is_held = policy == "all"  # what is known is the answer of all devices
    return [
        Row(
            figure=f"LoadGen {scenario}, accuracy of {len(right):,} test images",
            side="devit",
            unit="%",
            p50=found,
            samples=len(right),
            ratio=found / known,
            against="when trained",
            wanted=f"{known:.2f} %" if is_held else "",
            holds=round(found, 2) == round(known, 2) if is_held else None,
        )
    ]


def _check_counts(folder: Path, counts: dict[str, int]) -> None:
    if len(set(counts.values())) != 1:
        text = ", ".join(f"{count} {what}" for what, count in counts.items())
        raise InputError(f"{folder}: expected one number of samples, found {text}: run it again")


def results(chosen: argparse.Namespace, words: Sequence[str]) -> Results:
    """Bring the cell up, and have LoadGen measure it; ``words`` are the command line's.

    Raises:
        DevitError: LoadGen or the test set is missing, the cell did not start, or a sample was not answered.
    """
    require_loadgen()
    watch = Watch()
    tests = first_thousand() if chosen.small else whole(chosen.data)
    build_engines(Bundle(BUNDLE), Store(None), backend="ort")
    devices = [LocalDevice(f"device{index}", index) for index in range(DEVICES)]
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="devit-")))
        cell = stack.enter_context(LocalCell(BUNDLE, place / "cell", devices, deadline_ms=DEADLINE_MS))
        rows, settings = measure(cell, tests, chosen, chosen.logs or place / "logs")
    return Results(
        benchmark="loadgen" if chosen.mode == "performance" else "loadgen_accuracy",
        about=ABOUT,
        command=" ".join(["python -m benchmarks.loadgen.run", *words]),
        settings={
            "policy": chosen.policy,
            "images": len(tests.labels),
            "in flight at most": chosen.in_flight,
            "seconds a scenario": chosen.duration,
            "Server: latency bound, ms": chosen.bound_ms,
            **settings,
        },
        versions={"mlcommons-loadgen": version("mlcommons-loadgen")},
        machine=watch.machine(),
        rows=tuple(rows),
    )


def main(given: Sequence[str] | None = None) -> None:
    """Run as a script."""
    parser = arguments(ABOUT, 60.0, "the least that each scenario takes; LoadGen's rules ask for 600")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="what to run")
    parser.add_argument("--mode", choices=get_args(Mode), default="performance", help="what to find out")
    parser.add_argument("--policy", choices=("all", "certain"), default="all", help="which devices are asked")
    parser.add_argument("--in-flight", type=int, default=16, metavar="N", help="requests that the cell has at most")
    parser.add_argument("--rate", type=float, default=0.0, metavar="HZ", help="of Server; half the saturated one if 0")
    parser.add_argument("--bound-ms", type=float, default=15.0, metavar="MS", help="for 99 %% of Server's answers")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for one answer")
    parser.add_argument("--data", type=Path, default=FOLDER, help="the test set")
    parser.add_argument("--small", action="store_true", help="take the 1,000 test images that come with the package")
    parser.add_argument("--logs", type=Path, help="where LoadGen's logs are kept")
    words = sys.argv[1:] if given is None else given
    chosen = parser.parse_args(words)
    try:
        found = results(chosen, words)
    except DevitError as err:
        raise SystemExit(f"error: {err}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finish(found, chosen)


if __name__ == "__main__":
    main()
