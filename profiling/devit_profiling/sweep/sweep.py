"""Measures a device in several of its power modes, and names the cheapest one that keeps a deadline.

It runs on the device itself, as root: ``nvpmodel`` needs it, and a request from the network shall never have it. The
engine is loaded again in every mode, since a mode may be refused while the GPU is in use. Modes that need a reboot are
left out and named. However the sweep ends, the mode before it is restored (:mod:`~devit_profiling.sweep.nvpmodel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devit_contract.artefacts.files import write_json
from devit_contract.artefacts.keys import check_name
from devit_contract.errors import EnergyError, InputError
from devit_contract.machine import PowerMode
from devit_contract.service.progress import Progress
from devit_profiling.load.local_run import LocalMeasurement, wait_for_first_sample
from devit_profiling.load.schedule import Watch, check_windows
from devit_profiling.record.record import Plan, Scenario
from devit_profiling.record.run_folder import new_run, write_recording
from devit_profiling.report.report import write_report
from devit_profiling.sensor.local_sampler import LocalSampler
from devit_profiling.sweep.nvpmodel import NvpModel, RebootError, mode_kept
from devit_profiling.sweep.verdict import SWEEP_FILE, Sweep, judge


@dataclass(frozen=True)
class SweepTarget:
    """The device of a sweep, and the programs that run on it."""

    name: str
    """Name of the device in the fleet: calibrations are found by it."""
    submodel: int
    engine_command: Sequence[str]
    """Runs the engine, as :mod:`devit_engines.bench.child` says."""
    nvpmodel: NvpModel
    state: Path
    """Folder that keeps the mode before the sweep."""
    sensor_command: Sequence[str] = ()
    """Empty: the sensor of this machine."""
    calibrations: Path | None = None
    board_choice: str = "auto"
    """Which board it is, where its device tree does not say."""


def sweep(
    target: SweepTarget, modes: Sequence[int], deadline_ms: float, plan: Plan, out: Path, progress: Progress
) -> tuple[Path, Sweep]:
    """Measure the device in each of these power modes, in their order, and judge them by the deadline.

    The deadline is that of the 99th percentile of the inferences.

    Returns:
        The run's folder, and the verdict. After Ctrl-C the verdict covers the modes that were measured to their end.

    Raises:
        InputError: A mode is listed twice, windows are too short for joules, or ``out`` or the state cannot be written.
        EnergyError: There is no sensor or no ``nvpmodel``, a mode is unknown, all need a reboot, or the mode before
            the sweep cannot be restored.
        EngineError: The engine cannot be loaded or run.
        KeyboardInterrupt: The sweep was interrupted before the first mode was measured to its end.
    """
    check_name(target.name, "--name")
    if not modes or len(set(modes)) != len(modes):
        raise InputError(f"expected power modes, each once, found {', '.join(map(str, modes)) or 'none'}: list them")
    check_windows(plan)
    folder, started_utc = new_run(out, f"{target.name}-sweep")
    with LocalSampler(plan.interval_ms, command=target.sensor_command) as sampler:
        measurement = LocalMeasurement(
            target.name, target.submodel, plan, sampler, target.calibrations, target.board_choice
        )
        scenarios: dict[PowerMode, Scenario] = {}
        refused: dict[int, str] = {}
        is_whole = True
        with mode_kept(target.nvpmodel, target.state) as found:
            wait_for_first_sample(sampler, plan.interval_ms)
            try:
                for number in modes:
                    try:
                        mode = target.nvpmodel.set(number)
                    except RebootError as err:
                        refused[number] = str(err)
                    else:
                        scenarios[mode] = _measure(mode, target, plan, measurement, progress)
            except KeyboardInterrupt:
                if not scenarios:
                    raise
                is_whole = False
        recording = measurement.recording(folder.name, started_utc, list(scenarios.values()))
    if not scenarios:
        raise EnergyError("; ".join(refused.values()))
    write_recording(folder, recording)
    verdict = judge(write_report(folder), list(scenarios), refused, found, deadline_ms, is_whole=is_whole)
    write_json(folder / SWEEP_FILE, verdict)
    return folder, verdict


def _measure(
    mode: PowerMode, target: SweepTarget, plan: Plan, measurement: LocalMeasurement, progress: Progress
) -> Scenario:
    scenario = Scenario(str(mode), 1 << target.submodel, target.name)
    watch = Watch(progress, plan, scenario)
    measurement.measure(scenario, target.engine_command, watch.show)
    measurement.wait_for_tail()
    watch.finish()
    return scenario
