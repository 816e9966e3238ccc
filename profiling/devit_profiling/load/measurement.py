"""Takes a cell through the phases of its scenarios, and gathers what comes: snapshots, answers and power samples."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from devit_contract.artefacts.fleet import Device
from devit_contract.machine import over_current_events
from devit_contract.service.progress import Progress
from devit_contract.wire.client import Answer, Client, Picture
from devit_contract.wire.messages import Mark, PowerLine
from devit_profiling.figures.thermal import is_settled, is_sustained
from devit_profiling.load.baseline_driver import BaselineDriver
from devit_profiling.load.load_generator import Sent, send_requests
from devit_profiling.load.sampling import Sampling
from devit_profiling.load.schedule import STEP_S, Watch, between_rests, check_windows
from devit_profiling.record.calibration import find_calibration
from devit_profiling.record.record import (
    NO_POWER,
    NODE,
    OUTSIDE,
    WARM_UP,
    WINDOW,
    AnswerRow,
    BaselineRecord,
    Boundary,
    DeviceRecord,
    Phase,
    PhaseKind,
    Plan,
    Scenario,
)

# Two clocks never run equally fast, and a window that is a microsecond too short for a rule would break it.
_MARGIN_S = 0.02


class Measurement:
    """Takes the devices of a cell through scenarios, and keeps what they leave."""

    def __init__(
        self, client: Client, devices: Sequence[Device], plan: Plan, progress: Progress, calibrations: Path | None
    ) -> None:
        """Ask the devices what they are, check the plan by that, and find their calibrations.

        Raises:
            LinkError: A device does not answer.
            InputError: Windows are too short for joules, though a device has a sensor.
            ManifestError: A calibration breaks its format, or is of another board.
        """
        self._descriptions = {device.name: client.describe(device.name) for device in devices}
        if any(about.sensor for about in self._descriptions.values()):
            check_windows(plan)
        self._calibrations = {
            name: find_calibration(calibrations, name, about.board_model) for name, about in self._descriptions.items()
        }
        sampled = devices if plan.has_power else ()
        self.sampling = Sampling(client, [device.name for device in sampled], plan.interval_ms)
        self.phases: list[Phase] = []
        self._client = client
        self._devices = devices
        self._plan = plan
        self._progress = progress
        self._driver: BaselineDriver | None = None
        self._scenario = Scenario("", 0)
        self._done = OUTSIDE
        self._rows: list[AnswerRow] = []
        self._answered = 0

    @property
    def devices(self) -> tuple[DeviceRecord, ...]:
        """What each device is, and how its sampling went."""
        return tuple(
            DeviceRecord(
                device.name,
                device.submodel,
                self._descriptions[device.name],
                self.sampling.errors.get(device.name, "") if self._plan.has_power else NO_POWER,
                self.sampling.costs.get(device.name),
                self._calibrations[device.name],
            )
            for device in self._devices
        )

    @property
    def lines(self) -> dict[str, tuple[PowerLine, ...]]:
        """By device, what its sampler has printed."""
        return {device.name: tuple(self.sampling.lines.get(device.name, ())) for device in self._devices}

    @property
    def answers(self) -> tuple[AnswerRow, ...]:
        """All of them; those of a window that did not end are outside all windows."""
        ended = {(phase.scenario, phase.number) for phase in self.phases}
        return tuple(row if (row.scenario, row.window) in ended else replace(row, window=OUTSIDE) for row in self._rows)

    @property
    def baseline(self) -> BaselineRecord | None:
        """What the baseline model has done; absent where none was loaded."""
        return self._driver.record if self._driver is not None else None

    def has_begun(self, scenario: Scenario) -> bool:
        """Check whether any phase of a scenario has ended."""
        return any(phase.scenario == scenario.name for phase in self.phases)

    def measure(self, scenario: Scenario, pictures: Iterator[Picture]) -> None:
        """Take one scenario through all its phases."""
        plan = self._plan
        self._scenario, self._done = scenario, OUTSIDE
        watch = Watch(self._progress, plan, scenario)
        if scenario.is_baseline:
            self._driver = BaselineDriver(self._client, scenario.device, self.sampling.wait, watch.show)
        driver = self._driver if scenario.is_baseline else None
        with driver.loaded() if driver is not None else nullcontext(), between_rests(plan, partial(self._rest, watch)):
            if driver is not None:
                self._run_baseline(driver, watch)
            else:
                self._load(pictures, watch)
        watch.finish()

    def _run_baseline(self, driver: BaselineDriver, watch: Watch) -> None:
        """Have the baseline model run back to back: the warm-up, then window by window."""
        plan, name = self._plan, self._scenario.device
        start = self._boundary()
        driver.run()
        for window in range(plan.windows + 1):
            kind, length_s = (WINDOW, plan.duration_s + _MARGIN_S) if window else (WARM_UP, plan.warm_up_s)
            least = start.snapshots[name].inferences + (0 if window else plan.warm_up_answers)
            while _since_s(start) < length_s or driver.snapshot().inferences < least:
                watch.show(f"{WINDOW} {window} of {plan.windows}" if window else WARM_UP)
                self.sampling.wait(max(0.001, min(STEP_S, length_s - _since_s(start))))
            start = self._end_phase(kind, window, start)
            driver.end_window(window, is_last=window == plan.windows)

    def _rest(self, watch: Watch, kind: PhaseKind, duration_s: float) -> None:
        """Let the cell idle."""
        if duration_s == 0:
            return
        start = self._boundary()
        while (passed_s := _since_s(start)) < duration_s + _MARGIN_S:
            watch.show(kind)
            self.sampling.wait(min(STEP_S, duration_s + _MARGIN_S - passed_s))
        self._end_phase(kind, OUTSIDE, start)

    def _load(self, pictures: Iterator[Picture], watch: Watch) -> None:
        """Send requests without a pause: the warm-up, then window by window; neighbouring phases share a boundary."""
        plan, scenario = self._plan, self._scenario
        start, window, answers, is_loading = self._boundary(), OUTSIDE, 0, True
        wanted = itertools.takewhile(lambda _: is_loading, pictures)
        with closing(send_requests(self._client, wanted, plan, scenario.mask)) as answered:
            for answer, sent in answered:
                row = _row(scenario, window if is_loading else OUTSIDE, answer, sent)
                self._rows.append(row)
                self._answered += row.is_answered
                answers += 1
                watch.show(WARM_UP if window == OUTSIDE else _window_text(scenario, window, plan))
                is_warm = window > OUTSIDE or answers >= plan.warm_up_answers
                length_s = plan.warm_up_s if window == OUTSIDE else plan.duration_s + _MARGIN_S
                if is_loading and is_warm and _since_s(start) >= length_s:
                    start = self._end_phase(WARM_UP if window == OUTSIDE else WINDOW, window, start)
                    window += 1
                    is_loading = self._has_more_windows()

    def _has_more_windows(self) -> bool:
        """Decide whether another window follows those that have ended."""
        plan = self._plan
        if self._done == OUTSIDE or not is_sustained(self._scenario, plan):
            return self._done < plan.windows
        assert plan.sustained_s is not None
        windows = [phase for phase in self.phases if phase.scenario == self._scenario.name and phase.kind == WINDOW]
        if sum(phase.duration_s for phase in windows) + plan.duration_s > plan.sustained_s:
            return False
        return not is_settled(windows, self.sampling.lines, plan)

    def _end_phase(self, kind: PhaseKind, number: int, start: Boundary) -> Boundary:
        """Note the phase that ends now, and give its end."""
        end = self._boundary()
        self.phases.append(Phase(self._scenario.name, kind, number, start, end))
        self._done = max(self._done, number)
        return end

    def _boundary(self) -> Boundary:
        """Have every device snapshot this moment."""
        snapshots, asked_ns = {}, {}
        for device in self._devices:
            before_ns = time.monotonic_ns()
            is_baseline = self._scenario.is_baseline and self._scenario.device == device.name
            if self._driver is not None and is_baseline:
                snapshots[device.name] = self._driver.snapshot()
            else:
                snapshots[device.name] = self._client.mark(device.name)
            asked_ns[device.name] = (before_ns, time.monotonic_ns())
        self.sampling.collect()
        now_ns = time.monotonic_ns()
        # This machine's own, for the node's power where it runs here.
        snapshots[NODE] = Mark(now_ns, self._answered, 0, over_current=over_current_events())
        return Boundary(now_ns, snapshots, asked_ns)


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
