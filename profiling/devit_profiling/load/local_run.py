"""Measures this machine's own engine, without node or network: idle, warm-up and windows, as raw data of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version

from devit_contract.errors import EnergyError
from devit_contract.wire.codec import State
from devit_contract.wire.messages import DeviceTiming, Mark
from devit_engines.bench.child import EngineChild
from devit_engines.bench.messages import Ready, Stint
from devit_profiling.record.record import (
    IDLE,
    IDLE_AFTER,
    LOCAL,
    OUTSIDE,
    SCHEMA,
    SETTLE,
    WARM_UP,
    WINDOW,
    AnswerRow,
    Boundary,
    CellDevice,
    DeviceRecord,
    NodeRecord,
    Phase,
    Plan,
    Run,
    Scenario,
)
from devit_profiling.sensor.local_sampler import LocalSampler


@dataclass
class Measured:
    """What one scenario has left."""

    phases: list[Phase] = field(default_factory=list)
    answers: list[AnswerRow] = field(default_factory=list)


class LocalMeasurement:
    """Takes an engine of this machine through a plan, while its power is sampled."""

    def __init__(self, name: str, submodel: int, plan: Plan, sampler: LocalSampler | None) -> None:
        """Keep who is measured, how, and by which running sampler; without one, times alone are measured."""
        self._name = name
        self._submodel = submodel
        self._plan = plan
        self._sampler = sampler
        self._inferences = 0
        self._busy_ns = 0

    def first_sample(self) -> None:
        """Wait for the sampler's first line.

        Raises:
            EnergyError: None comes in time.
        """
        sampler = self._sampler
        limit_s = _FIRST_LINE_S + 2 * self._plan.interval_ms / 1000
        end_s = time.monotonic() + limit_s
        while sampler is not None and not sampler.lines:
            if sampler.problem or time.monotonic() > end_s:
                why = sampler.problem or f"expected a power sample within {limit_s:.1f} s, found none"
                raise EnergyError(f"{why}: run {' '.join(sampler.command)} by hand")
            self.wait(0.1)

    def measure(self, scenario: Scenario, engine: EngineChild, found: Measured, watch: Callable[[str], None]) -> None:
        """Take one scenario through all its phases.

        Args:
            scenario: Its name.
            engine: Loaded.
            found: Gets every phase that has ended, and its answers.
            watch: Told each phase as it begins.

        Raises:
            EngineError: The engine fails.
        """
        plan = self._plan
        rests = [(SETTLE, plan.settle_s), (IDLE, plan.idle_s)]
        for kind, duration_s in rests:
            self._rest(scenario, kind, duration_s, found, watch)
        watch(WARM_UP)
        self._work(scenario, WARM_UP, OUTSIDE, self._warm_up(engine), found)
        for number in range(1, plan.windows + 1):
            watch(f"{WINDOW} {number} of {plan.windows}")
            self._work(scenario, WINDOW, number, [engine.run(plan.duration_s, self.wait)], found)
        if plan.has_idle_after:
            for kind, duration_s in ((SETTLE, plan.settle_s), (IDLE_AFTER, plan.idle_s)):
                self._rest(scenario, kind, duration_s, found, watch)

    def measure_idle(self, scenario: Scenario, found: Measured, watch: Callable[[str], None]) -> None:
        """Take windows in which nothing runs; arguments as of :meth:`measure`."""
        watch(SETTLE)
        self.wait(self._plan.settle_s)
        for number in range(1, self._plan.windows + 1):
            watch(f"{WINDOW} {number} of {self._plan.windows}")
            start = self._boundary(time.monotonic_ns())
            self.wait(self._plan.duration_s)
            found.phases.append(Phase(scenario.name, WINDOW, number, start, self._boundary(time.monotonic_ns())))

    def let_samples_arrive(self) -> None:
        """Wait for a sample behind the last phase, which would have no end without it."""
        self.wait(_TAIL_PERIODS * self._plan.interval_ms / 1000)

    def wait(self, duration_s: float) -> None:
        """Let time pass, and take the lines that come."""
        end_s = time.monotonic() + duration_s
        if self._sampler is not None:
            self._sampler.collect(duration_s)
        time.sleep(max(0.0, end_s - time.monotonic()))  # there is no sampler, or it has ended early

    def _warm_up(self, engine: EngineChild) -> Sequence[Stint]:
        plan = self._plan
        stints = [engine.run(plan.warm_up_s, self.wait)]
        while sum(len(stint.taken_us) for stint in stints) < plan.warm_up_answers:
            stints.append(engine.run(_MORE_S, self.wait))
        return stints

    def _rest(
        self, scenario: Scenario, kind: str, duration_s: float, found: Measured, watch: Callable[[str], None]
    ) -> None:
        if duration_s == 0:
            return
        watch(kind)
        start = self._boundary(time.monotonic_ns())
        self.wait(duration_s)
        found.phases.append(Phase(scenario.name, kind, OUTSIDE, start, self._boundary(time.monotonic_ns())))

    def _work(self, scenario: Scenario, kind: str, number: int, stints: Sequence[Stint], found: Measured) -> None:
        start = self._boundary(stints[0].start_ns)
        for stint in stints:
            sent_ns = stint.start_ns
            for taken_us in stint.taken_us:
                found.answers.append(self._row(scenario, number, taken_us, sent_ns))
                sent_ns += taken_us * 1000
            self._inferences += len(stint.taken_us)
            self._busy_ns += stint.end_ns - stint.start_ns
        found.phases.append(Phase(scenario.name, kind, number, start, self._boundary(stints[-1].end_ns)))

    def _boundary(self, at_ns: int) -> Boundary:
        """Mark a moment: engine, sampler and this process share a clock."""
        snapshot = Mark(at_ns, self._inferences, self._busy_ns)
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


def local_run(
    name: str,
    started: datetime,
    plan: Plan,
    device: DeviceRecord,
    scenarios: Sequence[Scenario],
    found: Measured,
    about: Ready | None,
    deadline_ms: float | None = None,
) -> Run:
    """Describe what was measured as a run of a cell with one device and no node.

    Args:
        name: Of the run.
        started: UTC.
        plan: As measured.
        device: This machine.
        scenarios: Those that were measured.
        found: What they have left.
        about: The engine; ``None`` where none ran.
        deadline_ms: Where there is one.
    """
    alone = CellDevice(device.name, device.submodel, LOCAL, len(found.answers), late=0, missing=0)
    bundle, shape = (about.bundle, about.image_shape) if about is not None else (NO_ENGINE, (0, 0, 0))
    node = NodeRecord(bundle, shape, 1, deadline_ms, frames={}, devices=(alone,))
    return Run(
        schema=SCHEMA,
        name=name,
        started_utc=f"{started:%Y-%m-%d %H:%M:%S}",
        software=version("devit"),
        pictures="one random image, again and again" if about is not None else NO_ENGINE,
        plan=plan,
        devices=(device,),
        scenarios=tuple(scenarios),
        phases=tuple(found.phases),
        before=node,
        after=node,
    )


NO_ENGINE = "none, as no engine ran"


def planned_s(plan: Plan) -> float:
    """Tell how long a scenario takes, without loading the engine."""
    rests = 2 if plan.has_idle_after else 1
    return rests * (plan.settle_s + plan.idle_s) + plan.warm_up_s + plan.windows * plan.duration_s


_FIRST_LINE_S = 5.0
_TAIL_PERIODS = 2.5
_MORE_S = 0.5
