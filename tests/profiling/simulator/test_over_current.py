"""The counters of a simulated board, and the whole way from them to the report and the status."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from tests.support.cell import TINY

from devit_contract.machine import OverCurrentEvents, over_current_events
from devit_contract.service.progress import no_progress
from devit_pipeline.local_cell import LocalCell, LocalDevice
from devit_profiling.load.cell_run import measure_cell
from devit_profiling.load.load_generator import random_images
from devit_profiling.record.record import Plan
from devit_profiling.report.report import write_report
from devit_profiling.report.warning_list import warnings
from devit_profiling.simulator.over_current import SimulatedCounters

DEADLINE_S = 30.0
SIMULATOR = (sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano", "--over-current", "0")


def test_events_come_while_the_load_is_high_as_on_a_real_board(tmp_path: Path) -> None:
    """Source: 27,390 events of ``oc3`` in 3,605 s on an Orin NX, which its owner has published."""
    counters = SimulatedCounters(tmp_path, 0.9)
    assert over_current_events(tmp_path) == OverCurrentEvents()
    counters.work(3605.0, 0.89)
    assert over_current_events(tmp_path) == OverCurrentEvents()
    for _ in range(50):
        counters.work(72.1, 0.9)
    found = over_current_events(tmp_path)
    assert found is not None
    assert found.instantaneous == pytest.approx(27390, abs=10)
    assert (found.under_voltage, found.average) == (0, 0)


def test_another_sampler_of_the_same_board_goes_on_counting(tmp_path: Path) -> None:
    SimulatedCounters(tmp_path, 0.0).work(10.0, 1.0)
    counters = SimulatedCounters(tmp_path, 0.0)
    assert over_current_events(tmp_path) == OverCurrentEvents(0, 0, 76)
    counters.work(10.0, 1.0)
    assert over_current_events(tmp_path) == OverCurrentEvents(0, 0, 152)


@pytest.mark.system
def test_events_are_seen_in_the_report_and_in_the_status(tmp_path: Path) -> None:
    """Real processes and two SIMULATED boards, of which one counts its events and has some all the time."""
    root = tmp_path / "board"
    SimulatedCounters(root, 1.0)  # there when the agent starts, as on a real board
    quick = Plan(
        has_alone=False,
        has_idle_after=False,
        settle_s=0.0,
        idle_s=0.3,
        warm_up_s=0.2,
        warm_up_answers=3,
        duration_s=1.0,
        windows=2,
        idle_samples=1,
        window_samples=3,
    )
    devices = [
        LocalDevice("jetson1", 0, (*SIMULATOR, "--root", str(root)), str(root), "null"),
        LocalDevice("jetson2", 1, SIMULATOR, str(tmp_path), "null"),
    ]
    with LocalCell(TINY, tmp_path / "cell", devices) as cell, cell.client() as client:
        images = random_images((6, 8, 1))
        run = measure_cell(client, cell.fleet, list(cell.devices), images, quick, tmp_path / "runs", no_progress)
        report = write_report(run)
        end_s = time.monotonic() + DEADLINE_S
        while (status := client.status()).devices[0].over_current in (None, OverCurrentEvents()):
            assert time.monotonic() < end_s
    (scenario,) = report.scenarios
    counted, uncounted = (energy.over_current for energy in scenario.energies)
    assert list(counted) == [1, 2]
    assert all(3 <= events.instantaneous == events.total for events in counted.values())
    assert uncounted == {}
    assert any("jetson1, together: window 1, 2: the board slowed itself down" in each for each in warnings(report))
    assert status.devices[0].over_current is not None
    assert status.devices[0].over_current.instantaneous > 0
    assert status.devices[1].over_current is None
