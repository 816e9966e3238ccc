"""Drives a running cell through a plan of idle and loaded phases, and keeps all raw data of it.

No figure crosses clocks: the edges of every phase are marked by each device on the clock that also stamps its power
samples. The asking machine's own clock is used for latency, answers per second, and to show all devices side by side.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from devit_contract.client import Answer, Client, Picture
from devit_contract.errors import InputError, LinkError
from devit_contract.files import make_folder
from devit_contract.fleet import Device
from devit_contract.messages import Description, SamplingCost
from devit_contract.progress import Progress
from devit_profiling.calibration import Calibration, find_calibration
from devit_profiling.pictures import Pictures
from devit_profiling.record import (
    IDLE,
    IDLE_AFTER,
    OUTSIDE,
    QUICK,
    SCHEMA,
    SETTLE,
    TOGETHER,
    WARM_UP,
    WINDOW,
    AnswerRow,
    DeviceRecord,
    Edge,
    NodeRecord,
    Phase,
    Plan,
    Recording,
    Run,
    Scenario,
)
from devit_profiling.run_folder import write_recording
from devit_profiling.tegrastats import StampedLine
from devit_profiling.watch import STEP_S, Watch

__all__ = ["QUICK", "Measurement", "Plan", "run_profile"]


def run_profile(
    client: Client,
    devices: Sequence[Device],
    pictures: Iterable[Picture],
    plan: Plan,
    out: Path,
    progress: Progress,
    calibrations: Path | None = None,
) -> Path:
    """Measure devices of a running cell and write the raw files of the run.

    A device without a power sensor is measured in milliseconds alone. Whatever ends the run early, Ctrl-C too, stops
    the sampling and leaves no folder.

    Args:
        client: Connected to the cell's node.
        devices: The devices to measure; others of the cell answer too where the whole cell is asked.
        pictures: What to send, in turn, for as long as it takes: a list that is repeated, or an endless iterator.
        plan: Phases and their lengths.
        out: Folder in which the run's own folder is made.
        progress: Told the scenario, the seconds that are done and planned, and the phase.
        calibrations: Folder in which devices' calibrations are looked for; they become part of the run.

    Returns:
        The run's folder, named by UTC time and devices.

    Raises:
        InputError: There is no device or no picture, a picture is refused, or ``out`` cannot be written.
        ManifestError: A calibration breaks its format, or is of another board.
        LinkError: The node or a device does not answer, or a device's link is lost.
    """
    if not devices:
        raise InputError("expected at least one device to measure, found none: name it with --devices")
    make_folder(out)  # told now, not after minutes of measuring
    started = datetime.now(timezone.utc)
    name = f"{started:%Y%m%dT%H%M%SZ}-{'-'.join(device.name for device in devices)}"[:_MAX_NAME_CHARS]
    before = NodeRecord.of(client.status())
    descriptions = {device.name: client.describe(device.name) for device in devices}
    found = {name: find_calibration(calibrations, name, about.board_model) for name, about in descriptions.items()}
    scenarios = _scenarios(devices, plan)
    measurement = Measurement(client, devices, plan, progress)
    endless = _endless(pictures)
    try:
        measurement.start_sampling()
        for scenario in scenarios:
            measurement.measure(scenario, endless)
        measurement.let_samples_arrive()
    finally:
        measurement.stop_sampling()
    run = Run(
        schema=SCHEMA,
        name=name,
        started_utc=f"{started:%Y-%m-%d %H:%M:%S}",
        software=version("devit"),
        pictures=pictures.origin if isinstance(pictures, Pictures) else "images of the program that measured",
        plan=plan,
        devices=_records(devices, descriptions, measurement, found),
        scenarios=scenarios,
        phases=tuple(measurement.phases),
        before=before,
        after=NodeRecord.of(client.status()),
    )
    lines = {name: tuple(lines) for name, lines in measurement.lines.items()}
    write_recording(out / name, Recording(run, lines, tuple(measurement.answers)))
    return out / name


class Measurement:
    """What a run has gathered so far."""

    def __init__(self, client: Client, devices: Sequence[Device], plan: Plan, progress: Progress) -> None:
        """Start with nothing."""
        self.phases: list[Phase] = []
        self.answers: list[AnswerRow] = []
        self.lines: dict[str, list[StampedLine]] = {device.name: [] for device in devices}
        self.problems: dict[str, str] = {}
        """Device to why there are no power samples, or no more."""
        self.costs: dict[str, SamplingCost] = {}
        """Device to what sampling has cost it."""
        self._client = client
        self._devices = devices
        self._plan = plan
        self._progress = progress
        self._sampling: set[str] = set()
        self._is_loading = False

    def start_sampling(self) -> None:
        """Start every device's sampler, and wait for the first line of each; what fails is noted as a problem."""
        for device in self._devices:
            self._sampling.add(device.name)
            try:
                self._client.start_sampling(device.name, self._plan.interval_ms)
            except LinkError as err:
                self._sampling.discard(device.name)
                self.problems[device.name] = str(err)
        limit_s = _FIRST_LINE_S + 2 * self._plan.interval_ms / 1000
        end_s = time.monotonic() + limit_s
        while self._silent() and time.monotonic() < end_s:
            self._pass(STEP_S)
        for name in self._silent():
            self.problems[name] = f"expected a power sample within {limit_s:.1f} s, found none: run its sampler by hand"

    def stop_sampling(self) -> None:
        """Stop every sampler, ask what it has cost, where it ended early too, and take what had come before."""
        for device in self._devices:
            # A device that cannot be reached has stopped by itself.
            with suppress(LinkError):
                if (cost := self._client.stop_sampling(device.name)) is not None:
                    self.costs[device.name] = cost
        self._sampling.clear()
        self._collect()

    def let_samples_arrive(self) -> None:
        """Wait for the samples behind the last edge, without which the last window would have no end."""
        self._pass(_TAIL_PERIODS * self._plan.interval_ms / 1000 if self._sampling else 0.0)

    def measure(self, scenario: Scenario, pictures: Iterator[Picture]) -> None:
        """Take one scenario through all its phases."""
        plan = self._plan
        watch = Watch(self._progress, scenario.name, _planned_s(plan))
        self._rest(scenario, SETTLE, plan.settle_s, watch)
        self._rest(scenario, IDLE, plan.idle_s, watch)
        self._load(scenario, pictures, watch)
        if plan.has_idle_after:
            self._rest(scenario, SETTLE, plan.settle_s, watch)
            self._rest(scenario, IDLE_AFTER, plan.idle_s, watch)
        watch.finish()

    def _rest(self, scenario: Scenario, kind: str, duration_s: float, watch: Watch) -> None:
        """Let the cell idle."""
        if duration_s == 0:
            return
        start = self._edge()
        while (passed_s := _since_s(start)) < duration_s + _MARGIN_S:
            watch.show(kind)
            self._pass(min(STEP_S, duration_s + _MARGIN_S - passed_s))
        self.phases.append(Phase(scenario.name, kind, OUTSIDE, start, self._edge()))

    def _load(self, scenario: Scenario, pictures: Iterator[Picture], watch: Watch) -> None:
        """Ask without a pause: the warm-up, then window by window; neighbouring phases share an edge."""
        plan = self._plan
        start, window, answers = self._edge(), OUTSIDE, 0
        self._is_loading = True
        asked = itertools.takewhile(lambda _: self._is_loading, pictures)
        sent_ns: deque[int] = deque()  # of the requests under way; answers come in their order
        for answer in self._client.stream(_stamped(asked, sent_ns), in_flight=plan.in_flight, mask=scenario.mask):
            number = window if self._is_loading else OUTSIDE
            self.answers.append(_row(scenario, number, answer, sent_ns.popleft()))
            answers += 1
            watch.show(WARM_UP if window == OUTSIDE else f"{WINDOW} {window} of {plan.windows}")
            is_warm = window > OUTSIDE or answers >= plan.warm_up_answers
            length_s = plan.warm_up_s if window == OUTSIDE else plan.duration_s + _MARGIN_S
            if not (self._is_loading and is_warm and _since_s(start) >= length_s):
                continue
            end = self._edge()
            kind = WARM_UP if window == OUTSIDE else WINDOW
            self.phases.append(Phase(scenario.name, kind, window, start, end))
            start, window = end, window + 1
            self._is_loading = window <= plan.windows

    def _edge(self) -> Edge:
        """Have every device mark this moment."""
        marks, asked_ns = {}, {}
        for device in self._devices:
            before_ns = time.monotonic_ns()
            marks[device.name] = self._client.mark(device.name)
            asked_ns[device.name] = (before_ns, time.monotonic_ns())
        self._collect()
        return Edge(time.monotonic_ns(), marks, asked_ns)

    def _pass(self, duration_s: float) -> None:
        self._client.wait(duration_s)
        self._collect()

    def _collect(self) -> None:
        for telemetry in self._client.take_telemetry():
            lines = self.lines.get(telemetry.device)
            if lines is None:
                continue
            lines.extend(StampedLine(line.monotonic_ns, line.text) for line in telemetry.lines)
            if telemetry.ended:
                self.problems[telemetry.device] = telemetry.ended
                self._sampling.discard(telemetry.device)

    def _silent(self) -> list[str]:
        return [name for name in sorted(self._sampling) if not self.lines[name]]


# Two clocks never run equally fast, and a window that is a microsecond too short for a rule would break it.
_MARGIN_S = 0.02
_FIRST_LINE_S = 5.0
# Real periods are up to 9 % longer than the interval.
_TAIL_PERIODS = 2.5
_MAX_NAME_CHARS = 120


def _endless(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Repeat a list for ever, without keeping what an endless iterator gives."""
    while True:
        found = 0
        for found, picture in enumerate(pictures, 1):  # noqa: B007 - counts
            yield picture
        if not found:
            raise InputError("expected pictures for as long as the run takes, found no more: give a list of them")


def _scenarios(devices: Sequence[Device], plan: Plan) -> tuple[Scenario, ...]:
    alone = [Scenario(f"{device.name} alone", 1 << device.submodel, device.name) for device in devices]
    return (*(alone if plan.has_alone else ()), Scenario(TOGETHER, 0))


def _planned_s(plan: Plan) -> float:
    rests = 2 if plan.has_idle_after else 1
    return rests * (plan.settle_s + plan.idle_s) + plan.warm_up_s + plan.windows * plan.duration_s


def _since_s(edge: Edge) -> float:
    return (time.monotonic_ns() - edge.desk_ns) / 1e9


def _stamped(pictures: Iterable[Picture], sent_ns: deque[int]) -> Iterator[Picture]:
    """Note when each picture is taken, which the client does just before it sends it."""
    for picture in pictures:
        sent_ns.append(time.monotonic_ns())
        yield picture


def _row(scenario: Scenario, window: int, answer: Answer, sent_ns: int) -> AnswerRow:
    return AnswerRow(
        scenario=scenario.name,
        window=window,
        state=answer.state,
        mask=answer.mask,
        latency_ms=answer.latency_s * 1e3,
        wait_us=answer.wait_us,
        collect_us=answer.collect_us,
        fuse_us=answer.fuse_us,
        missing=answer.missing,
        devices=answer.devices,
        sent_ns=sent_ns,
    )


def _records(
    devices: Sequence[Device],
    descriptions: Mapping[str, Description],
    measurement: Measurement,
    calibrations: Mapping[str, Calibration | None],
) -> tuple[DeviceRecord, ...]:
    problems, costs = measurement.problems, measurement.costs
    return tuple(
        DeviceRecord(
            name, device.submodel, descriptions[name], problems.get(name, ""), costs.get(name), calibrations[name]
        )
        for name, device in ((device.name, device) for device in devices)
    )
