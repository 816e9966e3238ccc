"""The baseline model on one device, beside what its parts cost in the cell: the claim of the paper, to be checked."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from devit_profiling.figures.cell import CellEnergy
from devit_profiling.figures.interval import mean_of
from devit_profiling.figures.joules import DeviceEnergy
from devit_profiling.record.record import WINDOW, BaselineRecord, Phase


class BaselineTimes(msgspec.Struct, frozen=True):
    """Inferences of the baseline model, back to back on golden images, over the windows of its scenario."""

    device: str
    engine: str
    inferences: int
    per_second: float
    mean_ms: float | None
    """Time in the engine by its inferences; absent where there was none."""
    p50_ms: float | None
    """Percentiles are means of the windows' percentiles."""
    p95_ms: float | None
    p99_ms: float | None


class AgainstBaseline(msgspec.Struct, frozen=True):
    """An answer of the cell beside one of the baseline model; each figure is absent where it was not measured.

    Energies are totals, idle power included.
    """

    device: str
    """Where the baseline model ran."""
    baseline_j: float | None
    """Per inference of it."""
    device_j: float | None
    """Of the same device, per inference of its submodel while all devices are asked."""
    devices_j: float | None
    """Of all named devices together, per answer."""
    whole_j: float | None
    """Of the cell with all that is known of it, per answer."""
    baseline_ms: float | None
    """Median, in the engine."""
    answer_ms: float | None
    """Median of an answer of the cell, from request to answer: network and fusion are in it."""


def baseline_times(record: BaselineRecord, phases: Sequence[Phase]) -> BaselineTimes:
    """Sum up the windows that have ended."""
    name = record.device
    ended = {phase.number: phase for phase in phases if phase.kind == WINDOW}
    windows = [window for window in record.windows if window.number in ended]
    spans = [(phase.start.snapshots[name], phase.end.snapshots[name]) for phase in ended.values()]
    inferences = sum(end.inferences - start.inferences for start, end in spans)
    busy_ns = sum(end.busy_ns - start.busy_ns for start, end in spans)
    total_s = sum(end.monotonic_ns - start.monotonic_ns for start, end in spans) / 1e9
    return BaselineTimes(
        device=name,
        engine=record.engine,
        inferences=inferences,
        per_second=inferences / total_s if total_s > 0 else 0.0,
        mean_ms=busy_ns / inferences / 1e6 if inferences > 0 else None,
        p50_ms=_mean([window.p50_ms for window in windows]),
        p95_ms=_mean([window.p95_ms for window in windows]),
        p99_ms=_mean([window.p99_ms for window in windows]),
    )


def against_baseline(
    times: BaselineTimes,
    alone: DeviceEnergy,
    together: Sequence[DeviceEnergy],
    cell: CellEnergy | None,
    answer_ms: float | None,
) -> AgainstBaseline:
    """Put the baseline model, and its device alone, beside the cell with all devices together and its median answer."""
    same = next((energy for energy in together if energy.device == times.device), None)
    whole = cell.whole if cell is not None else None
    has_more = cell is not None and any(part.kind != "device" and not part.left_out for part in cell.parts)
    return AgainstBaseline(
        device=times.device,
        baseline_j=mean_of(alone.total_j_per_inference),
        device_j=mean_of(same.total_j_per_inference) if same is not None else None,
        devices_j=mean_of(cell.total_j_per_answer) if cell is not None else None,
        whole_j=whole.total_j_per_answer.mean if whole is not None and has_more else None,
        baseline_ms=times.p50_ms,
        answer_ms=answer_ms,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
