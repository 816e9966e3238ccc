"""One time axis: a device's clock is found again from snapshots that travelled over a network."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.wire.messages import Mark
from devit_profiling.record.clocks import MAX_DRIFT, TimeAxis, fit_clock
from devit_profiling.record.record import Boundary

if TYPE_CHECKING:
    from conftest import FakeRun
else:
    FakeRun = object

SECOND = 10**9


def boundary(host_ns: int, device_ns: int, before_ns: int = 0, behind_ns: int = 0, *, late_ns: int = 0) -> Boundary:
    """A snapshot that was read at ``host_ns``, with the times around its question."""
    asked = {"d": (host_ns - before_ns, host_ns + behind_ns)}
    return Boundary(host_ns + behind_ns + late_ns, {"d": Mark(device_ns, 0, 0)}, asked)


@given(
    start_ns=st.integers(0, 400 * 86_400 * SECOND),
    offset_ns=st.integers(-(10**18), 10**18),
    drift_ppm=st.floats(-200, 200),
    gaps_s=st.lists(st.floats(0.5, 60), min_size=2, max_size=40),
    data=st.data(),
)
def test_mapped_moments_are_off_by_ways_of_different_length_alone(
    start_ns: int, offset_ns: int, drift_ppm: float, gaps_s: list[float], data: st.DataObject
) -> None:
    """Each snapshot is off by half a round trip at most, and a line by least squares by 1 + sqrt(n) times that."""

    def device_ns(host_ns: int) -> int:
        return host_ns + offset_ns + round(drift_ppm * 1e-6 * (host_ns - start_ns))

    moments = [start_ns]
    for gap_s in gaps_s:
        moments.append(moments[-1] + round(gap_s * SECOND))
    half_ns = 2_000_000
    boundaries = []
    for host_ns in moments:
        there_ns = data.draw(st.integers(0, half_ns))
        # Ways of the same length on each trip: half a round trip is the same for all.
        boundaries.append(boundary(host_ns, device_ns(host_ns), there_ns, half_ns - there_ns, late_ns=5_000_000))
    clock = fit_clock(boundaries, "d")
    worst_ns = half_ns / 2 * (1 + math.sqrt(len(moments)))
    for host_ns in moments:
        assert abs(clock.host_ns(device_ns(host_ns)) - host_ns) <= worst_ns + 2000
    assert clock.half_round_trip_us == half_ns / 2 / 1000
    assert clock.snapshots == len(moments)


@given(
    offset_ns=st.integers(-(10**18), 10**18),
    drift_ppm=st.floats(-200, 200),
    gaps_s=st.lists(st.floats(0.5, 60), min_size=2, max_size=20),
    way_ns=st.integers(0, 10**7),
)
def test_equal_ways_there_and_back_leave_no_error(
    offset_ns: int, drift_ppm: float, gaps_s: list[float], way_ns: int
) -> None:
    start_ns = 5 * SECOND
    moments = [start_ns]
    for gap_s in gaps_s:
        moments.append(moments[-1] + round(gap_s * SECOND))
    device = [at + offset_ns + round(drift_ppm * 1e-6 * (at - start_ns)) for at in moments]
    clock = fit_clock([boundary(at, own, way_ns, way_ns) for at, own in zip(moments, device, strict=True)], "d")
    assert max(abs(clock.host_ns(own) - at) for at, own in zip(moments, device, strict=True)) <= 1000
    # The device's second is longer or shorter, so its own clock shows the opposite drift.
    assert clock.drift == pytest.approx(1 / (1 + drift_ppm * 1e-6) - 1, abs=1e-8)
    assert clock.residual_max_us <= 1.0


@given(steps=st.lists(st.integers(0, 10**10), min_size=2, max_size=30), drift_ppm=st.floats(-5e5, 5e5))
def test_order_of_moments_is_kept(steps: list[int], drift_ppm: float) -> None:
    """Even snapshots that make no sense give a rising map: no clock drifts by more than 500 ppm."""
    moments = [k * SECOND for k in range(5)]
    clock = fit_clock([boundary(at, round(at * (1 + drift_ppm * 1e-6)) + 7) for at in moments], "d")
    assert abs(clock.drift) <= MAX_DRIFT
    device_ns, mapped = 0, clock.host_ns(0)
    for step in steps:
        device_ns += step
        assert clock.host_ns(device_ns) >= mapped
        mapped = clock.host_ns(device_ns)


def test_slow_question_weighs_less_than_quick_ones() -> None:
    """A machine that was busy for 100 ms at one boundary does not bend the line."""
    boundaries = [boundary(k * SECOND, k * SECOND + 42, 50_000, 50_000) for k in range(10)]
    boundaries[4] = boundary(4 * SECOND, 4 * SECOND + 42, 100_000_000, 50_000)
    clock = fit_clock(boundaries, "d")
    assert abs(clock.host_ns(4 * SECOND + 42) - 4 * SECOND) < 5_000
    assert clock.residual_max_us > 40_000


def test_older_runs_are_mapped_by_the_edge_alone(two_devices: FakeRun) -> None:
    axis = TimeAxis.of(replace(two_devices, is_old=True).recording())
    assert axis.clocks["jetson2"].half_round_trip_us is None
    assert axis.device_s("jetson1", round(1001e9)) == pytest.approx(1.0, abs=1e-5)
    assert axis.device_s("jetson2", round(1000001e9)) == pytest.approx(1.0, abs=1e-5)


def test_axis_begins_with_the_first_recorded_moment(two_devices: FakeRun) -> None:
    """The sampler starts a second before the first snapshot."""
    axis = TimeAxis.of(two_devices.recording())
    assert axis.device_us("jetson1", round(1000e9)) == 0
    assert axis.host_us(round(77e9)) == 1_000_000


def test_run_without_a_phase_has_an_axis() -> None:
    clock = fit_clock([], "d")
    assert (clock.snapshots, clock.host_ns(5)) == (0, 5)
