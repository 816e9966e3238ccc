"""Student's t for any degrees of freedom, whole or not, as Welch's test needs it."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

_NORMAL_FROM = 1e4
"""Degrees of freedom from which the normal distribution stands in; the error is below 1e-4."""
# By Gauss and Legendre on -1 to 1.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


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
