"""What a device's joules carry beside their mean: parts of the interval, doubts, and the conditions of the windows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from devit_contract.machine import OverCurrentEvents
from devit_contract.wire.messages import Mark, PowerLine
from devit_profiling.figures.analysis import analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.figures.joules import DeviceEnergy

if TYPE_CHECKING:
    from conftest import FakeRun
else:
    FakeRun = object


def energy_of(run: FakeRun) -> DeviceEnergy:
    return analyse(Evidence.of(run.recording())).scenarios[0].energies[0]


def test_idle_power_that_drifts_by_two_steps_is_warned_of_though_it_is_little_of_a_strong_board(
    fake_run: FakeRun,
) -> None:
    """0.1 W are 2.5 steps of 40 mW, and 2.5 % of 4 W."""
    energy = energy_of(fake_run.changed(idle_after_mw=4100))
    assert any("idle power drifted by +2.5%, 2.5 steps" in warning for warning in energy.warnings)
    assert not energy_of(fake_run.changed(idle_after_mw=4070)).warnings


def test_idle_power_that_drifts_widens_the_interval_above_idle_alone(fake_run: FakeRun) -> None:
    """Anywhere between 4.0 and 4.4 W, evenly: 0.4 / sqrt(12) W, for 0.1 s an inference."""
    energy = energy_of(fake_run.changed(idle_after_mw=4400))
    assert energy.total_j_per_inference is not None
    assert energy.dynamic_j_per_inference is not None
    assert energy.total_j_per_inference.idle_95 is None
    assert energy.dynamic_j_per_inference.idle_95 == pytest.approx(1.96 * 0.4 / 12**0.5 * 0.1)


def test_energy_times_delay_takes_the_time_in_the_engine(fake_run: FakeRun) -> None:
    """0.6 J and 4 ms; a device that counts no time has no such figure."""
    assert energy_of(fake_run).edp_j_s is None
    assert energy_of(fake_run.changed(busy_ms=4.0)).edp_j_s == pytest.approx(0.6 * 0.004)


def test_power_that_rises_over_a_window_is_warned_of(fake_run: FakeRun) -> None:
    """0.3 W of 6 W, in five steps of the converter."""
    flags = energy_of(fake_run.changed(rise_mw=300)).warnings
    assert any("window 1; window 2: power is not steady, it changed by +" in flag for flag in flags)
    assert not any("steady" in flag for flag in energy_of(fake_run.changed(rise_mw=80)).warnings)


def test_window_soon_after_the_load_begins_is_measured_without_its_start(fake_run: FakeRun) -> None:
    """Five time constants of 0.43 s are 2.15 s; the warm-up took one."""
    energy = energy_of(fake_run.changed(warm_up_s=1.0))
    assert any("window 1: the load changed less than 5 time constants" in warning for warning in energy.warnings)
    assert energy.windows[0].energy.samples == pytest.approx(101 - 11.5, abs=1)
    assert energy.windows[0].duration_s == pytest.approx(10.0)
    assert energy.total_j_per_inference is not None
    assert energy.total_j_per_inference.mean == pytest.approx(0.6)


def test_offset_of_the_sensor_stands_apart_and_is_warned_of_where_it_is_much(fake_run: FakeRun) -> None:
    """Two steps of 40 mW are up to 0.09 W: 1.5 % of 6 W, 4.5 % of 2 W."""
    energy = energy_of(fake_run)
    assert energy.offset_j_per_inference == pytest.approx(1.96 * 0.08 / 3**0.5 * 0.1)
    assert not energy.warnings
    weak = energy_of(fake_run.changed(idle_mw=1000, idle_after_mw=1000, windows_mw=(2000, 2000)))
    assert any("offset, up to two steps a rail, may be 4.5% of the total" in warning for warning in weak.warnings)


def test_clock_that_falls_in_a_later_window_is_warned_of_as_throttling(fake_run: FakeRun) -> None:
    energy = energy_of(fake_run.changed(windows_mhz=(1344, 729)))
    assert any("window 2: clocks fell to 729 MHz from 1344 MHz" in warning for warning in energy.warnings)
    assert energy.conditions.clocks_mhz == {1: 1344.0, 2: 729.0}


def test_temperature_and_its_slope_are_reported(fake_run: FakeRun) -> None:
    conditions = energy_of(fake_run.changed(warming_c_per_min=6.0)).conditions
    assert conditions.zone == "tj"
    assert conditions.temperature_slope_c_per_min == pytest.approx(6.0, rel=0.02)
    assert energy_of(fake_run).conditions.temperature_slope_c_per_min == pytest.approx(0.0, abs=1e-9)


def test_clock_that_goes_backwards_costs_its_window_one_sentence(fake_run: FakeRun) -> None:
    """A device that has started anew in the second window: its clock and its counter begin again."""
    recording = fake_run.recording()
    phases = list(recording.run.phases)
    last = next(place for place, phase in enumerate(phases) if phase.number == 2)
    end = msgspec.structs.replace(phases[last].end, snapshots={"jetson1": Mark(5_000_000_000, 3, 0)})
    phases[last] = msgspec.structs.replace(phases[last], end=end)
    run = msgspec.structs.replace(recording.run, phases=tuple(phases))
    (energy,) = analyse(Evidence.of(replace(recording, run=run))).scenarios[0].energies
    assert [window.number for window in energy.windows] == [1]
    (flag,) = [flag for flag in energy.warnings if flag.startswith("window 2: ")]
    assert "expected a window that ends after it starts, found" in flag
    assert energy.total_j_per_inference is not None
    assert energy.total_j_per_inference.mean == pytest.approx(0.6)


def test_samples_whose_clock_goes_backwards_are_dropped_and_told(fake_run: FakeRun) -> None:
    recording = fake_run.recording()
    lines = list(recording.lines["jetson1"])
    place = next(place for place, line in enumerate(lines) if line.monotonic_ns >= 1020 * 10**9)
    lines[place] = PowerLine(lines[place].monotonic_ns - 5 * 10**9, lines[place].text)
    (energy,) = analyse(Evidence.of(replace(recording, lines={"jetson1": tuple(lines)}))).scenarios[0].energies
    assert any(flag.endswith("1 power samples dropped because their stamps did not rise") for flag in energy.warnings)
    assert energy.total_j_per_inference is not None
    assert energy.total_j_per_inference.mean == pytest.approx(0.6)


@pytest.mark.parametrize("idle_mw", [4000, None])
def test_windows_in_which_the_board_slowed_itself_down_are_counted_and_warned_of(
    fake_run: FakeRun, idle_mw: int | None
) -> None:
    """Events before and after the windows do not count; a device without a sensor is warned of too."""
    energy = energy_of(fake_run.changed(window_events=(0, 37), idle_mw=idle_mw))
    assert energy.over_current == {1: OverCurrentEvents(), 2: OverCurrentEvents(0, 0, 37)}
    (warning,) = energy.warnings
    assert warning.startswith("window 2: the board slowed itself down (37 instantaneous over-current): choose a lower")


def test_a_board_that_counts_no_events_or_none_in_windows_is_not_warned_of(fake_run: FakeRun) -> None:
    assert energy_of(fake_run).over_current == {}
    quiet = energy_of(fake_run.changed(window_events=(0, 0)))
    assert quiet.over_current == {1: OverCurrentEvents(), 2: OverCurrentEvents()}
    assert not quiet.warnings


def test_the_events_of_several_windows_are_one_warning(fake_run: FakeRun) -> None:
    (warning,) = energy_of(fake_run.changed(window_events=(3, 4))).warnings
    assert warning.startswith("window 1, 2: the board slowed itself down (7 instantaneous over-current)")


def test_events_of_a_board_that_was_rebooted_in_a_window_are_unknown(fake_run: FakeRun) -> None:
    """Counters run since the boot: a fall is no number of events."""
    assert energy_of(fake_run.changed(window_events=(-5, 2))).over_current == {2: OverCurrentEvents(0, 0, 2)}
