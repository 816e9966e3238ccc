"""Measures a device in several of its power modes, and names the cheapest one that keeps a deadline.

It runs on the device itself, as root: ``nvpmodel`` needs it, and a request from the network shall never have it. The
engine is loaded anew in every mode, for a mode with a GPU in use may be refused. Modes that need a reboot are left
out and named. Whatever ends the sweep, the mode that was found is set again (:mod:`~devit_profiling.sweep.nvpmodel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from devit_contract.artefacts.files import make_folder, write_json
from devit_contract.artefacts.keys import check_name
from devit_contract.errors import EnergyError, InputError
from devit_contract.machine import PowerMode
from devit_contract.service.progress import Progress
from devit_contract.wire.messages import Description
from devit_engines.bench.child import EngineChild
from devit_engines.bench.messages import Ready
from devit_profiling.load.local_run import LocalMeasurement, Measured, local_run, planned_s
from devit_profiling.load.watch import Watch
from devit_profiling.record.calibration import Calibration, find_calibration
from devit_profiling.record.record import DeviceRecord, Plan, Recording, Scenario
from devit_profiling.record.run_folder import write_recording
from devit_profiling.report.report import write_report
from devit_profiling.sensor.local_sampler import LocalSampler
from devit_profiling.sweep.nvpmodel import NvpModel, RebootError, mode_kept
from devit_profiling.sweep.verdict import SWEEP_FILE, Sweep, judge


@dataclass(frozen=True)
class Bench:
    """What is swept, and by what."""

    name: str
    """Of the device, as the fleet calls it: calibrations are found by it."""
    submodel: int
    engine_command: Sequence[str]
    """Runs the engine, as :mod:`devit_engines.bench.messages` says."""
    nvpmodel: NvpModel
    state: Path
    """Folder that remembers the mode that was found."""
    sensor_command: Sequence[str] = ()
    """By default the one that this machine has."""
    calibrations: Path | None = None


def sweep(
    bench: Bench, modes: Sequence[int], deadline_ms: float, plan: Plan, out: Path, progress: Progress
) -> tuple[Path, Sweep]:
    """Sweep.

    Args:
        bench: The device.
        modes: Numbers of its power modes, each once, in the order in which they are measured.
        deadline_ms: Which the 99th percentile of the inferences shall keep.
        plan: Phases and their lengths, in every mode.
        out: Folder in which the run's own folder is made.
        progress: Told the mode, the seconds that are done and planned, and the phase.

    Returns:
        The run's folder, and the verdict. After Ctrl-C it is of the modes that were measured whole.

    Raises:
        InputError: A mode is there twice, or ``out`` or the state cannot be written.
        EnergyError: There is no sensor or no ``nvpmodel``, a mode is unknown, all need a reboot, or the mode that was
            found cannot be set again.
        EngineError: The engine cannot be loaded or run.
        KeyboardInterrupt: It was interrupted before the first mode was measured whole.
    """
    check_name(bench.name, "--name")
    if not modes or len(set(modes)) != len(modes):
        raise InputError(f"expected power modes, each once, found {', '.join(map(str, modes)) or 'none'}: list them")
    make_folder(out)  # told now, not after minutes of measuring
    started = datetime.now(timezone.utc)
    with LocalSampler(plan.interval_ms, command=bench.sensor_command) as sampler:
        measurement = LocalMeasurement(bench.name, bench.submodel, plan, sampler)
        run = _Sweeping(bench, plan, measurement, progress)
        with mode_kept(bench.nvpmodel, bench.state) as found:
            is_whole = run.over(modes)
        lines, cost, command, problem = tuple(sampler.lines), sampler.cost, sampler.command, sampler.problem
    if run.about is None:
        raise EnergyError("; ".join(run.refused.values()))
    about = Description(
        run.about.board_model, run.about.l4t, run.about.engine, " ".join(command), run.about.inference_threads
    )
    device = DeviceRecord(bench.name, bench.submodel, about, problem, cost, run.calibration)
    folder = out / f"{started:%Y%m%dT%H%M%SZ}-{bench.name}-sweep"
    scenarios = tuple(run.scenarios.values())
    record = local_run(folder.name, started, plan, device, scenarios, run.measured, run.about, deadline_ms)
    write_recording(folder, Recording(record, {bench.name: lines}, tuple(run.measured.answers)))
    verdict = judge(write_report(folder), list(run.scenarios), run.refused, found, deadline_ms, is_whole=is_whole)
    write_json(folder / SWEEP_FILE, verdict)
    return folder, verdict


class _Sweeping:
    """What has been gathered."""

    def __init__(self, bench: Bench, plan: Plan, measurement: LocalMeasurement, progress: Progress) -> None:
        self.measured = Measured()
        self.scenarios: dict[PowerMode, Scenario] = {}
        self.refused: dict[int, str] = {}
        self.about: Ready | None = None
        self.calibration: Calibration | None = None
        self._bench = bench
        self._plan = plan
        self._measurement = measurement
        self._progress = progress

    def over(self, modes: Sequence[int]) -> bool:
        """Measure each mode; false if that was interrupted after at least one."""
        self._measurement.first_sample()
        try:
            for number in modes:
                try:
                    mode = self._bench.nvpmodel.set(number)
                except RebootError as err:
                    self.refused[number] = str(err)
                else:
                    self._measure(mode)
        except KeyboardInterrupt:
            if not self.scenarios:
                raise
            return False
        return True

    def _measure(self, mode: PowerMode) -> None:
        scenario = Scenario(str(mode), 1 << self._bench.submodel, self._bench.name)
        watch = Watch(self._progress, str(mode), planned_s(self._plan))
        with EngineChild(self._bench.engine_command) as engine:
            watch.show("loading the engine")
            about = engine.ready(self._measurement.wait)
            if self.about is None:
                self.calibration = find_calibration(self._bench.calibrations, self._bench.name, about.board_model)
            found = Measured()
            self._measurement.measure(scenario, engine, found, watch.show)
            self._measurement.let_samples_arrive()
        # All at once: an interrupted mode leaves nothing.
        self.about = about
        self.measured.phases += found.phases
        self.measured.answers += found.answers
        self.scenarios[mode] = scenario
        watch.finish()
