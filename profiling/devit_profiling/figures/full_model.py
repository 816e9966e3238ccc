"""The undivided model on one device, beside what its parts cost in the cell: the claim of the paper, to be checked."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from devit_profiling.figures.cell import DEVICE, CellEnergy
from devit_profiling.figures.joules import DeviceEnergy
from devit_profiling.record.record import WINDOW, Phase, UndividedRecord


class UndividedTimes(msgspec.Struct, frozen=True):
    """Inferences of the undivided model, back to back on golden images, over the windows of its scenario."""

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


class AgainstUndivided(msgspec.Struct, frozen=True):
    """An answer of the cell beside one of the undivided model; each figure is absent where it was not measured.

    Energies are totals, idle power included.
    """

    device: str
    """Where the undivided model ran."""
    undivided_j: float | None
    """Per inference of it."""
    device_j: float | None
    """Of the same device, per inference of its submodel while all devices are asked."""
    devices_j: float | None
    """Of all named devices together, per answer."""
    whole_j: float | None
    """Of the cell with all that is known of it, per answer."""
    undivided_ms: float | None
    """Median, in the engine."""
    answer_ms: float | None
    """Median of an answer of the cell, from request to answer: network and fusion are in it."""


def undivided_times(record: UndividedRecord, phases: Sequence[Phase]) -> UndividedTimes:
    """Sum up the windows that have ended."""
    name = record.device
    ended = {phase.number: phase for phase in phases if phase.kind == WINDOW}
    windows = [window for window in record.windows if window.number in ended]
    spans = [(phase.start.snapshots[name], phase.end.snapshots[name]) for phase in ended.values()]
    inferences = sum(end.inferences - start.inferences for start, end in spans)
    busy_ns = sum(end.busy_ns - start.busy_ns for start, end in spans)
    total_s = sum(end.monotonic_ns - start.monotonic_ns for start, end in spans) / 1e9
    return UndividedTimes(
        device=name,
        engine=record.engine,
        inferences=inferences,
        per_second=inferences / total_s if total_s > 0 else 0.0,
        mean_ms=busy_ns / inferences / 1e6 if inferences > 0 else None,
        p50_ms=_mean([window.p50_ms for window in windows]),
        p95_ms=_mean([window.p95_ms for window in windows]),
        p99_ms=_mean([window.p99_ms for window in windows]),
    )


def against_undivided(
    times: UndividedTimes,
    alone: DeviceEnergy,
    together: Sequence[DeviceEnergy],
    cell: CellEnergy | None,
    answer_ms: float | None,
) -> AgainstUndivided:
    """Put the undivided model on a device beside the cell.

    Args:
        times: Of the undivided model.
        alone: Energy of the device that it ran on.
        together: Energies while the whole cell is asked.
        cell: Their sum.
        answer_ms: Median latency of the cell.
    """
    same = next((energy for energy in together if energy.device == times.device), None)
    return AgainstUndivided(
        device=times.device,
        undivided_j=_total(alone),
        device_j=_total(same) if same is not None else None,
        devices_j=cell.total_j_per_answer.mean if cell is not None and cell.total_j_per_answer is not None else None,
        whole_j=cell.whole.total_j_per_answer.mean
        if cell is not None and cell.whole is not None and any(p.kind != DEVICE and not p.left_out for p in cell.parts)
        else None,
        undivided_ms=times.p50_ms,
        answer_ms=answer_ms,
    )


def _total(energy: DeviceEnergy) -> float | None:
    return energy.total_j_per_inference.mean if energy.total_j_per_inference is not None else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
