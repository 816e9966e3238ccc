"""``power.csv`` and ``windows.csv``: a run's power and its windows as tables, a reading and a window a row.

An empty cell means "not measured".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from devit_profiling.figures.analysis import Report
from devit_profiling.figures.evidence import Evidence
from devit_profiling.figures.joules import DeviceEnergy, WindowFigures
from devit_profiling.figures.power import Power
from devit_profiling.record.clocks import TimeAxis
from devit_profiling.record.record import WINDOW, Phase
from devit_profiling.record.run_folder import csv_bytes
from devit_profiling.sensor.tegrastats import SIMULATED

POWER_FILE = "power.csv"
WINDOWS_FILE = "windows.csv"
POWER_HEADER = ("device", "t_s", "rail", "power_mw", "source")
WINDOWS_HEADER = (
    *("device", "scenario", "window", "t_s", "duration_s", "inferences", "answers"),
    *("scope", "total_j", "above_idle_j", "total_j_per_inference", "above_idle_j_per_inference"),
    *("mean_w", "peak_w", "idle_w", "samples", "coverage", "source", "over_current_events"),
)
SENSOR, NO_SENSOR = "sensor", ""


def power_csv(evidence: Evidence) -> Iterator[bytes]:
    """Write every reading of every rail, and the totals, on the common time axis."""
    return csv_bytes(POWER_HEADER, (row for power in evidence.machines for row in _power_rows(power, evidence.axis)))


def windows_csv(report: Report, evidence: Evidence) -> Iterator[bytes]:
    """Write a row per device, scenario and window."""
    rows: list[tuple[str | int, ...]] = []
    given = Counter((row.scenario, row.window) for row in evidence.recording.answers if row.is_answered)
    for scenario in report.scenarios:
        for energy in scenario.energies:
            windows = {window.number: window for window in energy.windows}
            for phase in evidence.phases(scenario.name):
                if phase.kind == WINDOW:
                    clocks = _clock_cells(phase, energy.device, evidence.axis)
                    joules = _energy_cells(energy, windows.get(phase.number))
                    answers = given[scenario.name, phase.number]
                    events = energy.over_current.get(phase.number)
                    counted = events.total if events is not None else ""
                    rows.append((energy.device, scenario.name, phase.number, *clocks, answers, *joules, counted))
    return csv_bytes(WINDOWS_HEADER, rows)


def _power_rows(power: Power, axis: TimeAxis) -> Iterator[tuple[str | int, ...]]:
    name, source = power.device.name, SIMULATED if power.is_simulated else SENSOR
    for at_ns, readings_mw in power.readings():
        time_s = f"{axis.device_s(name, at_ns):.6f}"
        for rail, power_mw in readings_mw.items():
            yield name, time_s, rail, power_mw, source


def _clock_cells(phase: Phase, device: str, axis: TimeAxis) -> tuple[str | int, ...]:
    start, end = phase.start.snapshots[device], phase.end.snapshots[device]
    duration_s = (end.monotonic_ns - start.monotonic_ns) / 1e9
    return f"{axis.device_s(device, start.monotonic_ns):.6f}", f"{duration_s:.6f}", end.inferences - start.inferences


def _energy_cells(energy: DeviceEnergy, window: WindowFigures | None) -> tuple[str | int, ...]:
    source = SIMULATED if energy.is_simulated else SENSOR
    if window is None:
        return (*("",) * 10, source if energy.scope else NO_SENSOR)
    # Joules are those of the covered part: where samples leave a gap, the inferences in it cost their share too.
    covered = window.inferences * window.energy.coverage
    return (
        energy.scope,
        _cell(window.energy.total_j),
        _cell(window.dynamic_j),
        _cell(_share(window.energy.total_j, covered)),
        _cell(_share(window.dynamic_j, covered)),
        _cell(window.energy.mean_w),
        _cell(window.energy.peak_w),
        _cell(energy.idle_w),
        window.energy.samples,
        f"{window.energy.coverage:.6f}",
        source,
    )


def _share(value: float | None, parts: float) -> float | None:
    return value / parts if value is not None and parts > 0 else None


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"
