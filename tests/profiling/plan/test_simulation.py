"""The simulated cell against queueing theory and plain arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from devit_profiling.plan.simulation import Load, Rules, Server, simulate

ONE = Rules((1,))
FIXED_10_MS = Server(np.full(201, 10.0), 0.0)


def _exponential(mean_ms: float) -> Server:
    shares = np.linspace(0.0, 1.0, 20_001)
    return Server(-mean_ms * np.log1p(-np.minimum(shares, 1 - 1e-6)), 0.0)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_a_fixed_time_at_random_arrivals_waits_as_m_d_1_does(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is rho S / (2 (1 - rho))."""
    outcome = simulate(ONE, {0: FIXED_10_MS}, Load(60_000, 1, rate_hz=100 * load))
    wait_ms = load * 10 / (2 * (1 - load))
    assert outcome.latency_ms.mean() == pytest.approx(10 + wait_ms, rel=0.03)
    assert outcome.per_second == pytest.approx(100 * load, rel=0.02)


def test_random_times_at_random_arrivals_wait_as_m_m_1_does() -> None:
    """The latency is exponential with mean 1 / (mu - lambda), so every percentile is known."""
    outcome = simulate(ONE, {0: _exponential(10.0)}, Load(120_000, 1, rate_hz=50))
    mean_ms = 1 / (0.1 - 0.05)
    assert outcome.latency_ms.mean() == pytest.approx(mean_ms, rel=0.04)
    assert outcome.percentile_ms(50) == pytest.approx(mean_ms * math.log(2), rel=0.04)
    assert outcome.percentile_ms(99) == pytest.approx(mean_ms * math.log(100), rel=0.08)


def test_paced_arrivals_below_the_pace_never_wait() -> None:
    outcome = simulate(ONE, {0: Server(np.full(201, 10.0), 1.5)}, Load(1000, 1, rate_hz=80, arrivals="paced"))
    np.testing.assert_allclose(outcome.latency_ms, 11.5)


SPEEDS = {0: FIXED_10_MS, 1: FIXED_10_MS, 2: Server(np.full(201, 20.0), 0.0), 3: Server(np.full(201, 40.0), 0.0)}


@pytest.mark.parametrize(
    ("rules", "per_second"),
    [
        (Rules((1,), preference=(2,)), 50.0),
        (Rules((1,)), 100 + 100 + 50 + 25),
        (Rules((4,)), 25.0),
        (Rules((1, 3)), 25.0),
    ],
)
def test_saturation_is_what_arithmetic_says(rules: Rules, per_second: float) -> None:
    """A single device, all rates together, the slowest one, and that again where no answer is ever certain."""
    outcome = simulate(rules, SPEEDS, Load(4000, 1, in_flight=16))
    assert outcome.per_second == pytest.approx(per_second, rel=0.03)


def test_stages_ask_as_many_devices_as_the_images_need() -> None:
    """Half of the images are certain after one device, a quarter after two: 1 + 1/2 + 2/4 = 2 devices a frame."""
    first, second = np.array([True, True, False, False]), np.array([False, False, True, False])
    certain = {1 << d: first for d in range(4)} | {1 << d | 1 << e: second for d in range(4) for e in range(d)}
    servers = dict.fromkeys(range(4), FIXED_10_MS)
    outcome = simulate(Rules((1, 1, 2), certain=certain), servers, Load(4000, 4, rate_hz=20))
    assert outcome.devices_asked == 2.0
    assert sorted(map(int.bit_count, outcome.masks.tolist()))[::1000] == [1, 1, 2, 4]
    assert all(outcome.inferences(device) == pytest.approx(0.5, abs=0.05) for device in range(4)), "load is not spread"
    fastest, slowest = outcome.latency_ms.min(), outcome.latency_ms[outcome.masks == 15].min()
    assert (fastest, slowest) == pytest.approx((10.0, 30.0))
    saturated = simulate(Rules((1, 1, 2), certain=certain), servers, Load(4000, 4, in_flight=16))
    assert saturated.per_second == pytest.approx(400 / 2, rel=0.05)


def test_a_fixed_order_asks_its_first_device_about_every_frame() -> None:
    certain = {0b100: np.array([True, False])}
    outcome = simulate(Rules((1, 2), preference=(2, 0, 1), certain=certain), SPEEDS, Load(1000, 2, rate_hz=10))
    assert outcome.inferences(2) == 1.0
    assert outcome.inferences(0) == outcome.inferences(1) == 0.5


def test_an_early_release_does_not_wait_for_the_slowest_device() -> None:
    certain = {0b0111: np.array([True])}
    whole = simulate(Rules((4,)), SPEEDS, Load(200, 1, rate_hz=2, arrivals="paced"))
    early = simulate(Rules((4,), certain=certain, tests_each=True), SPEEDS, Load(200, 1, rate_hz=2, arrivals="paced"))
    assert (whole.percentile_ms(50), early.percentile_ms(50)) == (40.0, 20.0)
    assert early.devices_asked == 4.0


def test_the_same_seed_gives_the_same_outcome_and_another_one_does_not() -> None:
    first, again, other = (
        simulate(ONE, {0: _exponential(5.0)}, Load(500, 3, rate_hz=50, seed=seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.latency_ms, again.latency_ms)
    np.testing.assert_array_equal(first.rows, again.rows)
    assert (first.latency_ms != other.latency_ms).any()
