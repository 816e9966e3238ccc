"""Profiles this machine without node and network: at rest, or with an engine of a bundle back to back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec import structs

from devit_contract.errors import EnergyError, EngineError
from devit_contract.service.progress import Progress
from devit_profiling.load.local_run import LocalMeasurement, wait_for_first_sample
from devit_profiling.load.schedule import Watch, check_windows
from devit_profiling.record.record import LOCAL, NO_POWER, CutShort, Plan, Scenario
from devit_profiling.record.run_folder import new_run, write_recording
from devit_profiling.sensor.local_sampler import LocalSampler


def measure_local(
    engine_command: Sequence[str],
    submodel: int,
    plan: Plan,
    out: Path,
    progress: Progress,
    *,
    calibrations: Path | None = None,
    sensor_command: Sequence[str] = (),
    board_choice: str = "auto",
    on_start: Callable[[], None] = lambda: None,
) -> Path:
    """Measure this machine, and write the raw files of the run; give its folder.

    With an engine, by a command of :func:`~devit_engines.bench.child.engine_command`: idle, warm-up, windows, idle, and
    without a sensor its times alone. Without an engine: windows at rest. Ctrl-C, or an engine that fails, ends the run
    early: what had been measured by then is kept. The calibration is ``local.json`` of ``calibrations``; the sensor is
    by default the one that this machine has. ``on_start`` is called when all is checked, before anything is measured.

    Raises:
        InputError: ``out`` cannot be written, or windows are too short for the joules of a machine with a sensor.
        ManifestError: The calibration breaks its format, or is of another board.
        EnergyError: There is neither a sensor nor an engine.
        EngineError: The engine cannot be loaded, or fails before the first phase has ended.
        KeyboardInterrupt: It was interrupted before that.
    """
    folder, started_utc = new_run(out, LOCAL)
    if not engine_command:
        plan = structs.replace(plan, has_idle_after=False)
    scenario = local_scenario(engine_command, submodel)
    with ExitStack() as stack:
        sampler, sensor_error = None, ""
        try:
            if not plan.has_power:
                raise EnergyError(NO_POWER)
            sampler = stack.enter_context(LocalSampler(plan.interval_ms, command=sensor_command))
            check_windows(plan)
            wait_for_first_sample(sampler, plan.interval_ms)
        except EnergyError as err:
            sensor_error = str(err)
            if not engine_command:
                raise EnergyError(f"{sensor_error}; --bundle DIR measures latency all the same") from err
        on_start()
        measurement = LocalMeasurement(LOCAL, submodel, plan, sampler, calibrations, board_choice)
        cut_short = _measure(measurement, scenario, engine_command, Watch(progress, plan, scenario))
    recording = measurement.recording(folder.name, started_utc, [scenario], sensor_error, cut_short)
    write_recording(folder, recording)
    return folder


def local_scenario(engine_command: Sequence[str], submodel: int) -> Scenario:
    """Describe what runs, for a plan's length and the report."""
    is_idle = not engine_command
    return Scenario(f"{LOCAL} at rest" if is_idle else LOCAL, 1 << submodel, LOCAL, is_idle=is_idle)


def _measure(
    measurement: LocalMeasurement, scenario: Scenario, engine_command: Sequence[str], watch: Watch
) -> CutShort | None:
    """Take all phases; an early end is returned if there is anything to keep, else raised."""
    cut_short = None
    try:
        if engine_command:
            measurement.measure(scenario, engine_command, watch.show)
        else:
            measurement.measure_idle(scenario, watch.show)
    except (KeyboardInterrupt, EngineError) as err:
        if not measurement.phases:
            raise
        cut_short = CutShort.by(err, scenario.name, measurement.phases)
    measurement.wait_for_tail()
    watch.finish()
    return cut_short
