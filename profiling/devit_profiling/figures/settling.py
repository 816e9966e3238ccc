"""The time constant of a sensor's averaging, read off a step of the load."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from devit_contract.arrays import Float64Array
from devit_profiling.record.record import IDLE, IDLE_AFTER, SETTLE, Phase

GUARD_TAUS = 5.0
"""Time constants after which a reading has settled, to 0.7 % of the step."""
MEASURED, TABLE = "load step of this run", "table"
_MIN_READINGS = 8
_LEVEL_READINGS = 8
# On the one board that was measured the residual was 0.1 to 0.5 % of the step; converter steps and ripple add to it.
_MAX_RESIDUAL = 0.03
# An average of 1024 samples has 0.86 s. Two neighbours differ by 3 %.
_TAUS_S = np.geomspace(0.02, 2.0, 156)
_RESTS = (IDLE, IDLE_AFTER, SETTLE)


@dataclass(frozen=True)
class TimeConstant:
    """How long readings take to follow, and how that is known."""

    tau_s: float
    source: str
    """:data:`MEASURED` or :data:`TABLE`."""

    @property
    def guard_s(self) -> float:
        """Time after a change of load before a window may open."""
        return GUARD_TAUS * self.tau_s


def time_constant(
    power_w: Float64Array, time_s: Float64Array, phases: Sequence[Phase], device: str, table_s: float
) -> TimeConstant:
    """Fit the cleanest step of the load among the phases; without a clean one take the table's value.

    Clocks that rise slowly spoil the step at the start of the load. At its end power falls immediately.
    """
    fits = [
        fit
        for start_s, end_s in _steps_s(phases, device)
        if (fit := fit_step(power_w, time_s, start_s, end_s)) is not None
    ]
    if not fits:
        return TimeConstant(table_s, TABLE)
    return TimeConstant(min(fits, key=lambda fit: fit.residual).tau_s, MEASURED)


@dataclass(frozen=True)
class StepFit:
    """An exponential through the readings after a step."""

    tau_s: float
    residual: float
    """Root mean square of what it leaves, as a share of the step."""


def fit_step(power_w: Float64Array, time_s: Float64Array, start_s: float, end_s: float) -> StepFit | None:
    """Fit the way from the level before a step to a new one, ``1 - exp(-t / tau)``; ``None`` where it does not fit.

    Readings of the total and their rising clock have shape ``(n,)``; the power is constant from the step to ``end_s``.
    """
    inside = (time_s > start_s) & (time_s <= end_s)
    before_w = power_w[time_s <= start_s][-_LEVEL_READINGS:]
    if np.count_nonzero(inside) < _MIN_READINGS or before_w.size == 0:
        return None
    level_w = float(before_w.mean())
    climbs_w = power_w[inside] - level_w  # (n,)
    ways = 1 - np.exp(-(time_s[inside] - start_s) / _TAUS_S[:, None])  # (taus, n)
    heights_w = ways @ climbs_w / (ways**2).sum(axis=1)  # (taus,), by least squares
    residuals_w = np.sqrt(np.mean((climbs_w - heights_w[:, None] * ways) ** 2, axis=1))
    best = int(np.argmin(residuals_w))
    height_w, residual_w = abs(float(heights_w[best])), float(residuals_w[best])
    if height_w == 0 or best == _TAUS_S.size - 1 or residual_w > _MAX_RESIDUAL * height_w:
        return None
    return StepFit(float(_TAUS_S[best]), residual_w / height_w)


def _steps_s(phases: Sequence[Phase], device: str) -> Iterable[tuple[float, float]]:
    """Give start and end of every phase that begins with a change of the load, on the device's clock."""
    for before, phase in itertools.pairwise(phases):
        if (before.kind in _RESTS) != (phase.kind in _RESTS):
            start_ns, end_ns = phase.span_ns(device)
            yield start_ns / 1e9, end_ns / 1e9


def changed_s(phases: Sequence[Phase], phase: Phase, device: str) -> float | None:
    """Find when the load last changed at or before a phase's start, on the device's clock; ``None`` if it never did."""
    start_s = phase.start.snapshots[device].monotonic_ns / 1e9
    return max((step_s for step_s, _ in _steps_s(phases, device) if step_s <= start_s), default=None)
