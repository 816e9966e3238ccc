"""Means of repeated windows with their 95 % interval, by Student's t and by the steps of the sensor's converter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import msgspec
import numpy as np

from devit_contract.arrays import Float64Array

NORMAL_95 = 1.960
"""Two-sided 95 % quantile of the normal distribution, in standard errors."""

_NORMAL_FROM = 1e4
"""Degrees of freedom above which the normal distribution replaces Student's t; the error is below 1e-4."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
"""Of the Gauss-Legendre quadrature on -1 to 1."""
_OFFSET_STEPS = 2.0
_STRAY = 0.01
_ROUNDING = 0.01  # printed readings are whole milliwatts: codes of 400.5 mW show as 400 and 401


class Estimate(msgspec.Struct, frozen=True):
    """The mean over windows; the field that holds it names the unit.

    Half of the interval is the root sum of squares of its parts. Errors that are the same in every window, the sensor's
    gain and offset, are in none of the parts: they are stated apart.
    """

    mean: float
    windows: int
    low_95: float | None = None
    """Ends of the 95 % interval of the mean; absent for a single window."""
    high_95: float | None = None
    repeats_95: float | None = None
    """Half-width by Student's t from the spread of the windows; absent for a single window."""
    steps_95: float | None = None
    """Half-width that the steps of the sensor's converter cause; repeats at constant power do not show it."""
    idle_95: float | None = None
    """Half-width of the idle power, by its scatter and drift; only of what is measured above idle."""


def mean_of(figure: Estimate | None) -> float | None:
    """Give the mean of an estimate, if there is one."""
    return figure.mean if figure is not None else None


def estimate(values: Sequence[float], steps_95: float | None = None, idle_95: float | None = None) -> Estimate:
    """Give the mean of windows, with a 95 % interval where there are at least two.

    >>> round(estimate([1.0, 3.0]).high_95, 3)
    14.706
    >>> estimate([2.0, 2.0], steps_95=0.3, idle_95=0.4).high_95
    2.5
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Estimate(mean, count, steps_95=steps_95, idle_95=idle_95)
    repeats_95 = quantile_95(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    half = math.hypot(repeats_95, steps_95 or 0.0, idle_95 or 0.0)
    return Estimate(mean, count, mean - half, mean + half, repeats_95, steps_95, idle_95)


@dataclass(frozen=True)
class StepError:
    """Standard error in watts that converter steps cause in the mean power of a window."""

    constant_w: float
    """Of the rails whose readings stay within a step: it is the same in every window of the same power."""
    scattered_w: float
    """Of the rails whose readings spread over several steps: it changes from window to window."""

    @property
    def whole_w(self) -> float:
        """Standard error of both kinds of rails together."""
        return math.hypot(self.constant_w, self.scattered_w)


def step_error(rails_w: Float64Array, steps_mw: Sequence[float], effective: float) -> StepError:
    """Estimate how far the steps of the converter may have moved the mean of a sum of rails.

    Where readings spread by more than half a step, errors of neighbouring readings differ and average out; otherwise
    all of them err alike, however many there are. Two codes alone never spread by more than half a step. A hundredth of
    the readings at either end is left out of the spread: a single spike averages nothing out.

    The readings have shape ``(n, rails)``; ``effective`` is the number of independent ones, from :func:`independent`.
    """
    constant = scattered = 0.0
    stray = min(math.ceil(_STRAY * (len(rails_w) - 1)), (len(rails_w) - 1) // 2)
    spreads_w = np.sort(rails_w, axis=0)[stray : len(rails_w) - stray].std(axis=0)  # (rails,)
    for spread_w, step_mw in zip(spreads_w, steps_mw, strict=True):
        variance = (step_mw / 1000) ** 2 / 12
        if spread_w * 1000 > step_mw * (0.5 + _ROUNDING):
            scattered += variance / effective
        else:
            constant += variance
    return StepError(math.sqrt(constant), math.sqrt(scattered))


def mean_step_error(errors: Sequence[StepError]) -> StepError:
    """Give the step error of the mean over windows: what is constant stays, what scatters shrinks."""
    constant_w = sum(error.constant_w for error in errors) / len(errors)
    return StepError(constant_w, math.hypot(*(error.scattered_w for error in errors)) / len(errors))


def independent(samples: int, duration_s: float, tau_s: float) -> float:
    """Count the independent readings of a window: the sensor's averaging makes neighbours alike within 2 tau.

    >>> independent(samples=92, duration_s=10.0, tau_s=0.5), independent(samples=20, duration_s=10.0, tau_s=0.0)
    (10.0, 20.0)
    """
    return max(min(samples, duration_s / (2 * tau_s)) if tau_s > 0 else float(samples), 1.0)


def offset_95_w(steps_mw: Iterable[float]) -> float:
    """Half-width in watts of the offset of a sum of rails: anything up to two steps each, alike in all windows.

    No repeat shows it, and it cancels in what is measured above idle.
    The INA3221's data sheet: up to 80 uV, of 40 uV a step.

    >>> round(offset_95_w([40]), 4), round(offset_95_w([400, 400, 101]), 4)
    (0.0905, 1.3005)
    """
    return NORMAL_95 * _OFFSET_STEPS * math.hypot(*(step / 1000 for step in steps_mw)) / math.sqrt(3)


def two_sided_p(t: float, freedom: float) -> float:
    """Give the probability that chance alone makes ``|t|`` or more.

    With t = sqrt(freedom) tan(angle) the density becomes a power of the cosine, over a finite range.

    >>> round(two_sided_p(2.228, 10), 4), round(two_sided_p(0.0, 3.5), 4)
    (0.05, 1.0)
    """
    t = abs(t)
    if freedom > _NORMAL_FROM or math.isinf(t):
        return 2 * NormalDist().cdf(-t)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    angle = math.atan2(t, math.sqrt(freedom))
    centre = float(np.sum(_WEIGHTS * np.cos(angle / 2 * (1 + _NODES)) ** (freedom - 1))) * angle / 2
    return min(max(1.0 - 2 * scale * centre, 0.0), 1.0)


def quantile_95(freedom: float) -> float:
    """Give the t that chance alone exceeds, to either side, in 5 % of all cases.

    >>> round(quantile_95(4), 3), round(quantile_95(6.5), 3), round(quantile_95(math.inf), 3)
    (2.776, 2.402, 1.96)
    """
    low, high = 1.9, 13.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > 0.05 else (low, middle)
    return high
