"""From power samples to joules: one time window, integrated, with what it is worth.

Times are seconds on the monotonic clock of the machine that took the samples; only the instantaneous readings of
a board's total are used. Nothing is extrapolated: what the samples do not cover is left out, and the result says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float64Array
from devit_contract.errors import EnergyError

BoolArray = npt.NDArray[np.bool_]

_MAX_GAP_PERIODS = 3.0
_MIN_SAMPLES = 30
LATEST = 1.09
"""Real periods of tegrastats are up to so many times the interval that it was asked for."""
_FAST_PERIOD_S = 0.250 * LATEST
_MIN_FAST_S = 10.0
_MIN_SLOW_S = 30.0


@dataclass(frozen=True)
class Minimum:
    """The least that a window must hold for its figures to be worth printing."""

    duration_s: float
    samples: int


def least_of(period_s: float) -> Minimum:
    """Give the least by default, for readings so far apart."""
    return Minimum(_MIN_FAST_S if period_s <= _FAST_PERIOD_S else _MIN_SLOW_S, _MIN_SAMPLES)


class WindowEnergy(msgspec.Struct, frozen=True):
    """Power and energy of one window, over that part of it which the samples cover."""

    start_s: float
    """On the device's monotonic clock, after the time in which the sensor still follows a change of load."""
    end_s: float
    total_j: float
    """Energy of the covered part."""
    mean_w: float
    """Mean over the covered part, weighted by time."""
    peak_w: float
    """Highest single reading inside the window; the sensor's lag hides shorter peaks."""
    sd_w: float
    """Standard deviation of the readings inside the window."""
    rise_w: float
    """How far the straight line through the readings rises over the window; negative where it falls."""
    coverage: float
    """Share of the window's duration that lies between neighbouring samples without a gap, 0 to 1."""
    samples: int
    """Readings inside the window."""
    dropped: int
    """Readings that came inside the window, and are left out because their stamp did not rise."""
    period_s: float
    """Measured median distance of the readings; tegrastats' own interval is 0 to 9 % shorter."""
    warnings: tuple[str, ...]
    """One sentence each."""

    @property
    def duration_s(self) -> float:
        """Length of the window."""
        return self.end_s - self.start_s

    def dynamic_j(self, idle_mean_w: float) -> float:
        """Energy above idle over the covered part, in joules.

        It is negative where the work costs less than one step of the sensor: show it, with a warning.
        """
        return self.total_j - idle_mean_w * self.duration_s * self.coverage


def measure_window(
    power_w: Float64Array,
    time_s: Float64Array,
    start_s: float,
    end_s: float,
    minimum: Minimum | None = None,
    *,
    left_out_s: float = 0.0,
) -> WindowEnergy:
    """Measure a window of a series of readings, which may have faults, and say what the result is worth.

    Readings whose stamps do not rise are dropped and counted. The time between two readings further apart than
    three median periods, or outside of all readings, is not covered: it lowers ``coverage`` and adds a warning.

    Args:
        power_w: Readings of the board's total in watts, shape ``(n,)``.
        time_s: Their arrival on the monotonic clock in seconds, shape ``(n,)``.
        start_s: Start of the window, on the same clock.
        end_s: End of the window, after ``start_s``.
        minimum: The least to accept; by default 30 samples and 10 s, or 30 s if the period is longer than 250 ms.
        left_out_s: Settling time before the start that belongs to the duration to accept, and to nothing else.

    Raises:
        EnergyError: "insufficient": the window is shorter or has fewer readings than the minimum.
    """
    _check_series(power_w, time_s)
    _check_window(start_s, end_s)
    rises = rising(time_s)
    came_s = np.maximum.accumulate(time_s)[~rises]  # a stray stamp says nothing of when its reading came
    dropped = int(np.count_nonzero((came_s >= start_s) & (came_s <= end_s)))
    power_w, time_s = power_w[rises], time_s[rises]
    inside = (time_s >= start_s) & (time_s <= end_s)
    inside_s, inside_w = time_s[inside], power_w[inside]
    gaps_s = np.diff(time_s)[_touches(time_s, start_s, end_s)]
    period_s = float(np.median(gaps_s)) if gaps_s.size else math.inf
    _check_minimum(end_s - start_s + left_out_s, inside_w.size, period_s, minimum)
    total_j, covered_s = _integrate(power_w, time_s, start_s, end_s, _MAX_GAP_PERIODS * period_s)
    return WindowEnergy(
        start_s=start_s,
        end_s=end_s,
        total_j=total_j,
        mean_w=total_j / covered_s,
        peak_w=float(inside_w.max()),
        sd_w=float(inside_w.std(ddof=1)),
        rise_w=slope(inside_s, inside_w) * (end_s - start_s),
        coverage=min(round(covered_s / (end_s - start_s), 9), 1.0),
        samples=int(inside_w.size),
        dropped=dropped,
        period_s=period_s,
        warnings=tuple(_warnings(time_s, start_s, end_s, gaps_s, period_s, dropped)),
    )


def slope(time_s: Float64Array, values: Float64Array) -> float:
    """Give the slope of the straight line through points by least squares, per second; 0.0 for a single moment.

    >>> slope(np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.5, 6.0]))
    0.5
    """
    centred_s = time_s - time_s.mean()
    square = float(centred_s @ centred_s)
    return float(centred_s @ values) / square if square > 0 else 0.0


def rising(time_s: Float64Array) -> BoolArray:
    """Mark the stamps that are later than all before them, shape ``(n,)``; the others are duplicates or stray.

    >>> rising(np.array([0.0, 1.0, 1.0, 0.5, 2.0])).tolist()
    [True, True, False, False, True]
    """
    marks = np.ones(time_s.shape, dtype=np.bool_)
    marks[1:] = time_s[1:] > np.maximum.accumulate(time_s)[:-1]
    return marks


def resolution_w(step_mw: Iterable[float]) -> float:
    """Standard error in watts that the converter steps of the summed rails cause, each spread evenly over its step.

    While the readings stay within one step it does not shrink with their number.

    >>> round(resolution_w([400, 400, 101]), 4)
    0.1659
    """
    return math.sqrt(sum(step**2 for step in step_mw) / 12) / 1000


def _integrate(
    power_w: Float64Array, time_s: Float64Array, start_s: float, end_s: float, max_gap_s: float
) -> tuple[float, float]:
    """Sum the trapezoids between neighbours at most ``max_gap_s`` apart: joules, and the seconds that they cover."""
    used = _touches(time_s, start_s, end_s) & (np.diff(time_s) <= max_gap_s)
    from_s = np.maximum(time_s[:-1][used], start_s)
    to_s = np.minimum(time_s[1:][used], end_s)
    both_w = np.interp(from_s, time_s, power_w) + np.interp(to_s, time_s, power_w)
    width_s = to_s - from_s
    # Written out: NumPy 1 has no trapezoid(), NumPy 2 no trapz().
    return float(np.sum(both_w / 2 * width_s)), float(np.sum(width_s))


def _touches(time_s: Float64Array, start_s: float, end_s: float) -> BoolArray:
    """Mark the distances between neighbours that reach into the window, shape ``(n - 1,)``."""
    marks: BoolArray = (time_s[1:] > start_s) & (time_s[:-1] < end_s)
    return marks


def _warnings(
    time_s: Float64Array, start_s: float, end_s: float, gaps_s: Float64Array, period_s: float, dropped: int
) -> Iterable[str]:
    if time_s[0] > start_s:
        yield f"the first {min(time_s[0], end_s) - start_s:.3f} s of the window have no power samples"
    if time_s[-1] < end_s:
        yield f"the last {end_s - max(time_s[-1], start_s):.3f} s of the window have no power samples"
    wide = gaps_s > _MAX_GAP_PERIODS * period_s
    if wide.any():
        yield f"gaps between the power samples: {np.count_nonzero(wide)}, the longest of {gaps_s.max():.3f} s"
    if dropped:
        yield f"{dropped} power samples dropped because their stamps did not rise"


def _check_minimum(duration_s: float, samples: int, period_s: float, minimum: Minimum | None) -> None:
    if minimum is None:
        minimum = least_of(period_s)
    if duration_s < minimum.duration_s or samples < max(minimum.samples, 2):
        raise EnergyError(
            f"insufficient: the window has {samples} power samples in {duration_s:.1f} s, expected at least "
            f"{minimum.samples} in at least {minimum.duration_s:.1f} s: measure longer, or with a shorter interval"
        )


def _check_window(start_s: float, end_s: float) -> None:
    if not (math.isfinite(start_s) and math.isfinite(end_s) and end_s > start_s):
        raise EnergyError(f"expected a window that ends after it starts, found {start_s} s to {end_s} s: mark it again")


def _check_series(power_w: Float64Array, time_s: Float64Array) -> None:
    if power_w.ndim != 1 or power_w.shape != time_s.shape:
        raise EnergyError(f"expected one stamp per power sample, found shapes {power_w.shape} and {time_s.shape}")
    if not (np.isfinite(power_w).all() and np.isfinite(time_s).all()):
        raise EnergyError("expected numbers as power samples and stamps, found NaN or infinity: check the power log")
