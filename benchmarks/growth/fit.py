"""A straight line through figures, and how well they lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """``start + slope * x``."""

    start: float
    slope: float
    r2: float
    """Share of the variance that the line explains; NaN where nothing varies."""

    def at(self, x: float) -> float:
        """Give the line's value."""
        return self.start + self.slope * x


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fit by least squares of the relative error: a large figure's noise is larger too."""
    values, weights = np.asarray(y, np.float64), 1 / np.maximum(np.asarray(y, np.float64), 1e-9)
    slope, start = np.polyfit(np.asarray(x, np.float64), values, 1, w=weights)
    rest = values - start - slope * np.asarray(x, np.float64)
    spread = float(((values - values.mean()) ** 2).sum())
    return Line(float(start), float(slope), 1 - float((rest**2).sum()) / spread if spread else float("nan"))
