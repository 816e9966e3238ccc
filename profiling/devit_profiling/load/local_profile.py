"""Profiles this machine by itself, without node and network: at rest, or with an engine of a bundle back to back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from msgspec import structs

from devit_contract.artefacts.files import make_folder
from devit_contract.errors import EnergyError, EngineError
from devit_contract.machine import board_model
from devit_contract.service.progress import Progress
from devit_contract.wire.messages import Description
from devit_engines.bench.child import EngineChild, engine_command
from devit_engines.bench.messages import Ready
from devit_profiling.figures.analysis import Report
from devit_profiling.load.local_run import NO_ENGINE, LocalMeasurement, Measured, local_run
from devit_profiling.load.local_run import planned_s as engine_s
from devit_profiling.load.watch import Watch
from devit_profiling.record.calibration import Calibration, find_calibration
from devit_profiling.record.record import LOCAL, CutShort, DeviceRecord, Plan, Recording, Scenario
from devit_profiling.record.run_folder import write_recording
from devit_profiling.report.report import write_report
from devit_profiling.sensor.local_sampler import LocalSampler


@dataclass(frozen=True)
class LocalEngine:
    """What runs back to back."""

    bundle: Path
    """Its folder."""
    submodel: int = 0
    store: Path | None = None
    """Engine store; by default the user's."""
    threads: int = 1
    """CPU threads of ONNX Runtime."""
    kind: str = "built"
    """Or ``busy:MS``, as ``devit_engines.bench.worker`` takes it."""

    @property
    def command(self) -> Sequence[str]:
        """Runs it."""
        return engine_command(self.bundle, self.submodel, self.store, self.threads, self.kind)


def measure_local(
    engine: LocalEngine | None,
    plan: Plan,
    out: Path,
    progress: Progress,
    *,
    calibrations: Path | None = None,
    sensor_command: Sequence[str] = (),
) -> tuple[Path, Report]:
    """Measure this machine, and write the report.

    With an engine: idle, warm-up, windows, idle, and without a sensor its times alone. Without an engine: windows at
    rest. Ctrl-C, or an engine that fails, ends the run early: what had been measured by then is kept.

    Args:
        engine: What runs; nothing by default.
        plan: Phases and their lengths.
        out: Folder in which the run's own folder is made.
        progress: Told the seconds that are done and planned, and the phase.
        calibrations: Folder with the calibration ``local.json``; none by default.
        sensor_command: By default the one that this machine has.

    Returns:
        The run's folder and the report; that of a run which was cut short tells so.

    Raises:
        InputError: ``out`` cannot be written.
        ManifestError: The calibration breaks its format, or is of another board.
        EnergyError: There is neither a sensor nor an engine.
        EngineError: The engine cannot be loaded, or fails before the first phase has ended.
        KeyboardInterrupt: It was interrupted before that.
    """
    make_folder(out)  # told now, not after minutes of measuring
    started = datetime.now(timezone.utc)
    if engine is None:
        plan = structs.replace(plan, has_idle_after=False)
    with ExitStack() as stack:
        sampler, problem = None, ""
        try:
            sampler = stack.enter_context(LocalSampler(plan.interval_ms, command=sensor_command))
            LocalMeasurement(LOCAL, 0, plan, sampler).first_sample()
        except EnergyError as err:
            problem = str(err)
            if engine is None:
                raise EnergyError(f"{problem}; --bundle DIR measures latency all the same") from err
        run = _LocalRun(engine, plan, sampler, calibrations)
        cut_short = run.measure(progress)
    device = DeviceRecord(
        name=LOCAL,
        submodel=engine.submodel if engine is not None else 0,
        description=_description(run.about, sampler),
        sensor_problem=problem or (sampler.problem if sampler is not None else ""),
        sampling=sampler.cost if sampler is not None else None,
        calibration=run.calibration,
    )
    folder = out / f"{started:%Y%m%dT%H%M%SZ}-{LOCAL}"
    record = local_run(folder.name, started, plan, device, [run.scenario], run.found, run.about)
    lines = tuple(sampler.lines) if sampler is not None else ()
    recording = Recording(structs.replace(record, cut_short=cut_short), {LOCAL: lines}, tuple(run.found.answers))
    write_recording(folder, recording)
    return folder, write_report(folder)


def planned_s(plan: Plan, engine: LocalEngine | None) -> float:
    """Tell how long it takes, without loading the engine."""
    return engine_s(plan) if engine is not None else plan.settle_s + plan.windows * plan.duration_s


class _LocalRun:
    """What has been gathered."""

    def __init__(
        self, engine: LocalEngine | None, plan: Plan, sampler: LocalSampler | None, calibrations: Path | None
    ) -> None:
        submodel = engine.submodel if engine is not None else 0
        name = LOCAL if engine is not None else f"{LOCAL} at rest"
        self.scenario = Scenario(name, 1 << submodel, LOCAL, is_idle=engine is None)
        self.found = Measured()
        self.about: Ready | None = None
        self.calibration: Calibration | None = None
        self._engine = engine
        self._plan = plan
        self._measurement = LocalMeasurement(LOCAL, submodel, plan, sampler)
        self._calibrations = calibrations

    def measure(self, progress: Progress) -> CutShort | None:
        """Take all phases; what ends that early is told, if there is anything to keep."""
        watch = Watch(progress, self.scenario.name, planned_s(self._plan, self._engine))
        cut_short = None
        try:
            if self._engine is None:
                self._calibrate(board_model())
                self._measurement.measure_idle(self.scenario, self.found, watch.show)
            else:
                self._run(self._engine, watch.show)
        except (KeyboardInterrupt, EngineError) as err:
            if not self.found.phases:
                raise
            is_interrupt = isinstance(err, KeyboardInterrupt)
            why = "Ctrl-C or SIGTERM" if is_interrupt else " ".join(str(err).split())
            done = max(phase.number for phase in self.found.phases)
            cut_short = CutShort(why, is_interrupt, self.scenario.name, done)
        self._measurement.let_samples_arrive()
        watch.finish()
        return cut_short

    def _run(self, engine: LocalEngine, watch: Callable[[str], None]) -> None:
        with EngineChild(engine.command) as child:
            watch("loading the engine")
            self.about = child.ready(self._measurement.wait)
            self._calibrate(self.about.board_model)
            self._measurement.measure(self.scenario, child, self.found, watch)

    def _calibrate(self, model: str) -> None:
        self.calibration = find_calibration(self._calibrations, LOCAL, model)


def _description(about: Ready | None, sampler: LocalSampler | None) -> Description:
    sensor = " ".join(sampler.command) if sampler is not None else ""
    if about is None:
        return Description(board_model(), "", NO_ENGINE, sensor, 0)
    return Description(about.board_model, about.l4t, about.engine, sensor, about.inference_threads)
