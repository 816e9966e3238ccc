"""``power.csv`` and ``windows.csv``: a run's power and its windows as tables, a reading and a window a row.

An empty cell is a figure that there is none of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from devit_profiling.figures.analysis import Report
from devit_profiling.figures.joules import DeviceEnergy, WindowFigures
from devit_profiling.figures.power import Power
from devit_profiling.record.clocks import TimeAxis
from devit_profiling.record.record import WINDOW, Phase, Recording
from devit_profiling.record.run_folder import csv_bytes
from devit_profiling.sensor.tegrastats import SIMULATED

POWER_FILE = "power.csv"
WINDOWS_FILE = "windows.csv"
POWER_HEADER = ("device", "t_s", "rail", "power_mw", "source")
WINDOWS_HEADER = (
    "device",
    "scenario",
    "window",
    "t_s",
    "duration_s",
    "inferences",
    "answers",
    "scope",
    "total_j",
    "above_idle_j",
    "total_j_per_inference",
    "above_idle_j_per_inference",
    "mean_w",
    "peak_w",
    "idle_w",
    "samples",
    "coverage",
    "source",
)
TOTAL = "total"
"""Name of the sum that the board's rule makes, in the column ``rail``."""
SENSOR, NO_SENSOR = "sensor", ""


def power_csv(recording: Recording, powers: Sequence[Power]) -> bytes:
    """Write every reading of every rail, and the totals, on the common time axis."""
    axis = TimeAxis.of(recording)
    return csv_bytes(POWER_HEADER, (row for power in powers for row in _power_rows(power, axis)))


def windows_csv(report: Report, recording: Recording) -> bytes:
    """Write a row per device, scenario and window."""
    return csv_bytes(WINDOWS_HEADER, _window_rows(report, recording))


def _power_rows(power: Power, axis: TimeAxis) -> Iterator[tuple[str | int, ...]]:
    name, source = power.device.name, SIMULATED if power.is_simulated else SENSOR
    for sample in power.log.samples:
        time_s = f"{axis.device_s(name, sample.monotonic_ns):.6f}"
        rails_mw = sample.sample.rails_mw
        for rail, power_mw in rails_mw.items():
            yield name, time_s, rail, power_mw, source
        total = power.total_mw(rails_mw)
        if total is not None:
            yield name, time_s, TOTAL, total, source


def _window_rows(report: Report, recording: Recording) -> Iterator[tuple[str | int, ...]]:
    axis = TimeAxis.of(recording)
    given: dict[tuple[str, int], int] = {}
    for row in recording.answers:
        place = (row.scenario, row.window)
        given[place] = given.get(place, 0) + row.is_answered
    for scenario in report.scenarios:
        phases = [phase for phase in recording.run.phases if phase.scenario == scenario.name and phase.kind == WINDOW]
        for energy in scenario.energies:
            windows = {window.number: window for window in energy.windows}
            for phase in phases:
                answers = given.get((scenario.name, phase.number), 0)
                yield (
                    energy.device,
                    scenario.name,
                    phase.number,
                    *_clock_cells(phase, energy.device, axis),
                    answers,
                    *_energy_cells(energy, windows.get(phase.number)),
                )


def _clock_cells(phase: Phase, device: str, axis: TimeAxis) -> tuple[str | int, ...]:
    start, end = phase.start.snapshots[device], phase.end.snapshots[device]
    duration_s = (end.monotonic_ns - start.monotonic_ns) / 1e9
    return f"{axis.device_s(device, start.monotonic_ns):.6f}", f"{duration_s:.6f}", end.inferences - start.inferences


def _energy_cells(energy: DeviceEnergy, window: WindowFigures | None) -> tuple[str | int, ...]:
    source = SIMULATED if energy.is_simulated else SENSOR
    if window is None:
        return (*("",) * 10, source if energy.scope else NO_SENSOR)
    # Joules are those of the covered part: where samples leave a gap, the inferences in it cost their share too.
    covered = window.inferences * window.coverage
    return (
        energy.scope,
        _cell(window.total_j),
        _cell(window.dynamic_j),
        _cell(_share(window.total_j, covered)),
        _cell(_share(window.dynamic_j, covered)),
        _cell(window.mean_w),
        _cell(window.peak_w),
        _cell(energy.idle_w),
        window.samples,
        f"{window.coverage:.6f}",
        source,
    )


def _share(value: float | None, parts: float) -> float | None:
    return value / parts if value is not None and parts > 0 else None


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"
