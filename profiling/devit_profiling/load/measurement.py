"""Takes a cell through the phases of its scenarios, and gathers what comes: snapshots, answers and power samples."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace

from msgspec import structs

from devit_contract.artefacts.fleet import Device
from devit_contract.errors import LinkError
from devit_contract.service.progress import Progress
from devit_contract.wire.client import Answer, Client, Picture
from devit_contract.wire.messages import Description, Mark, PowerLine, SamplingCost
from devit_profiling.figures.thermal import is_settled, is_sustained
from devit_profiling.load.load_generator import Sent, ask
from devit_profiling.load.watch import STEP_S, Watch, scenario_s
from devit_profiling.record.calibration import Calibration
from devit_profiling.record.record import (
    IDLE,
    IDLE_AFTER,
    NODE,
    OUTSIDE,
    SETTLE,
    WARM_UP,
    WINDOW,
    AnswerRow,
    Boundary,
    CutShort,
    DeviceRecord,
    Phase,
    Plan,
    Scenario,
    UndividedRecord,
    UndividedWindow,
)


class Measurement:
    """What a run has gathered so far."""

    def __init__(self, client: Client, devices: Sequence[Device], plan: Plan, progress: Progress) -> None:
        """Start with nothing."""
        self.phases: list[Phase] = []
        self._rows: list[AnswerRow] = []
        self.lines: dict[str, list[PowerLine]] = {device.name: [] for device in devices}
        self.problems: dict[str, str] = {}
        """Device to why there are no power samples, or no more."""
        self.costs: dict[str, SamplingCost] = {}
        """Device to what sampling has cost it."""
        self.done = OUTSIDE
        """Windows that have ended in the scenario under way."""
        self.scenario = ""
        """The one under way."""
        self._client = client
        self._devices = devices
        self._plan = plan
        self._progress = progress
        self.undivided: UndividedRecord | None = None
        """What the undivided model has done."""
        self._undivided_on = ""
        self._given = 0
        self._sampling: set[str] = set()
        self._is_loading = False

    @property
    def answers(self) -> tuple[AnswerRow, ...]:
        """All of them; those of a window that did not end stand outside of all windows."""
        ended = {(phase.scenario, phase.number) for phase in self.phases}
        return tuple(row if (row.scenario, row.window) in ended else replace(row, window=OUTSIDE) for row in self._rows)

    def cut_short(self, cause: KeyboardInterrupt | LinkError) -> CutShort:
        """Tell how far the run has come that ends here."""
        is_interrupt = isinstance(cause, KeyboardInterrupt)
        why = "Ctrl-C or SIGTERM" if is_interrupt else " ".join(str(cause).split())
        return CutShort(why, is_interrupt, self.scenario, self.done)

    def records(
        self, descriptions: Mapping[str, Description], calibrations: Mapping[str, Calibration | None]
    ) -> tuple[DeviceRecord, ...]:
        """Tell of every device what it is, and how its sampling went."""
        return tuple(
            DeviceRecord(
                device.name,
                device.submodel,
                descriptions[device.name],
                self.problems.get(device.name, ""),
                self.costs.get(device.name),
                calibrations[device.name],
            )
            for device in self._devices
        )

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
        """Wait for the samples behind the last boundary, without which the last window would have no end."""
        self._pass(_TAIL_PERIODS * self._plan.interval_ms / 1000 if self._sampling else 0.0)

    def measure(self, scenario: Scenario, pictures: Iterator[Picture]) -> None:
        """Take one scenario through all its phases."""
        plan = self._plan
        self.scenario, self.done = scenario.name, OUTSIDE
        watch = Watch(self._progress, scenario.name, scenario_s(plan, scenario))
        self._undivided_on = scenario.device if scenario.is_undivided else ""
        with self._undivided_model(watch) if scenario.is_undivided else nullcontext():
            self._rest(scenario, SETTLE, plan.settle_s, watch)
            self._rest(scenario, IDLE, plan.idle_s, watch)
            if scenario.is_undivided:
                self._run_undivided(scenario, watch)
            else:
                self._load(scenario, pictures, watch)
            if plan.has_idle_after:
                self._rest(scenario, SETTLE, plan.settle_s, watch)
                self._rest(scenario, IDLE_AFTER, plan.idle_s, watch)
        watch.finish()

    @contextmanager
    def _undivided_model(self, watch: Watch) -> Iterator[None]:
        """Have the device load the undivided model, and give its memory back whatever happens."""
        name = self._undivided_on
        self._client.undivided(name, "load")
        try:
            while (state := self._client.undivided(name, "state")).state != "resting":
                watch.show("loading")
                self._pass(STEP_S)
            self.undivided = UndividedRecord(name, state.engine, ())
            yield
        finally:
            with suppress(LinkError):  # without a link the agent frees it by itself
                end_s = time.monotonic() + _FREED_S
                self._client.undivided(name, "free")
                while self._client.undivided(name, "state").state != "nothing" and time.monotonic() < end_s:
                    self._pass(STEP_S / 5)

    def _run_undivided(self, scenario: Scenario, watch: Watch) -> None:
        """Have the undivided model run back to back: the warm-up, then window by window."""
        plan, name = self._plan, scenario.device
        start = self._boundary()
        self._client.undivided(name, "run")
        for window in range(plan.windows + 1):
            kind, length_s = (WINDOW, plan.duration_s + _MARGIN_S) if window else (WARM_UP, plan.warm_up_s)
            done = start.snapshots[name].inferences + (0 if window else plan.warm_up_answers)
            while _since_s(start) < length_s or self._snapshot(name).inferences < done:
                watch.show(f"{WINDOW} {window} of {plan.windows}" if window else WARM_UP)
                self._pass(max(0.001, min(STEP_S, length_s - _since_s(start))))
            end = self._boundary()
            told = self._client.undivided(name, "state" if window < plan.windows else "rest")
            self.phases.append(Phase(scenario.name, kind, window, start, end))
            if window and self.undivided is not None:
                times = UndividedWindow(window, told.inferences, told.p50_ms, told.p95_ms, told.p99_ms)
                self.undivided = structs.replace(self.undivided, windows=(*self.undivided.windows, times))
            self.done, start = window, end

    def _rest(self, scenario: Scenario, kind: str, duration_s: float, watch: Watch) -> None:
        """Let the cell idle."""
        if duration_s == 0:
            return
        start = self._boundary()
        while (passed_s := _since_s(start)) < duration_s + _MARGIN_S:
            watch.show(kind)
            self._pass(min(STEP_S, duration_s + _MARGIN_S - passed_s))
        self.phases.append(Phase(scenario.name, kind, OUTSIDE, start, self._boundary()))

    def _load(self, scenario: Scenario, pictures: Iterator[Picture], watch: Watch) -> None:
        """Ask without a pause: the warm-up, then window by window; neighbouring phases share a boundary."""
        plan = self._plan
        start, window, answers = self._boundary(), OUTSIDE, 0
        self._is_loading = True
        wanted = itertools.takewhile(lambda _: self._is_loading, pictures)
        with closing(ask(self._client, wanted, plan, scenario.mask)) as answered:
            for answer, sent in answered:
                number = window if self._is_loading else OUTSIDE
                self._rows.append(_row(scenario, number, answer, sent))
                answers += 1
                self._given += self._rows[-1].is_answered
                watch.show(WARM_UP if window == OUTSIDE else _window_text(scenario, window, plan))
                is_warm = window > OUTSIDE or answers >= plan.warm_up_answers
                length_s = plan.warm_up_s if window == OUTSIDE else plan.duration_s + _MARGIN_S
                if not (self._is_loading and is_warm and _since_s(start) >= length_s):
                    continue
                end = self._boundary()
                kind = WARM_UP if window == OUTSIDE else WINDOW
                self.phases.append(Phase(scenario.name, kind, window, start, end))
                self.done = window
                start, window = end, window + 1
                self._is_loading = self._goes_on(scenario)

    def _goes_on(self, scenario: Scenario) -> bool:
        """Tell whether another window follows those that have ended."""
        plan = self._plan
        if self.done == OUTSIDE or not is_sustained(scenario, plan):
            return self.done < plan.windows
        assert plan.sustained_s is not None
        windows = [phase for phase in self.phases if phase.scenario == scenario.name and phase.kind == WINDOW]
        if sum(phase.duration_s for phase in windows) + plan.duration_s > plan.sustained_s:
            return False
        return not is_settled(windows, self.lines, plan)

    def _boundary(self) -> Boundary:
        """Ask every device for a snapshot of this moment."""
        snapshots, asked_ns = {}, {}
        for device in self._devices:
            before_ns = time.monotonic_ns()
            snapshots[device.name] = self._snapshot(device.name)
            asked_ns[device.name] = (before_ns, time.monotonic_ns())
        self._collect()
        now_ns = time.monotonic_ns()
        snapshots[NODE] = Mark(now_ns, self._given, 0)  # this machine's own, for the node's power where it runs here
        return Boundary(now_ns, snapshots, asked_ns)

    def _snapshot(self, device: str) -> Mark:
        """Ask for a snapshot that counts what the scenario is about."""
        snapshot = self._client.mark(device)
        if device != self._undivided_on:
            return snapshot
        return structs.replace(snapshot, inferences=snapshot.undivided_inferences, busy_ns=snapshot.undivided_busy_ns)

    def _pass(self, duration_s: float) -> None:
        self._client.wait(duration_s)
        self._collect()

    def _collect(self) -> None:
        for telemetry in self._client.take_telemetry():
            lines = self.lines.get(telemetry.device)
            if lines is None:
                continue
            lines.extend(telemetry.lines)
            if telemetry.ended:
                self.problems[telemetry.device] = telemetry.ended
                self._sampling.discard(telemetry.device)

    def _silent(self) -> list[str]:
        return [name for name in sorted(self._sampling) if not self.lines[name]]


# Two clocks never run equally fast, and a window that is a microsecond too short for a rule would break it.
_MARGIN_S = 0.02
_FIRST_LINE_S = 5.0
_FREED_S = 10.0
# Real periods are up to 9 % longer than the interval.
_TAIL_PERIODS = 2.5


def _window_text(scenario: Scenario, window: int, plan: Plan) -> str:
    return f"{WINDOW} {window}" + ("" if is_sustained(scenario, plan) else f" of {plan.windows}")


def _since_s(boundary: Boundary) -> float:
    return (time.monotonic_ns() - boundary.host_ns) / 1e9


def _row(scenario: Scenario, window: int, answer: Answer, sent: Sent) -> AnswerRow:
    return AnswerRow(
        scenario=scenario.name,
        window=window,
        state=answer.state,
        mask=answer.mask,
        latency_ms=answer.latency_s * 1e3 + sent.late_us / 1e3,
        wait_us=answer.wait_us,
        collect_us=answer.collect_us,
        fuse_us=answer.fuse_us,
        missing=answer.missing,
        devices=answer.devices,
        sent_ns=sent.due_ns,
        late_us=sent.late_us,
    )
