"""Windows that are repeated until the temperature settles: the rule, the cold and hot figures, a SIMULATED board."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from typer.testing import CliRunner

from devit_contract.errors import InputError
from devit_contract.service.progress import no_progress
from devit_profiling.cli import app
from devit_profiling.figures import thermal as heat
from devit_profiling.figures.analysis import analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.figures.thermal import cold_and_hot, is_settled
from devit_profiling.load.cell_run import cell_scenarios, measure_cell
from devit_profiling.load.load_generator import random_images
from devit_profiling.load.schedule import planned_s
from devit_profiling.record.record import WINDOW, Phase, Plan, Recording
from devit_profiling.report.page import render_html
from devit_profiling.report.report import OUTPUTS, write_report
from devit_profiling.report.thermal import thermal_rows, thermal_text

if TYPE_CHECKING:
    from conftest import FakeRun, LiveCell
else:
    FakeRun = LiveCell = object

PLAN = Plan(sustained_s=600)
SHORT = Plan(
    has_alone=False,
    has_idle_after=False,
    settle_s=0.0,
    idle_s=0.5,
    warm_up_s=0.1,
    duration_s=1.0,
    windows=2,
    sustained_s=6.0,
    interval_ms=20,
    idle_samples=3,
    window_samples=3,
)
EIGHT_W = (6000, 6000, 6000, 7000, 7000, 7500, 7500, 7500)


def sustained_run(run: FakeRun, **changes: object) -> Recording:
    recording = run.changed(windows_mw=EIGHT_W, windows_mhz=(729,) * 8, **changes).recording()
    plan = msgspec.structs.replace(recording.run.plan, sustained_s=600.0)
    return replace(recording, run=msgspec.structs.replace(recording.run, plan=plan))


def windows_of(recording: Recording) -> list[Phase]:
    return [phase for phase in recording.run.phases if phase.kind == WINDOW]


@pytest.mark.parametrize(("warming_c_per_min", "settled"), [(0.0, True), (0.4, True), (0.6, False), (-0.6, False)])
def test_temperature_has_settled_below_half_a_degree_a_minute(
    fake_run: FakeRun, warming_c_per_min: float, settled: bool
) -> None:
    recording = sustained_run(fake_run, warming_c_per_min=warming_c_per_min)
    assert is_settled(windows_of(recording), recording.lines, PLAN) is settled


def test_slowest_device_decides_and_silent_ones_do_not(two_devices: FakeRun) -> None:
    first, second = (replace(device, windows_mw=EIGHT_W) for device in two_devices.devices)
    hot = replace(second, warming_c_per_min=2.0)
    silent = replace(second, idle_mw=None)
    for devices, settled in (((first, hot), False), ((hot, first), False), ((first, silent), True)):
        recording = replace(two_devices, devices=devices).recording()
        assert is_settled(windows_of(recording), recording.lines, PLAN) is settled


def test_few_windows_and_no_temperature_are_never_called_settled(fake_run: FakeRun) -> None:
    recording = sustained_run(fake_run)
    assert not is_settled(windows_of(recording)[:5], recording.lines, PLAN)
    recording = sustained_run(fake_run, idle_mw=None)
    assert not is_settled(windows_of(recording), recording.lines, PLAN)


def test_cold_and_hot_windows_are_three_and_thirty_seconds_at_least_and_never_the_same(fake_run: FakeRun) -> None:
    windows = windows_of(sustained_run(fake_run))
    for count, plan, cold, hot in (
        (8, PLAN, [1, 2, 3], [6, 7, 8]),
        (8, Plan(duration_s=7.5, sustained_s=600), [1, 2, 3, 4], [5, 6, 7, 8]),
        (5, PLAN, [1, 2], [4, 5]),
        (1, PLAN, [], []),
    ):
        parts = cold_and_hot(windows[:count], plan)
        assert [[window.number for window in part] for part in parts] == [cold, hot]


def test_cold_and_hot_figures_are_those_of_their_windows_and_all_windows_stay_in_the_others(fake_run: FakeRun) -> None:
    """100 inferences and answers in 10 s: 6 W are 0.6 J each, 7.5 W are 0.75 J; 2 C a minute from 41.5 C."""
    recording = sustained_run(fake_run, warming_c_per_min=2.0)
    report = analyse(Evidence.of(recording))
    (scenario,) = report.scenarios
    assert [window.number for window in scenario.energies[0].windows] == list(range(1, 9))
    found = scenario.sustained
    assert found is not None
    assert (found.cold_windows, found.hot_windows, found.windows_s) == ((1, 2, 3), (6, 7, 8), pytest.approx(80))
    assert not found.is_settled
    (device,) = found.devices
    for row, cold_j, hot_j in ((device, 0.6, 0.75), (found.cell, 0.6, 0.75)):
        assert row.cold.joules is not None
        assert row.hot.joules is not None
        assert (row.cold.joules.windows, row.cold.joules.mean) == (3, pytest.approx(cold_j, rel=0.01))
        assert (row.hot.joules.windows, row.hot.joules.mean) == (3, pytest.approx(hot_j, rel=0.01))
        assert row.scope
    assert device.slope_c_per_min == pytest.approx(2.0, abs=0.05)
    assert device.cold.temperature_c == pytest.approx(41.5 + 2 * 44 / 60, abs=0.1)
    assert device.hot.temperature_c == pytest.approx(41.5 + 2 * 94 / 60, abs=0.1)
    assert (device.cold.p50_ms, found.cell.hot.p50_ms) == (pytest.approx(4.53), pytest.approx(5.495))
    rows = thermal_rows(report)
    assert [row[:2] for row in rows] == [
        [name, part] for name in ("jetson1", "cell") for part in ("cold 1-3", "hot 6-8")
    ]
    assert "temperature had not settled, so hot figures may still grow: jetson1 tj +2.00 °C" in thermal_text(report)
    assert "<h2>Cold and hot" in render_html(report, Evidence.of(recording))


def test_run_without_temperatures_says_that_it_is_unknown(fake_run: FakeRun) -> None:
    report = analyse(Evidence.of(sustained_run(fake_run, idle_mw=None)))
    assert thermal_text(report).endswith("no device reports its temperature, so it is unknown whether it settled")
    assert thermal_rows(report)[0][2:5] == ["", "not measured", "not measured"]


def test_other_runs_have_no_cold_and_hot_figures(fake_run: FakeRun) -> None:
    report = analyse(Evidence.of(fake_run.recording()))
    assert report.scenarios[0].sustained is None
    assert (thermal_rows(report), thermal_text(report)) == ([], "")


def test_time_must_hold_two_windows_and_is_counted_in_what_is_planned(live_cell: LiveCell) -> None:
    with pytest.raises(InputError, match=r"plan: sustained_s: expected 20\.0 to 86400, found 10"):
        Plan(sustained_s=10)
    devices = live_cell.fleet.device
    long_s, short_s = (planned_s(plan, cell_scenarios(devices, plan)) for plan in (Plan(sustained_s=600), Plan()))
    assert long_s - short_s == pytest.approx(550)
    result = CliRunner().invoke(app, ["--devices", "jetson1", "--quick", "--sustained", "1"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "give --quick or --sustained, not both" in result.output


@pytest.mark.system
def test_board_that_warms_is_asked_until_time_is_over(live_cell: LiveCell, tmp_path: Path) -> None:
    """The simulated board warms by 12 C with a time constant of 90 s; 6 s are too short for it to settle."""
    with live_cell.client() as client:
        folder = measure_cell(
            client, live_cell.fleet, ["jetson1"], random_images((6, 8, 1)), SHORT, tmp_path, no_progress
        )
    (scenario,) = write_report(folder).scenarios
    found = scenario.sustained
    assert found is not None
    assert 4 <= found.windows_s <= 6.5
    assert len(found.cold_windows) == len(found.hot_windows) >= 2
    assert not found.is_settled
    (device,) = found.devices
    assert device.is_simulated
    assert device.cold.temperature_c is not None
    assert device.hot.temperature_c is not None
    assert device.hot.temperature_c > device.cold.temperature_c
    assert device.hot.joules is not None
    assert found.cell.hot.p99_ms is not None
    before = [(folder / name).read_bytes() for name in OUTPUTS]
    write_report(folder)
    assert [(folder / name).read_bytes() for name in OUTPUTS] == before


@pytest.mark.system
def test_windows_end_once_the_temperature_has_settled(
    live_cell: LiveCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule in small, for the real one takes a minute: three windows of 0.4 s, and any slope is settled."""
    monkeypatch.setattr(heat, "LAST_S", 1.0)
    monkeypatch.setattr(heat, "SETTLED_C_PER_MIN", 1e6)
    plan = msgspec.structs.replace(SHORT, duration_s=0.4, sustained_s=600.0)
    with live_cell.client() as client:
        folder = measure_cell(
            client, live_cell.fleet, live_cell.names, random_images((6, 8, 1)), plan, tmp_path, no_progress
        )
    report = analyse(Evidence.read(folder))
    found = report.scenarios[0].sustained
    assert found is not None
    assert found.is_settled
    # Six at least; more where the machine was so busy that readings of the last windows came late.
    last = report.scenarios[0].answers.windows[-1].number
    assert (found.cold_windows, found.hot_windows) == ((1, 2, 3), (last - 2, last - 1, last))
    assert last >= 6
    assert [device.zone for device in found.devices] == ["tj", ""]  # jetson2 has no sensor
    assert report.cut_short is None
