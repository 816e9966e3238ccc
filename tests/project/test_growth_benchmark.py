"""The simulation of many cells, and the line that feeds it, against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.growth.fit import fit
from benchmarks.growth.model import Cell, fleet, simulate
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_node_alone_is_the_queue_m_d_1(share: float) -> None:
    """Pollaczek and Khinchine: in M/D/1 a frame waits for load / (2 (1 - load)) times its service in the mean."""
    service_ms = 2.0
    cell = Cell(devices=1, node_us=1e3 * service_ms, engine_ms=0.0)
    means = [simulate(cell, 1e3 * share / service_ms, 4000, seed).mean() for seed in range(8)]
    expected_ms = service_ms * (1 + share / (2 * (1 - share)))
    error_ms = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means) - expected_ms) < 5 * error_ms
    assert error_ms < 0.05 * expected_ms, "too few frames to tell"


def test_a_frame_waits_for_the_slowest_device() -> None:
    """At a low rate nothing queues: the mean is that of the largest of n normal numbers."""
    cell = Cell(devices=16, node_us=500.0, engine_ms=20.0, engine_spread=0.1)
    taken_ms = simulate(cell, 0.5, 3000, seed=1)
    largest_of_16 = 1.766  # mean of the largest of 16 standard normal numbers, Teichroew (1956)
    assert taken_ms.mean() == pytest.approx(0.5 + 20.0 * (1 + 0.1 * largest_of_16), rel=0.005)


@given(st.integers(1, 100_000), st.integers(1, 64))
def test_cells_hold_all_devices_and_no_more_than_they_may(devices: int, most: int) -> None:
    sizes = fleet(devices, most)
    assert (sum(sizes), max(sizes) <= most, max(sizes) - min(sizes) <= 1) == (devices, True, True)


def test_a_line_is_found_and_a_bent_one_told() -> None:
    x = np.array([1, 2, 4, 8, 16, 32, 64])
    line = fit(x, 100 + 30 * x)
    assert (line.start, line.slope, line.r2) == pytest.approx((100, 30, 1))
    assert fit(x, 100 + x**2.5).r2 < 0.99
