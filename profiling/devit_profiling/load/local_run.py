"""Measures this machine's own engine, without node or network: idle, warm-up and windows, as raw data of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from msgspec import structs

from devit_contract.errors import EnergyError
from devit_contract.machine import board_compatible, board_model, over_current_events
from devit_contract.wire.codec import State
from devit_contract.wire.messages import Description, DeviceTiming, Mark
from devit_engines.bench.child import EngineChild, Ready, TimedRun
from devit_profiling.load.schedule import between_rests, first_line_s, tail_s
from devit_profiling.record.calibration import Calibration, find_calibration
from devit_profiling.record.record import (
    OUTSIDE,
    SCHEMA,
    SETTLE,
    WARM_UP,
    WINDOW,
    AnswerRow,
    Boundary,
    CutShort,
    DeviceRecord,
    Phase,
    PhaseKind,
    Plan,
    Recording,
    Run,
    Scenario,
)
from devit_profiling.sensor.local_sampler import LocalSampler

NO_ENGINE = "none, as no engine ran"
_MORE_S = 0.5


class LocalMeasurement:
    """Takes this machine through the phases of scenarios while its power is sampled, and keeps what they leave."""

    def __init__(
        self,
        name: str,
        submodel: int,
        plan: Plan,
        sampler: LocalSampler | None,
        calibrations: Path | None = None,
        board_choice: str = "auto",
    ) -> None:
        """Start with nothing; without a sampler, which has to be running, times alone are measured."""
        self.phases: list[Phase] = []
        self._name = name
        self._submodel = submodel
        self._plan = plan
        self._sampler = sampler
        self._calibrations = calibrations
        self._board_choice = board_choice
        self._answers: list[AnswerRow] = []
        self._about: Ready | None = None
        self._calibration: Calibration | None = None
        self._inferences = 0
        self._busy_ns = 0
        self._over_current = over_current_events()

    def measure(self, scenario: Scenario, engine_command: Sequence[str], show: Callable[[str], None]) -> None:
        """Load an engine, and take it through all phases of a scenario; ``show`` is told each phase as it begins.

        Raises:
            EngineError: The engine cannot be loaded, or fails.
            ManifestError: The calibration breaks its format, or is of another board.
        """
        plan = self._plan
        with EngineChild(engine_command) as engine:
            show("loading the engine")
            self._about = engine.ready(self.wait)
            self._calibration = find_calibration(self._calibrations, self._name, self._about.board_model)
            with between_rests(plan, partial(self._rest, scenario, show)):
                show(WARM_UP)
                self._work(scenario, WARM_UP, OUTSIDE, self._warm_up(engine))
                for number in range(1, plan.windows + 1):
                    show(f"{WINDOW} {number} of {plan.windows}")
                    self._work(scenario, WINDOW, number, [engine.run(plan.duration_s, self.wait)])

    def measure_idle(self, scenario: Scenario, show: Callable[[str], None]) -> None:
        """Take windows in which nothing runs; arguments as of :meth:`measure`."""
        self._calibration = find_calibration(self._calibrations, self._name, board_model())
        show(SETTLE)
        self.wait(self._plan.settle_s)
        for number in range(1, self._plan.windows + 1):
            show(f"{WINDOW} {number} of {self._plan.windows}")
            start = self._boundary(time.monotonic_ns())
            self.wait(self._plan.duration_s)
            self._end_phase(scenario, WINDOW, number, start, time.monotonic_ns())

    def wait_for_tail(self) -> None:
        """Wait for a sample after the last phase, which its end is interpolated with."""
        self.wait(tail_s(self._plan.interval_ms))

    def wait(self, duration_s: float) -> None:
        """Let time pass, and take the lines that come."""
        end_s = time.monotonic() + duration_s
        if self._sampler is not None:
            self._sampler.collect(duration_s)
        time.sleep(max(0.0, end_s - time.monotonic()))  # there is no sampler, or it has ended early

    def recording(
        self,
        name: str,
        started_utc: str,
        scenarios: Sequence[Scenario],
        sensor_error: str = "",
        cut_short: CutShort | None = None,
    ) -> Recording:
        """Give the raw data of these scenarios alone, as those of a run without a node.

        ``sensor_error`` says why there is no sampler, or why it gives no samples.
        """
        about, sampler, names = self._about, self._sampler, {scenario.name for scenario in scenarios}
        device = DeviceRecord(
            name=self._name,
            submodel=self._submodel,
            description=self._description(),
            sensor_problem=sensor_error or (sampler.problem if sampler is not None else ""),
            sampling=sampler.whole_cost if sampler is not None else None,
            calibration=self._calibration,
        )
        run = Run(
            schema=SCHEMA,
            name=name,
            started_utc=started_utc,
            software=version("devit"),
            bundle=about.bundle if about is not None else NO_ENGINE,
            pictures="one random image, again and again" if about is not None else NO_ENGINE,
            plan=self._plan,
            devices=(device,),
            scenarios=tuple(scenarios),
            phases=tuple(phase for phase in self.phases if phase.scenario in names),
            cut_short=cut_short,
        )
        lines = tuple(sampler.lines) if sampler is not None else ()
        return Recording(run, {self._name: lines}, tuple(row for row in self._answers if row.scenario in names))

    def _description(self) -> Description:
        about, sensor = self._about, " ".join(self._sampler.command) if self._sampler is not None else ""
        found = Description(board_model(), "", NO_ENGINE, sensor, 0, board_choice=self._board_choice)
        if about is not None:
            found = Description(
                about.board_model,
                about.l4t,
                about.engine,
                sensor,
                about.inference_threads,
                board_choice=self._board_choice,
                gpu_instance=about.gpu_instance,
            )
        return structs.replace(found, compatible=board_compatible())

    def _warm_up(self, engine: EngineChild) -> Sequence[TimedRun]:
        plan = self._plan
        runs = [engine.run(plan.warm_up_s, self.wait)]
        while sum(len(run.taken_us) for run in runs) < plan.warm_up_answers:
            runs.append(engine.run(_MORE_S, self.wait))
        return runs

    def _rest(self, scenario: Scenario, show: Callable[[str], None], kind: PhaseKind, duration_s: float) -> None:
        if duration_s > 0:
            show(kind)
            start = self._boundary(time.monotonic_ns())
            self.wait(duration_s)
            self._end_phase(scenario, kind, OUTSIDE, start, time.monotonic_ns())

    def _work(self, scenario: Scenario, kind: PhaseKind, number: int, runs: Sequence[TimedRun]) -> None:
        start = self._moment(runs[0].start_ns)
        for run in runs:
            sent_ns = run.start_ns
            for taken_us in run.taken_us:
                self._answers.append(self._row(scenario, number, taken_us, sent_ns))
                sent_ns += taken_us * 1000
            self._inferences += len(run.taken_us)
            self._busy_ns += run.end_ns - run.start_ns
        self._end_phase(scenario, kind, number, start, runs[-1].end_ns)

    def _end_phase(self, scenario: Scenario, kind: PhaseKind, number: int, start: Boundary, end_ns: int) -> None:
        self.phases.append(Phase(scenario.name, kind, number, start, self._boundary(end_ns)))

    def _boundary(self, at_ns: int) -> Boundary:
        """Mark this moment."""
        self._over_current = over_current_events()
        return self._moment(at_ns)

    def _moment(self, at_ns: int) -> Boundary:
        """Mark a moment after the last boundary: engine, sampler and this process share a clock."""
        snapshot = Mark(at_ns, self._inferences, self._busy_ns, over_current=self._over_current)
        return Boundary(at_ns, {self._name: snapshot}, {self._name: (at_ns, at_ns)})

    def _row(self, scenario: Scenario, window: int, taken_us: int, sent_ns: int) -> AnswerRow:
        """Note an inference as an answer: there is no network, no queue and nothing to decode."""
        timing = DeviceTiming(
            self._submodel, network_us=0, queue_us=0, decode_us=0, inference_us=taken_us, arrival_us=taken_us
        )
        return AnswerRow(
            scenario=scenario.name,
            window=window,
            state=State.FULL,
            mask=1 << self._submodel,
            latency_ms=taken_us / 1000,
            wait_us=0,
            collect_us=taken_us,
            fuse_us=0,
            missing={},
            devices=(timing,),
            sent_ns=sent_ns,
        )


def wait_for_first_sample(sampler: LocalSampler, interval_ms: int) -> None:
    """Wait for a sampler's first line.

    Raises:
        EnergyError: None comes in time.
    """
    limit_s = first_line_s(interval_ms)
    end_s = time.monotonic() + limit_s
    while not sampler.lines:
        if sampler.problem or time.monotonic() > end_s:
            why = sampler.problem or f"no power sample came within {limit_s:.1f} s"
            raise EnergyError(f"{why}: run {' '.join(sampler.command)} by hand")
        sampler.collect(0.1)
