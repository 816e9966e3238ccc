"""The fitted time constant: a recorded board's, that of made-up steps, and none where there is no clean step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devit_contract.arrays import Float64Array
from devit_profiling.figures.settling import fit_step
from devit_profiling.sensor.board_table import ORIN_NANO
from devit_profiling.sensor.boards import total_mw
from devit_profiling.sensor.tegrastats import parse_line

DATA = Path(__file__).parents[2] / "data" / "tegrastats"
PERIOD_S = 0.107


def step(tau_s: float, from_w: float, to_w: float, start_s: float = 10.0) -> tuple[Float64Array, Float64Array]:
    time_s = np.arange(1, 150, dtype=np.float64) * PERIOD_S
    passed_s = np.maximum(time_s - start_s, 0.0)
    return to_w + (from_w - to_w) * np.exp(-passed_s / tau_s), time_s


@settings(deadline=None)
@given(st.floats(0.1, 1.0), st.floats(1.0, 20.0), st.floats(1.0, 20.0))
def test_time_constant_of_a_clean_step_is_found(tau_s: float, from_w: float, to_w: float) -> None:
    power_w, time_s = step(tau_s, from_w, to_w)
    fit = fit_step(np.round(power_w / 0.001) * 0.001, time_s, 10.0, 13.0)
    if abs(to_w - from_w) > 0.5:
        assert fit is not None
        assert fit.tau_s == pytest.approx(tau_s, rel=0.03)


def test_sensor_without_lag_is_told_by_the_smallest_constant() -> None:
    fit = fit_step(*step(0.001, 4.0, 15.0), 10.0, 13.0)
    assert fit is not None
    assert fit.tau_s < 0.03


def test_no_step_a_slow_ramp_and_few_readings_give_none() -> None:
    power_w, time_s = step(0.43, 4.0, 4.0)
    assert fit_step(power_w, time_s, 10.0, 13.0) is None
    ramp_w = 4.0 + np.clip((time_s - 10.0) / 2.0, 0.0, 1.0) * 11.0
    assert fit_step(ramp_w, time_s, 10.0, 13.0) is None
    power_w, time_s = step(0.43, 4.0, 15.0)
    assert fit_step(power_w, time_s, 10.0, 10.5) is None
    assert fit_step(power_w, time_s, 0.0, 3.0) is None


def test_time_constant_of_a_recorded_load_step_is_that_of_the_table() -> None:
    """Of the steepest fall of a recording at 109 ms; by hand, its edges gave 0.45 to 0.52 s downwards."""
    lines = (DATA / "orin_nano_l4t36_04_100ms_log.txt").read_text(encoding="utf-8").splitlines()
    samples = [sample for line in lines if (sample := parse_line(line)) is not None]
    power_w = np.array([total_mw(ORIN_NANO, sample.rails_mw) for sample in samples], np.float64) / 1000
    time_s = np.arange(power_w.size, dtype=np.float64) * 0.1091
    fall = int(np.argmin(np.diff(power_w)))
    fit = fit_step(power_w, time_s, float(time_s[fall]), float(time_s[fall]) + 2.0)
    assert fit is not None
    assert 0.38 <= fit.tau_s <= 0.55
