"""Whether the mode that ``devit plan`` picks keeps its goal on a running cell, and is ever worse than single.

python benchmarks/certain/plan_for_real.py

Agents run the shipped submodels, slowed down to the paces of goals.toml; images, features, node and network are real.
Each cell is measured by ``profile``. Each goal gets a plan, and requests at random times at its rate: of the mode that
was picked, with as many devices killed as the goal wants survived, and of ``single``. Watts are SIMULATED: those of
goals.toml by the inferences that were counted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from devit_contract.arrays import Int64Array, UInt8Array
from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DevitError, InputError
from devit_contract.service.progress import no_progress
from devit_contract.wire.answer import Answer
from devit_contract.wire.client import Client
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_pipeline.demo import SHIPPED, test_images
from devit_pipeline.local_cell import LocalCell, LocalDevice
from devit_profiling.load.cell_run import measure_cell
from devit_profiling.plan.cell import Cell, cell_of
from devit_profiling.plan.choice import Choice, choose
from devit_profiling.plan.cli import CALIBRATION_FILE
from devit_profiling.plan.device_profile import DeviceProfile, read_profiles
from devit_profiling.plan.figures import Bench, Figures, Promise, remaining_after
from devit_profiling.plan.goal import Goal, parse_goal
from devit_profiling.plan.modes import Mode, preference
from devit_profiling.plan.written import write_fleet
from devit_profiling.record.record import Plan

GOALS = Path(__file__).parent / "goals.toml"
_PROFILE = Plan(
    has_power=False, settle_s=0.0, idle_s=0.01, has_idle_after=False, warm_up_s=1.0, duration_s=6.0, windows=1
)
_READY_S = 20.0
_DEADLINE_MS = 4000.0
"""Of the node: no frame ends before its devices have answered."""
_ANSWERED = 0.99
"""Share of the requests that a mode has to answer to keep the rate."""


class FleetEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Devices of a pace, and their SIMULATED power."""

    paces_ms: tuple[float, ...]
    idle_w: float
    above_idle_j: float


class GoalEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A goal of a fleet."""

    fleet: str
    goal: str


class Goals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """goals.toml."""

    fleet: dict[str, FleetEntry]
    goal: tuple[GoalEntry, ...]


class Measured(msgspec.Struct, frozen=True):
    """Requests of one mode at a goal's rate."""

    requests: int
    answered: int
    p50_ms: float
    p99_ms: float
    """Infinite where more than 1 % of the requests were not answered."""
    p99_low_ms: float
    """Lower end of its 95 % interval, by order statistics."""
    accuracy: float
    accuracy_error: float
    """Half of its 95 % interval."""
    devices_asked: float
    watts: float
    """SIMULATED."""
    misses: tuple[str, ...]


class Row(msgspec.Struct, frozen=True):
    """One goal."""

    fleet: str
    goal: str
    picked: str
    expected_p99_ms: float | None
    expected_accuracy: float | None
    runs: tuple[Measured, ...] = ()
    """With all devices, and without those that it needs most."""
    single: Measured | None = None
    is_kept: bool | None = None
    """Absent where this node cannot run the mode."""
    is_worse_than_single: bool | None = None
    """With all devices, as ``single`` was measured."""
    why: str = ""


def main() -> None:
    """Run as a script."""
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # children inherit this
    parser = argparse.ArgumentParser(description="Check that the modes that devit plan picks keep their goals.")
    parser.add_argument("--bundle", type=Path, default=SHIPPED / "bundle", help="bundle folder (default: the shipped)")
    parser.add_argument("--calibration", type=Path, help=f"calibration (default: the bundle's {CALIBRATION_FILE})")
    parser.add_argument("--goals", type=Path, default=GOALS, help="goals (default: goals.toml beside this file)")
    parser.add_argument("--requests", type=int, default=400, help="of each run (default: 400)")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    chosen = parser.parse_args()
    goals = msgspec.toml.decode(chosen.goals.read_bytes(), type=Goals)
    path = chosen.calibration or chosen.bundle / CALIBRATION_FILE
    calibration = Calibration.load(path, devices=4) if path.exists() else None
    rows = [
        row for name in goals.fleet for row in _fleet_rows(chosen.bundle, calibration, goals, name, chosen.requests)
    ]
    if chosen.json:
        load = os.getloadavg()
        _say(msgspec.json.format(msgspec.json.encode({"load_after": load, "goals": rows}), indent=2).decode())
    else:
        _show(rows)
    sys.exit(any(row.is_kept is False or row.is_worse_than_single for row in rows))


def _fleet_rows(bundle: Path, calibration: Calibration | None, goals: Goals, name: str, requests: int) -> Iterator[Row]:
    entry, opened = goals.fleet[name], Bundle(bundle)
    pictures, labels = test_images(opened)
    devices = [LocalDevice(f"dev{i}", i, engine=f"built:{pace:g}") for i, pace in enumerate(entry.paces_ms)]
    with tempfile.TemporaryDirectory(prefix="devit-") as place:
        store = Path(place) / "store"
        build_engines(opened, Store(store))
        with LocalCell(bundle, Path(place) / "cell", devices, store=store, deadline_ms=_DEADLINE_MS) as cell:
            with cell.client() as client:
                names = [device.name for device in devices]
                folder = measure_cell(
                    client, cell.fleet, names, _cycled(pictures), _PROFILE, Path(place) / "runs", no_progress
                )
            profiles = [_with_power(profile, entry) for profile in read_profiles(folder)]
            planned = cell_of(cell.fleet, opened.manifest, calibration, profiles)
            real = RealCell(cell, planned, pictures, labels, requests)
            for goal in (each.goal for each in goals.goal if each.fleet == name):
                _tell(f"{name}: {goal}")
                yield _row(name, real, Bench(planned), parse_goal(goal, _DEADLINE_MS))


def _cycled(pictures: UInt8Array) -> Iterator[UInt8Array]:
    while True:
        yield from pictures


def _with_power(profile: DeviceProfile, entry: FleetEntry) -> DeviceProfile:
    return msgspec.structs.replace(profile, idle_w=entry.idle_w, above_idle_j=entry.above_idle_j, not_measured="")


class RealCell:
    """A running cell whose node changes its mode."""

    def __init__(self, cell: LocalCell, planned: Cell, pictures: UInt8Array, labels: Int64Array, requests: int) -> None:
        """Take a cell that has started."""
        self.planned = planned
        self._cell, self._pictures, self._labels, self._requests = cell, pictures, labels, requests

    def can_run(self, figures: Figures) -> bool:
        """Tell whether this node has the mode."""
        has_modes = "certain" in Fleet.__struct_fields__
        return has_modes or (figures.policy == "all" and not figures.early_release)

    def measure(self, goal: Goal, *, figures: Figures | None, lost: Sequence[int] = ()) -> Measured:
        """Send requests to a mode, or, without one, to the single device that is best."""
        if figures is not None and figures.policy != "all":
            write_fleet(self._cell.fleet_path, self._cell.fleet_path, figures, Promise(), _DEADLINE_MS)
            self._cell.kill("node")
            self._cell.start_node()
        count = len(self.planned.devices)
        with self._cell.client() as client:
            self._wait_ready(client, count)  # so that the node does not wait for those that never came
        with self._without(lost), self._cell.client() as client:
            self._wait_ready(client, count - len(lost))
            mask = 0
            if figures is None:
                mask = 1 << preference(self.planned, "best", range(count))[0]
            found = _asked(client, self._pictures, goal.rate_hz, self._requests, mask)
        is_single = figures is None or figures.policy == "single"
        return self._judged(found, goal, 1 + goal.survive if is_single else count - len(lost))

    @contextmanager
    def _without(self, lost: Sequence[int]) -> Iterator[None]:
        """Kill devices, and start them again."""
        names = [self.planned.devices[device].name for device in lost]
        for name in names:
            self._cell.kill(name)
        try:
            yield
        finally:
            self._cell.start_agents(names)

    def _wait_ready(self, client: Client, count: int) -> None:
        end_s = time.monotonic() + _READY_S
        while sum(device.state == "ready" for device in client.status().devices) != count:
            if time.monotonic() > end_s:
                raise InputError(f"the cell did not get {count} ready devices: run it again")
            client.wait(0.1)

    def _judged(self, found: Sequence[tuple[Answer | None, float]], goal: Goal, switched_on: int) -> Measured:
        labels = np.resize(self._labels, len(found))
        latencies_ms = np.sort([1e3 * latency_s for _, latency_s in found])
        answers = [(answer, label) for (answer, _), label in zip(found, labels, strict=True) if answer is not None]
        right = [answer.logits is not None and int(answer.logits.argmax()) == label for answer, label in answers]
        accuracy = float(np.mean(right))
        error = 1.96 * float(np.sqrt(max(accuracy * (1 - accuracy), 1e-4) / len(right)))
        asked = float(np.mean([getattr(answer, "devices_asked", answer.mask.bit_count()) for answer, _ in answers]))
        device = self.planned.devices[0]
        watts = switched_on * (device.idle_w or 0.0) + goal.rate_hz * asked * (device.above_idle_j or 0.0)
        # The rank of a quantile is binomial, here by its normal approximation.
        rank = 0.99 * len(found)
        low = max(0, int(rank - 1.96 * np.sqrt(rank * 0.01)))
        p99_ms = float(latencies_ms[min(int(np.ceil(rank)), len(found)) - 1])
        checks = {
            "rate": len(answers) < _ANSWERED * len(found),
            "deadline-ms": p99_ms > goal.deadline_ms,
            "watts": goal.watts is not None and watts > goal.watts,
            "accuracy": goal.accuracy is not None and 100 * (accuracy + error) < goal.accuracy,
        }
        return Measured(
            requests=len(found),
            answered=len(answers),
            p50_ms=round(float(np.median(latencies_ms)), 2),
            p99_ms=round(p99_ms, 2),
            p99_low_ms=round(float(latencies_ms[low]), 2),
            accuracy=round(accuracy, 4),
            accuracy_error=round(error, 4),
            devices_asked=round(asked, 3),
            watts=round(watts, 2),
            misses=tuple(key for key, is_missed in checks.items() if is_missed),
        )


def _asked(
    client: Client, pictures: UInt8Array, rate_hz: float, requests: int, mask: int
) -> list[tuple[Answer | None, float]]:
    """Ask at random times, fixed beforehand; give each answer, and its seconds from when it was due."""
    due_s = np.cumsum(np.random.default_rng(3).exponential(1.0 / rate_hz, requests)).tolist()
    found: list[tuple[Answer | None, float]] = [(None, float("inf"))] * requests
    numbers: dict[int, int] = {}
    start_s = time.monotonic()

    def collect(wait_s: float) -> None:
        for number, answer in client.collect(max(0.0, wait_s)):
            place = numbers.pop(number)
            if not isinstance(answer, DevitError) and answer.logits is not None:
                found[place] = answer, time.monotonic() - start_s - due_s[place]

    for place in range(requests):
        while (left_s := start_s + due_s[place] - time.monotonic()) > 0:
            collect(left_s - 0.001)
        numbers[client.submit(pictures[place % len(pictures)], mask=mask)] = place
        collect(0.0)
    end_s = time.monotonic() + client.timeout_s
    while numbers and time.monotonic() < end_s:
        collect(0.1)
    return found


def _row(name: str, real: RealCell, bench: Bench, goal: Goal) -> Row:
    try:
        choice = choose(bench, goal)
    except InputError as err:
        return Row(name, goal.text, "", None, None, is_kept=False, why=str(err))
    picked = choice.picked
    expected = (choice.picked.title, picked.p99_ms, picked.accuracy)
    if not real.can_run(picked):
        return Row(name, goal.text, *expected, why="this node has no such mode")
    runs = [real.measure(goal, figures=picked)]
    if goal.survive:
        runs.append(real.measure(goal, figures=picked, lost=_worst_loss(bench, choice, goal)))
    single = real.measure(goal, figures=None)
    is_kept = not any(run.misses for run in runs)
    # Both have the same images: the error of their difference is smaller than this.
    error = float(np.hypot(runs[0].accuracy_error, single.accuracy_error))
    is_less_accurate = goal.accuracy is None and runs[0].accuracy < single.accuracy - error
    is_worse = not single.misses and (bool(runs[0].misses) or is_less_accurate)
    return Row(name, goal.text, *expected, tuple(runs), single, is_kept, is_worse)


def _worst_loss(bench: Bench, choice: Choice, goal: Goal) -> list[int]:
    """Choose the devices without which the mode has the lowest saturated rate."""
    picked = choice.picked
    mode = Mode(picked.policy, picked.stages, picked.order, picked.early_release)
    everyone = range(len(bench.cell.devices))
    left = min(remaining_after(everyone, goal.survive), key=lambda present: bench.saturated(mode, present).per_second)
    return [device for device in everyone if device not in left]


def _show(rows: Sequence[Row]) -> None:
    for row in rows:
        _say(f"{row.fleet}: {row.goal}: {row.picked or row.why}")
        for title, run in zip(("all devices", "with losses"), row.runs, strict=False):
            _say(f"  {title:<12} {_text(run)}")
        if row.single is not None:
            _say(f"  {'single':<12} {_text(row.single)}")
        if row.picked:
            verdict = row.why or ("kept" if row.is_kept else "NOT KEPT")
            _say(f"  {verdict}{', WORSE than single' if row.is_worse_than_single else ''}")
    tried = [row for row in rows if row.is_kept is not None]
    _say(f"kept: {sum(bool(row.is_kept) for row in tried)} of {len(tried)}; load average {os.getloadavg()[0]:.1f}")


def _text(run: Measured) -> str:
    missed = f" misses {', '.join(run.misses)}" if run.misses else ""
    return (
        f"p50 {run.p50_ms:7.1f} ms  p99 {run.p99_ms:7.1f} ms  accuracy {100 * run.accuracy:5.2f} "
        f"± {100 * run.accuracy_error:.2f} %  asked {run.devices_asked:.2f}  {run.watts:5.1f} W SIMULATED{missed}"
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
