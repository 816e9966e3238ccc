"""One time axis for all machines of a run: each device's clock mapped to that of the machine that asked.

At every edge of a phase a device is asked for its clock. Its reading lies between question and answer, so the middle of
the two is off by half the round trip at most. A straight line through all edges takes the clocks' drift along.
No watt and no joule depends on this: it serves to show devices side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from devit_profiling.record.record import Edge, Recording

MAX_DRIFT = 500e-6
"""No clock that Linux disciplines is off by more, adjtimex(2); a steeper line was fitted to noise."""


class ClockFit(msgspec.Struct, frozen=True):
    """How a device's monotonic clock maps to the asking machine's, and how well it is known."""

    marks: int
    """Edges that it was fitted to."""
    reference_ns: int
    """Moment on the device's clock."""
    offset_ns: int
    """The asking machine's clock less the device's at that moment."""
    drift: float
    """Change of the offset, in seconds per second."""
    residual_rms_us: float
    """Of the marks, from the line."""
    residual_max_us: float
    half_round_trip_us: float | None
    """Of the quickest mark: closer than this no offset is known. Absent in runs that did not note it; there the
    offset is also late by the time that the questions to all devices took."""

    def desk_ns(self, device_ns: int) -> int:
        """Map a moment of the device's clock to the asking machine's."""
        return device_ns + self.offset_ns + round(self.drift * (device_ns - self.reference_ns))


@dataclass(frozen=True)
class TimeAxis:
    """Moments of a run as time since its first recorded moment."""

    origin_ns: int
    """That moment, on the asking machine's clock."""
    clocks: Mapping[str, ClockFit]
    """By device."""

    @classmethod
    def of(cls, recording: Recording) -> TimeAxis:
        """Map all clocks of a run."""
        phases = recording.run.phases
        edges = [edge for phase in phases for edge in (phase.start, phase.end)]
        clocks = {device.name: fit_clock(edges, device.name) for device in recording.run.machines}
        moments = [edge.desk_ns for edge in edges]
        moments += [at for edge in edges for at, _ in edge.asked_ns.values()]
        moments += [row.sent_ns for row in recording.answers if row.sent_ns is not None]
        for name, clock in clocks.items():
            own = [line.monotonic_ns for line in recording.lines[name]]
            own += [edge.marks[name].monotonic_ns for edge in edges]
            moments += [clock.desk_ns(min(own))] if own else []
        return cls(min(moments, default=0), clocks)

    def desk_us(self, desk_ns: int) -> int:
        """Place a moment of the asking machine's clock, in microseconds."""
        return (desk_ns - self.origin_ns) // 1000

    def device_us(self, device: str, device_ns: int) -> int:
        """Place a moment of a device's clock, in microseconds."""
        return self.desk_us(self.clocks[device].desk_ns(device_ns))

    def device_s(self, device: str, device_ns: int) -> float:
        """Place a moment of a device's clock, in seconds."""
        return self.device_us(device, device_ns) / 1e6


def fit_clock(edges: Sequence[Edge], device: str) -> ClockFit:
    """Fit a device's clock to the marks at these edges, each counted once; quick ones weigh more."""
    marks = sorted({edge.marks[device].monotonic_ns: _bracket(edge, device) for edge in edges}.items())
    if not marks:
        return ClockFit(0, 0, 0, 0.0, 0.0, 0.0, None)
    reference_ns = marks[0][0]
    halves_us = [half_us for _, (_, half_us) in marks if half_us is not None]
    # Whole numbers first: a double holds nanoseconds since boot for a hundred days only.
    first_ns = marks[0][1][0] - reference_ns
    time_s = np.array([device_ns - reference_ns for device_ns, _ in marks], np.float64) / 1e9
    offset_us = np.array([middle_ns - device_ns - first_ns for device_ns, (middle_ns, _) in marks], np.float64) / 1e3
    weights = np.array([1.0 / max(1.0 if half_us is None else half_us, 1.0) for _, (_, half_us) in marks], np.float64)
    slope = 0.0
    if len(marks) > 2:
        # In microseconds per second, which is parts per million.
        slope = float(np.clip(np.polyfit(time_s, offset_us, 1, w=weights)[0], -1e6 * MAX_DRIFT, 1e6 * MAX_DRIFT))
    level_us = float(np.average(offset_us - slope * time_s, weights=weights**2))
    residual_us = offset_us - slope * time_s - level_us
    return ClockFit(
        marks=len(marks),
        reference_ns=reference_ns,
        offset_ns=first_ns + round(level_us * 1e3),
        drift=slope / 1e6,
        residual_rms_us=round(float(np.sqrt(np.mean(residual_us**2))), 3),
        residual_max_us=round(float(np.abs(residual_us).max()), 3),
        half_round_trip_us=min(halves_us) if halves_us else None,
    )


def _bracket(edge: Edge, device: str) -> tuple[int, float | None]:
    """Give the middle of a question on the asking machine's clock in ns, and half of the time it took in us."""
    if device not in edge.asked_ns:
        return edge.desk_ns, None
    before_ns, behind_ns = edge.asked_ns[device]
    return (before_ns + behind_ns) // 2, (behind_ns - before_ns) / 2e3
