"""Runs against a real node and real agents; the power is simulated, the phases are short."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from tests.support.gone import assert_gone

from devit_contract.errors import InputError
from devit_contract.service.progress import Progress, no_progress
from devit_contract.wire.codec import State
from devit_profiling.figures.analysis import analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.load.cell_run import measure_cell, raise_if_cut_short
from devit_profiling.load.load_generator import random_images
from devit_profiling.load.schedule import check_windows
from devit_profiling.record import run_folder
from devit_profiling.record.record import NO_POWER, QUICK, CutShort, Plan, Recording
from devit_profiling.record.run_folder import read_recording, write_recording
from devit_profiling.report.warning_list import warnings

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
PICTURES = random_images((6, 8, 1))


@pytest.fixture(scope="module")
def folder(live_cell: LiveCell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the short plan, for all tests that only look at it."""
    out = tmp_path_factory.mktemp("runs")
    with live_cell.client() as client:
        return measure_cell(client, live_cell.fleet, live_cell.names, PICTURES, SHORT, out, no_progress)


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
    report = analyse(Evidence.read(folder))
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
    before, after = recording.run.node_before, recording.run.node_after
    assert before is not None
    assert after is not None
    assert after.devices[0].answered - before.devices[0].answered > 20
    assert [device.name for device in after.devices] == ["jetson1", "jetson2"]


def test_what_is_written_is_what_is_read(recording: Recording, tmp_path: Path) -> None:
    """Latency is kept to the microsecond; everything else exactly."""
    write_recording(tmp_path / "copy", recording)
    assert read_recording(tmp_path / "copy") == recording


def test_progress_tells_scenario_seconds_and_phase(live_cell: LiveCell, tmp_path: Path) -> None:
    told: list[tuple[str, float, float, str]] = []
    plan = msgspec.structs.replace(QUICK, idle_s=0.1, warm_up_s=0.0, duration_s=0.1, interval_ms=20, has_power=False)
    with live_cell.client() as client:
        measure_cell(
            client,
            live_cell.fleet,
            ["jetson1"],
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
        folder = measure_cell(
            client, live_cell.fleet, live_cell.names, PICTURES, SHORT, tmp_path, _interrupt_in("window 2")
        )
    assert_gone(int(live_cell.pid_path.read_text()))  # the agent does not wait for it
    recording = read_recording(folder)
    assert recording.run.cut_short == CutShort("Ctrl-C or SIGTERM", True, "jetson1 alone", windows=1)
    assert [phase.kind for phase in recording.run.phases] == ["settle", "idle", "warm-up", "window"]
    assert {row.window for row in recording.answers} == {0, 1}  # the second window had begun, and is none
    report = analyse(Evidence.read(folder))
    assert [scenario.name for scenario in report.scenarios] == ["jetson1 alone"]
    energy = report.scenarios[0].energies[0]
    assert energy.total_j_per_inference is not None
    assert (energy.total_j_per_inference.windows, energy.total_j_per_inference.low_95) == (1, None)
    assert next(warnings(report)) == (
        "the run was cut short in 'jetson1 alone', after window 1 of 2, by Ctrl-C or SIGTERM: what was measured until "
        "then is here"
    )
    with pytest.raises(KeyboardInterrupt):
        raise_if_cut_short(report.cut_short)


def test_ctrl_c_before_the_first_phase_has_ended_leaves_no_folder(live_cell: LiveCell, tmp_path: Path) -> None:
    with live_cell.client() as client, pytest.raises(KeyboardInterrupt):
        measure_cell(client, live_cell.fleet, live_cell.names, PICTURES, SHORT, tmp_path, _interrupt_in("settle"))
    assert list(tmp_path.iterdir()) == []


def test_cell_is_profiled_by_names_with_an_endless_iterator(live_cell: LiveCell, tmp_path: Path) -> None:
    images = itertools.cycle(np.zeros((3, 6, 8, 1), np.uint8))
    plan = msgspec.structs.replace(SHORT, has_alone=False, has_idle_after=False, windows=1)
    with live_cell.client() as client:
        folder = measure_cell(client, live_cell.fleet, ["jetson1"], images, plan, tmp_path, no_progress)
    report = analyse(Evidence.read(folder))
    assert report.scenarios[0].cell is not None
    assert report.scenarios[0].cell.scope.startswith("1 of 2 devices")


def test_unknown_and_repeated_names_are_refused(live_cell: LiveCell, tmp_path: Path) -> None:
    with live_cell.client() as client:
        with pytest.raises(InputError, match="expected one of jetson1, jetson2"):
            measure_cell(client, live_cell.fleet, ["jetson7"], PICTURES, SHORT, tmp_path, no_progress)
        with pytest.raises(InputError, match="name it once"):
            measure_cell(client, live_cell.fleet, ["jetson1"] * 2, PICTURES, SHORT, tmp_path, no_progress)


def test_windows_that_cannot_give_joules_are_refused_before_anything_is_measured(
    live_cell: LiveCell, tmp_path: Path
) -> None:
    plan, started = Plan(duration_s=5, windows=3), []
    with (
        live_cell.client() as client,
        pytest.raises(InputError, match=r"plan: windows of 5 s .* choose --duration 10 "),
    ):
        measure_cell(
            client,
            live_cell.fleet,
            live_cell.names,
            PICTURES,
            plan,
            tmp_path,
            no_progress,
            None,
            lambda: started.append(1),
        )
    assert (started, list(tmp_path.iterdir())) == ([], [])


def test_times_alone_need_no_window_that_joules_would_and_leave_the_sensors_alone(
    live_cell: LiveCell, tmp_path: Path
) -> None:
    live_cell.pid_path.unlink(missing_ok=True)
    plan = msgspec.structs.replace(SHORT, window_samples=None, has_power=False, has_alone=False, windows=1)
    with live_cell.client() as client:
        folder = measure_cell(client, live_cell.fleet, live_cell.names, PICTURES, plan, tmp_path, no_progress)
    report = analyse(Evidence.read(folder))
    assert {device.not_measured for device in report.devices} == {NO_POWER}
    assert report.scenarios[0].answers.p50_ms is not None
    assert not live_cell.pid_path.exists()


def test_a_run_whose_folder_cannot_be_written_at_the_end_is_kept_elsewhere(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the place of the folder of runs stands in for a full disk."""
    monkeypatch.setattr(run_folder, "_ELSEWHERE", (tmp_path / "runs", tmp_path / "elsewhere"))
    (tmp_path / "runs").write_text("")
    with pytest.raises(
        InputError, match=r"cannot be written.*; the run is kept in \S+/elsewhere/run: make room"
    ) as error:
        write_recording(tmp_path / "runs" / "run", recording)
    assert len(str(error.value).splitlines()) == 1
    assert read_recording(tmp_path / "elsewhere" / "run") == recording


@pytest.mark.parametrize(
    ("interval_ms", "least_s"), [(20, 10), (100, 10), (250, 10), (251, 30), (900, 30), (1000, 33), (5000, 164)]
)
def test_windows_are_as_long_as_the_samples_need(interval_ms: int, least_s: int) -> None:
    """Ten seconds up to 250 ms, thirty beyond, and thirty samples that come 9 % late."""
    plan = Plan(interval_ms=interval_ms, duration_s=least_s)
    check_windows(plan)
    with pytest.raises(InputError, match=rf"choose --duration {least_s} or longer, or --no-power"):
        check_windows(msgspec.structs.replace(plan, duration_s=least_s - 0.1))
    check_windows(msgspec.structs.replace(plan, duration_s=0.1, has_power=False))
    check_windows(msgspec.structs.replace(plan, duration_s=0.1, window_samples=3))


def test_pictures_that_run_out_are_refused(live_cell: LiveCell, tmp_path: Path) -> None:
    """An iterator that ends cannot fill a window."""
    with live_cell.client() as client, pytest.raises(InputError, match="the images ended before the run did"):
        measure_cell(client, live_cell.fleet, live_cell.names, iter(PICTURES.items[:2]), SHORT, tmp_path, no_progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"windows": 0}, {"duration_s": 0.0}, {"interval_ms": 5}, {"in_flight": 0}, {"idle_s": float("nan")}]
)
def test_plan_that_cannot_be_measured_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"plan: {next(iter(change))}: expected"):
        msgspec.structs.replace(Plan(), **change)
