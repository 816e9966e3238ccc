"""One time axis for all machines of a run: each device's clock mapped to the host's.

The host is the machine that runs ``profile``. At every boundary of a phase it asks each device for its clock. The
device reads it between question and answer, so the middle of the two is off by half the round trip at most. A straight
line through all boundaries follows the clocks' drift. No watt and no joule depends on this: it serves to show devices
side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from devit_profiling.record.record import Boundary, Recording

MAX_DRIFT = 500e-6
"""No clock that Linux disciplines is off by more, adjtimex(2); a steeper line was fitted to noise."""


class ClockFit(msgspec.Struct, frozen=True):
    """The map from a device's monotonic clock to the host's, and its uncertainty."""

    snapshots: int
    """Number of snapshots that it was fitted to."""
    reference_ns: int
    """Moment on the device's clock."""
    offset_ns: int
    """The host's clock less the device's at that moment."""
    drift: float
    """Change of the offset, in seconds per second."""
    residual_rms_us: float
    """Distance of the snapshots from the line."""
    residual_max_us: float
    half_round_trip_us: float | None
    """Of the quickest snapshot: the offset is known no better than this. Absent for the node's machine, which is the
    host."""

    def host_ns(self, device_ns: int) -> int:
        """Map a moment of the device's clock to the host's."""
        return device_ns + self.offset_ns + round(self.drift * (device_ns - self.reference_ns))


@dataclass(frozen=True)
class TimeAxis:
    """Moments of a run as time since its first recorded moment."""

    origin_ns: int
    """The first recorded moment, on the host's clock."""
    clocks: Mapping[str, ClockFit]
    """Each device's clock."""

    @classmethod
    def of(cls, recording: Recording) -> TimeAxis:
        """Fit the clocks of all machines of a run."""
        boundaries = recording.run.boundaries
        clocks = {device.name: fit_clock(boundaries, device.name) for device in recording.run.machines}
        moments = [boundary.host_ns for boundary in boundaries]
        moments += [at for boundary in boundaries for at, _ in boundary.asked_ns.values()]
        moments += [row.sent_ns for row in recording.answers]
        for name, clock in clocks.items():
            own = [line.monotonic_ns for line in recording.lines[name]]
            own += [boundary.snapshots[name].monotonic_ns for boundary in boundaries]
            moments += [clock.host_ns(min(own))] if own else []
        return cls(min(moments, default=0), clocks)

    def host_us(self, host_ns: int) -> int:
        """Place a moment of the host's clock, in microseconds."""
        return (host_ns - self.origin_ns) // 1000

    def device_us(self, device: str, device_ns: int) -> int:
        """Place a moment of a device's clock, in microseconds."""
        return self.host_us(self.clocks[device].host_ns(device_ns))

    def device_s(self, device: str, device_ns: int) -> float:
        """Place a moment of a device's clock, in seconds."""
        return self.device_us(device, device_ns) / 1e6


def fit_clock(boundaries: Sequence[Boundary], device: str) -> ClockFit:
    """Fit a device's clock to the snapshots at these boundaries, each counted once; quick ones weigh more."""
    snapshots = sorted(
        {boundary.snapshots[device].monotonic_ns: _bracket(boundary, device) for boundary in boundaries}.items()
    )
    if not snapshots:
        return ClockFit(0, 0, 0, 0.0, 0.0, 0.0, None)
    # Whole numbers first: a double holds nanoseconds since boot for a hundred days only.
    devices_ns = np.array([device_ns for device_ns, _ in snapshots], np.int64)
    offsets_ns = np.array([middle_ns - device_ns for device_ns, (middle_ns, _) in snapshots], np.int64)
    reference_ns, first_ns = int(devices_ns[0]), int(offsets_ns[0])
    time_s = (devices_ns - reference_ns) / 1e9
    offset_us = (offsets_ns - first_ns) / 1e3
    halves_us = [half_us for _, (_, half_us) in snapshots if half_us is not None]
    weights = np.array([1.0 / max(half_us or 0.0, 1.0) for _, (_, half_us) in snapshots], np.float64)
    slope = 0.0
    if len(snapshots) > 2:
        # In microseconds per second, which is parts per million.
        slope = float(np.clip(np.polyfit(time_s, offset_us, 1, w=weights)[0], -1e6 * MAX_DRIFT, 1e6 * MAX_DRIFT))
    level_us = float(np.average(offset_us - slope * time_s, weights=weights**2))
    residual_us = offset_us - slope * time_s - level_us
    return ClockFit(
        snapshots=len(snapshots),
        reference_ns=reference_ns,
        offset_ns=first_ns + round(level_us * 1e3),
        drift=slope / 1e6,
        residual_rms_us=round(float(np.sqrt(np.mean(residual_us**2))), 3),
        residual_max_us=round(float(np.abs(residual_us).max()), 3),
        half_round_trip_us=min(halves_us) if halves_us else None,
    )


def _bracket(boundary: Boundary, device: str) -> tuple[int, float | None]:
    """Give the middle of a question on the host's clock in ns, and half of the time it took in us."""
    if device not in boundary.asked_ns:
        return boundary.host_ns, None
    before_ns, after_ns = boundary.asked_ns[device]
    return (before_ns + after_ns) // 2, (after_ns - before_ns) / 2e3
