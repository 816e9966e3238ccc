"""Windows that are repeated until the temperature settles, and how the last of them differ from the first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from devit_contract.wire.messages import PowerLine
from devit_profiling.figures.answers import AnswerStats
from devit_profiling.figures.cell import CellEnergy
from devit_profiling.figures.conditions import conditions
from devit_profiling.figures.interval import Estimate
from devit_profiling.figures.joules import DeviceEnergy
from devit_profiling.record.record import Phase, Plan, Scenario
from devit_profiling.sensor.sample import StampedSample
from devit_profiling.sensor.sensor_lines import parse_sensor_log

SETTLED_C_PER_MIN = 0.5
"""Largest slope of a temperature that counts as settled. A board that warms with a time constant of 1.5 min, as the
simulated ones do, has 0.75 C left to go then: less than 0.4 % of its power."""
LAST_WINDOWS, LAST_S = 3, 30.0
"""The slope is that of the last 3 windows and of at least 30 s: a zone is read in steps of up to 0.5 C."""
CELL = "cell"
_READINGS = 100

_Stamped = TypeVar("_Stamped", PowerLine, StampedSample)


class ThermalFigures(msgspec.Struct, frozen=True):
    """A device, or the cell, in some of the windows."""

    temperature_c: float | None
    """Highest reading of the device's zone; absent where it reports none, and for a cell."""
    joules: Estimate | None
    """Total, per inference of a device or per answer of the cell; absent where it was not measured."""
    p50_ms: float | None
    """Of the arrival of a device's features, or of the cell's answers."""
    p99_ms: float | None


class ThermalComparison(msgspec.Struct, frozen=True):
    """A device, or the cell, in the first and in the last windows."""

    name: str
    scope: str
    """What the joules cover; empty where there are none."""
    is_simulated: bool
    zone: str
    """Whose temperature it is; empty where none is reported."""
    slope_c_per_min: float | None
    """Of the temperature over the last windows."""
    cold: ThermalFigures
    hot: ThermalFigures
    resolution_j: float | None
    """What the sensor's steps leave open of the joules."""


class Sustained(msgspec.Struct, frozen=True):
    """All devices together, until their temperature settled or time was over."""

    is_settled: bool
    windows_s: float
    """All windows together."""
    cold_windows: tuple[int, ...]
    hot_windows: tuple[int, ...]
    devices: tuple[ThermalComparison, ...]
    cell: ThermalComparison


@dataclass(frozen=True)
class Part:
    """Figures of a scenario from some of its windows alone."""

    windows: Sequence[Phase]
    answers: AnswerStats
    energies: Sequence[DeviceEnergy]
    cell: CellEnergy


def is_sustained(scenario: Scenario, plan: Plan) -> bool:
    """Check whether a scenario's windows are repeated until the temperature settles."""
    return plan.sustained_s is not None and not scenario.device


def cold_and_hot(windows: Sequence[Phase], plan: Plan) -> tuple[Sequence[Phase], Sequence[Phase]]:
    """Give the first and the last windows, none in both; empty where there are fewer than two."""
    count = min(_span(plan), len(windows) // 2)
    return windows[:count], windows[len(windows) - count :]


def is_settled(windows: Sequence[Phase], lines: Mapping[str, Sequence[PowerLine]], plan: Plan) -> bool:
    """Check whether all temperatures were steady over the last of the windows that have ended.

    They are not before there are enough windows for cold and hot ones, nor where no device reports a temperature.
    """
    if len(windows) < 2 * _span(plan):
        return False
    last = windows[-_span(plan) :]
    return _is_flat(
        _slope_c_per_min(parse_sensor_log(_thinned(own, last, device)).samples, last, device)
        for device, own in lines.items()
    )


def sustained(
    windows: Sequence[Phase], samples: Mapping[str, Sequence[StampedSample]], plan: Plan, cold: Part, hot: Part
) -> Sustained:
    """Put the first windows of a scenario beside the last ones, both as :func:`cold_and_hot` chooses them."""
    devices = tuple(_devices(samples, cold, hot))
    return Sustained(
        # The same readings as :func:`is_settled` has decided by, while they were measured.
        is_settled=len(windows) >= 2 * _span(plan) and _is_flat(device.slope_c_per_min for device in devices),
        windows_s=sum(window.duration_s for window in windows),
        cold_windows=tuple(window.number for window in cold.windows),
        hot_windows=tuple(window.number for window in hot.windows),
        devices=devices,
        cell=_cell(cold, hot),
    )


def _span(plan: Plan) -> int:
    return max(LAST_WINDOWS, math.ceil(LAST_S / plan.duration_s))


def _is_flat(slopes_c_per_min: Iterable[float | None]) -> bool:
    """Check whether temperatures are reported and all are steady; devices without one do not count."""
    known = [abs(slope) for slope in slopes_c_per_min if slope is not None]
    return bool(known) and max(known) <= SETTLED_C_PER_MIN


def _thinned(stamped: Sequence[_Stamped], windows: Sequence[Phase], device: str) -> Sequence[_Stamped]:
    """Choose some hundred readings of neighbouring windows: enough for a line, and quick while a cell is measured."""
    (start_ns, _), (_, end_ns) = windows[0].span_ns(device), windows[-1].span_ns(device)
    inside = [each for each in stamped if start_ns <= each.monotonic_ns < end_ns]
    return inside[:: max(1, len(inside) // _READINGS)]


def _slope_c_per_min(samples: Sequence[StampedSample], windows: Sequence[Phase], device: str) -> float | None:
    return conditions(samples, windows, device).temperature_slope_c_per_min


def _devices(samples: Mapping[str, Sequence[StampedSample]], cold: Part, hot: Part) -> Iterator[ThermalComparison]:
    for first, last in zip(cold.energies, hot.energies, strict=True):
        chosen = _thinned(samples[last.device], hot.windows, last.device)
        yield ThermalComparison(
            name=last.device,
            scope=last.scope,
            is_simulated=last.is_simulated,
            zone=last.conditions.zone,
            slope_c_per_min=_slope_c_per_min(chosen, hot.windows, last.device),
            cold=_device_figures(first, cold.answers),
            hot=_device_figures(last, hot.answers),
            resolution_j=last.resolution_j_per_inference,
        )


def _device_figures(energy: DeviceEnergy, answers: AnswerStats) -> ThermalFigures:
    times = next((device for device in answers.devices if device.device == energy.device), None)
    return ThermalFigures(
        temperature_c=energy.conditions.temperature_c,
        joules=energy.total_j_per_inference,
        p50_ms=times.arrival_p50_ms if times is not None else None,
        p99_ms=times.arrival_p99_ms if times is not None else None,
    )


def _cell(cold: Part, hot: Part) -> ThermalComparison:
    first, last = (
        ThermalFigures(None, part.cell.total_j_per_answer, part.answers.p50_ms, part.answers.p99_ms)
        for part in (cold, hot)
    )
    return ThermalComparison(
        name=CELL,
        scope=hot.cell.scope if not hot.cell.not_measured else "",
        is_simulated=hot.cell.is_simulated,
        zone="",
        slope_c_per_min=None,
        cold=first,
        hot=last,
        resolution_j=hot.cell.resolution_j_per_answer,
    )
