"""The test of ``profile compare`` against SciPy's; what runs on a device has no SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from devit_profiling.figures.compare import RunFigure, difference_of
from devit_profiling.figures.interval import estimate, quantile_95, two_sided_p

stats = pytest.importorskip("scipy.stats")


@given(t=st.floats(-50, 50), freedom=st.floats(1, 1e5))
def test_probability_is_scipys(t: float, freedom: float) -> None:
    assert two_sided_p(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-4)


@given(freedom=st.floats(1, 1e5))
def test_quantile_is_scipys(freedom: float) -> None:
    assert quantile_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


windows = st.lists(st.floats(1, 100), min_size=2, max_size=20)


@given(first=windows, second=windows)
def test_verdict_is_that_of_scipys_welch_test(first: list[float], second: list[float]) -> None:
    assume(np.std(first) > 1e-3)
    assume(np.std(second) > 1e-3)
    sides = [RunFigure(estimate(values)) for values in (first, second)]
    found = difference_of("together", "jetson1", "J/inf., total", *sides)
    expected = stats.ttest_ind(second, first, equal_var=False)
    ends = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-6)
    width = ends.high - ends.low
    assert (found.low_95, found.high_95) == pytest.approx((ends.low, ends.high), abs=1e-6 * width)
    if abs(expected.pvalue - 0.05) > 1e-6:
        is_told = found.verdict in ("higher", "lower")
        assert is_told == (expected.pvalue < 0.05)
