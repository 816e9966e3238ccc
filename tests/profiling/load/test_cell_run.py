"""Runs against a real node and real agents; the power is simulated, the phases are short."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from devit_contract.errors import InputError
from devit_contract.service.progress import Progress, no_progress
from devit_contract.wire.codec import State
from devit_profiling.figures.analysis import analyse
from devit_profiling.load.cell_run import run_profile
from devit_profiling.load.images import random_pictures
from devit_profiling.load.measure import measure_cell, raise_if_cut_short
from devit_profiling.record.record import QUICK, CutShort, Plan, Recording
from devit_profiling.record.run_folder import read_recording, write_recording
from devit_profiling.report.text import doubts

if TYPE_CHECKING:
    from conftest import LiveCell
else:
    LiveCell = object

SHORT = Plan(
    settle_s=0.05,
    idle_s=0.4,
    warm_up_s=0.1,
    warm_up_answers=5,
    duration_s=0.5,
    windows=2,
    interval_ms=20,
    idle_samples=3,
    window_samples=3,
)
PICTURES = random_pictures((6, 8, 1))


@pytest.fixture(scope="module")
def folder(live_cell: LiveCell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the short plan, for all tests that only look at it."""
    out = tmp_path_factory.mktemp("runs")
    with live_cell.client() as client:
        return run_profile(client, live_cell.fleet.device, PICTURES, SHORT, out, no_progress)


@pytest.fixture(scope="module")
def recording(folder: Path) -> Recording:
    return read_recording(folder)


def test_folder_is_named_by_time_and_devices_and_holds_the_raw_files(folder: Path) -> None:
    assert folder.name.endswith("Z-jetson1-jetson2")
    assert sorted(path.name for path in folder.iterdir()) == [
        "jetson1.stamps.csv",
        "jetson1.tegrastats.log",
        "jetson2.stamps.csv",
        "jetson2.tegrastats.log",
        "latency.csv",
        "run.json",
    ]


def test_each_device_is_asked_alone_and_then_all_together(recording: Recording) -> None:
    masks = {
        name: Counter(row.mask for row in recording.answers if row.scenario == name and row.window > 0)
        for name in ("jetson1 alone", "jetson2 alone", "together")
    }
    assert [set(counts) for counts in masks.values()] == [{0b01}, {0b10}, {0b11}]
    together = [row for row in recording.answers if row.scenario == "together"]
    assert {row.state for row in together} == {State.FULL}
    assert all(len(row.devices) == 2 and row.latency_ms > 0 for row in together)


def test_phases_come_in_order_and_share_their_boundaries(recording: Recording) -> None:
    phases = [phase for phase in recording.run.phases if phase.scenario == "together"]
    assert [(phase.kind, phase.number) for phase in phases] == [
        ("settle", 0),
        ("idle", 0),
        ("warm-up", 0),
        ("window", 1),
        ("window", 2),
        ("settle", 0),
        ("idle after", 0),
    ]
    assert phases[3].end == phases[4].start
    assert all(phase.duration_s >= SHORT.duration_s for phase in phases if phase.kind == "window")


def test_marks_count_the_inferences_of_their_phase(recording: Recording) -> None:
    """In a phase at rest nobody works; in a window the counter rises by about the answers in it."""
    for phase in recording.run.phases:
        done = phase.end.snapshots["jetson1"].inferences - phase.start.snapshots["jetson1"].inferences
        if phase.kind in ("settle", "idle", "idle after") or phase.scenario == "jetson2 alone":
            assert done == 0
        elif phase.kind == "window":
            rows = [row for row in recording.answers if (row.scenario, row.window) == (phase.scenario, phase.number)]
            assert done == len(rows) > 10


def test_warm_up_has_its_number_of_answers(recording: Recording) -> None:
    for scenario in recording.run.scenarios:
        assert sum(row.scenario == scenario.name and row.window == 0 for row in recording.answers) >= 5


def test_samples_cover_all_boundaries_on_the_devices_own_clock(recording: Recording) -> None:
    """A line is needed before the first boundary and behind the last one."""
    stamps = [line.monotonic_ns for line in recording.lines["jetson1"]]
    assert stamps == sorted(stamps)
    assert stamps[0] < recording.run.phases[0].start.snapshots["jetson1"].monotonic_ns
    assert stamps[-1] > recording.run.phases[-1].end.snapshots["jetson1"].monotonic_ns


def test_device_without_a_sensor_is_recorded_with_the_reason(recording: Recording) -> None:
    assert recording.lines["jetson2"] == ()
    assert "expected a power sensor, found none" in recording.run.devices[1].sensor_problem
    assert recording.run.devices[0].sensor_problem == ""


def test_what_sampling_has_cost_a_device_is_recorded(recording: Recording) -> None:
    """A Python program every 21 ms: little, and not nothing."""
    sampled, unsampled = recording.run.devices
    assert unsampled.sampling is None
    assert sampled.sampling is not None
    windows_s = sum(phase.duration_s for phase in recording.run.phases if phase.kind == "window")
    assert sampled.sampling.duration_s > windows_s
    assert 0 < (sampled.sampling.sampler_cpu_s or 0) < sampled.sampling.duration_s
    assert 0 < sampled.sampling.reader_cpu_s < sampled.sampling.duration_s


def test_report_of_the_run_is_simulated_and_measures_what_it_can(folder: Path) -> None:
    report = analyse(folder)
    first, second = report.scenarios[2].energies
    assert report.is_simulated
    assert first.total_j_per_inference is not None
    assert first.total_j_per_inference.mean > 0
    assert (first.not_measured, second.total_j_per_inference) == ("", None)
    assert "expected a power sensor" in second.not_measured
    assert report.scenarios[2].cell is not None
    assert report.scenarios[2].cell.total_j_per_answer is None
    assert {times.device for times in report.scenarios[2].answers.devices} == {"jetson1", "jetson2"}


def test_node_status_is_kept_from_before_and_after(recording: Recording) -> None:
    before, after = recording.run.before, recording.run.after
    assert after is not None
    assert after.devices[0].answered - before.devices[0].answered > 20
    assert [device.name for device in after.devices] == ["jetson1", "jetson2"]


def test_what_is_written_is_what_is_read(recording: Recording, tmp_path: Path) -> None:
    """Latency is kept to the microsecond; everything else exactly."""
    write_recording(tmp_path / "copy", recording)
    assert read_recording(tmp_path / "copy") == recording


def test_progress_tells_scenario_seconds_and_phase(live_cell: LiveCell, tmp_path: Path) -> None:
    told: list[tuple[str, float, float, str]] = []
    plan = msgspec.structs.replace(QUICK, idle_s=0.1, warm_up_s=0.0, duration_s=0.1, interval_ms=20)
    with live_cell.client() as client:
        run_profile(
            client,
            live_cell.fleet.device[:1],
            PICTURES,
            plan,
            tmp_path,
            lambda stage, done, total, note="": told.append((stage, done, total, note)),
        )
    assert {stage for stage, *_ in told} == {"together"}
    assert told[0][3] == "idle"
    assert told[-1] == ("together", pytest.approx(0.2), pytest.approx(0.2), "")
    assert all(0 <= done < total for _, done, total, _ in told[:-1])


def _interrupt_in(phase: str) -> Progress:
    def interrupt(_stage: str, _done: float, _total: float, note: str = "") -> None:
        if note.startswith(phase):
            raise KeyboardInterrupt

    return interrupt


def test_ctrl_c_stops_the_sampler_and_keeps_the_windows_that_had_ended(live_cell: LiveCell, tmp_path: Path) -> None:
    live_cell.pid_path.unlink(missing_ok=True)
    with live_cell.client() as client:
        devices = live_cell.fleet.device
        folder = run_profile(client, devices, PICTURES, SHORT, tmp_path, _interrupt_in("window 2"))
    pid = int(live_cell.pid_path.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # the agent has ended it, and buried it, before it answered
    recording = read_recording(folder)
    assert recording.run.cut_short == CutShort("Ctrl-C or SIGTERM", True, "jetson1 alone", windows=1)
    assert [phase.kind for phase in recording.run.phases] == ["settle", "idle", "warm-up", "window"]
    assert {row.window for row in recording.answers} == {0, 1}  # the second window had begun, and is none
    report = analyse(folder)
    assert [scenario.name for scenario in report.scenarios] == ["jetson1 alone"]
    energy = report.scenarios[0].energies[0]
    assert energy.total_j_per_inference is not None
    assert (energy.total_j_per_inference.windows, energy.total_j_per_inference.low_95) == (1, None)
    assert next(doubts(report)) == (
        "the run was cut short in 'jetson1 alone', after window 1 of 2, by Ctrl-C or SIGTERM: what was measured until "
        "then is here"
    )
    with pytest.raises(KeyboardInterrupt):
        raise_if_cut_short(report)


def test_ctrl_c_before_the_first_phase_has_ended_leaves_no_folder(live_cell: LiveCell, tmp_path: Path) -> None:
    with live_cell.client() as client, pytest.raises(KeyboardInterrupt):
        run_profile(client, live_cell.fleet.device, PICTURES, SHORT, tmp_path, _interrupt_in("settle"))
    assert list(tmp_path.iterdir()) == []


def test_cell_is_profiled_by_names_with_an_endless_iterator(live_cell: LiveCell, tmp_path: Path) -> None:
    images = itertools.cycle(np.zeros((3, 6, 8, 1), np.uint8))
    plan = msgspec.structs.replace(SHORT, has_alone=False, has_idle_after=False, windows=1)
    with live_cell.client() as client:
        folder, report = measure_cell(client, live_cell.fleet, ["jetson1"], images, plan, tmp_path, no_progress)
    assert (folder / "report.html").is_file()
    assert report == analyse(folder)
    assert report.scenarios[0].cell is not None
    assert report.scenarios[0].cell.scope.startswith("1 of 2 devices")


def test_unknown_and_repeated_names_are_refused(live_cell: LiveCell, tmp_path: Path) -> None:
    with live_cell.client() as client:
        with pytest.raises(InputError, match="expected one of jetson1, jetson2"):
            measure_cell(client, live_cell.fleet, ["jetson7"], PICTURES, SHORT, tmp_path, no_progress)
        with pytest.raises(InputError, match="name it once"):
            measure_cell(client, live_cell.fleet, ["jetson1"] * 2, PICTURES, SHORT, tmp_path, no_progress)


def test_pictures_that_run_out_are_refused(live_cell: LiveCell, tmp_path: Path) -> None:
    """An iterator that ends cannot fill a window."""
    with live_cell.client() as client, pytest.raises(InputError, match="found no more"):
        run_profile(client, live_cell.fleet.device, iter(PICTURES.items[:2]), SHORT, tmp_path, no_progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"windows": 0}, {"duration_s": 0.0}, {"interval_ms": 5}, {"in_flight": 0}, {"idle_s": float("nan")}]
)
def test_plan_that_cannot_be_measured_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"plan: {next(iter(change))}: expected"):
        msgspec.structs.replace(Plan(), **change)
