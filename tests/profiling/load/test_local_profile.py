"""This machine by itself: real sampler and engine processes, a SIMULATED board, no node."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec import structs
from typer.testing import CliRunner

from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import EnergyError, InputError
from devit_contract.machine import OverCurrentEvents
from devit_contract.service.progress import no_progress
from devit_engines.bench.child import engine_command
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_profiling.cli import app
from devit_profiling.load import local_run
from devit_profiling.load.local_profile import measure_local
from devit_profiling.record.record import IDLE, IDLE_AFTER, WARM_UP, WINDOW, Plan
from devit_profiling.record.run_folder import read_recording
from devit_profiling.report.report import HTML_FILE, OUTPUTS, write_report
from devit_profiling.report.summary import summary_rows
from devit_profiling.report.warning_list import warnings

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
SIMULATOR = [sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano"]
SHORT = Plan(
    settle_s=0.0,
    idle_s=0.5,
    warm_up_s=0.3,
    warm_up_answers=3,
    duration_s=0.5,
    windows=2,
    interval_ms=20,
    idle_samples=3,
    window_samples=3,
)


def test_machine_at_rest_gives_idle_power_and_says_that_there_is_no_more(tmp_path: Path) -> None:
    """The simulated board looks like an Orin Nano, and is called what it was named."""
    folder = measure_local((), 0, SHORT, tmp_path, no_progress, sensor_command=SIMULATOR, board_choice="orin-nx")
    report = write_report(folder)
    (scenario,), (device,) = report.scenarios, report.devices
    (energy,) = scenario.energies
    assert report.is_local
    assert report.is_simulated
    assert (device.board, device.is_board_guessed) == ("Jetson Orin NX", False)
    assert [window.inferences for window in energy.windows] == [0, 0]
    assert energy.idle_w is not None
    assert 3 < energy.idle_w < 6
    assert energy.idle_w == energy.mean_w
    assert energy.total_j_per_inference is None
    assert scenario.answers.p50_ms is None
    notes = list(warnings(report))
    assert notes[0].startswith("local at rest: no engine ran, so this is idle power only")
    assert not any("no inference" in note for note in notes)
    assert "no network, no fusion" not in (folder / HTML_FILE).read_text()
    before = [(folder / name).read_bytes() for name in OUTPUTS]
    write_report(folder)
    assert [(folder / name).read_bytes() for name in OUTPUTS] == before


def test_machine_without_sensor_and_engine_has_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(EnergyError, match=r"cannot be started.*; --bundle DIR measures latency all the same"):
        measure_local((), 0, SHORT, tmp_path, no_progress, sensor_command=["/nowhere/tegrastats"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--devices", "local", "--rate", "5"], "--rate"),
        (["local", "--devices", "jetson1"], "--devices"),
        (["--devices", "jetson1", "--bundle", "x"], "--bundle"),
    ],
)
def test_options_of_a_cell_and_of_this_machine_exclude_each_other(arguments: list[str], option: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert f"No such option: {option}" in result.output


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_full_is_refused_before_a_run_and_loses_none_after_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a disk")

    def fill(_stage: str, _done: float, _total: float, note: str = "") -> None:
        if note.startswith("window 2"):
            with suppress(OSError), (disk / "fill").open("wb") as file:
                file.write(bytes(2_000_000))

    try:
        with pytest.raises(
            InputError, match=r"cannot be written \(No space left on device\); the run is kept in"
        ) as error:
            measure_local((), 0, SHORT, disk / "runs", fill, sensor_command=SIMULATOR)
        kept = Path(str(error.value).partition("the run is kept in ")[2].partition(": ")[0])
        assert write_report(kept).scenarios[0].energies[0].mean_w is not None
        shutil.rmtree(kept)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\): choose another folder"):
            measure_local((), 0, SHORT, disk / "runs", no_progress, sensor_command=SIMULATOR)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.system
def test_engine_of_this_machine_has_joules_and_milliseconds_without_a_node(tmp_path: Path) -> None:
    engine = engine_command(TINY, 1, None, 1, "busy:5")
    folder = measure_local(engine, 1, SHORT, tmp_path, no_progress, sensor_command=SIMULATOR)
    report = write_report(folder)
    phases = read_recording(folder).run.phases
    assert [phase.kind for phase in phases] == [IDLE, WARM_UP, WINDOW, WINDOW, IDLE_AFTER]
    (scenario,) = report.scenarios
    (energy,) = scenario.energies
    assert energy.total_j_per_inference is not None
    assert energy.mean_w is not None
    inferences = sum(window.inferences for window in energy.windows)
    seconds = sum(window.duration_s for window in energy.windows)
    assert energy.total_j_per_inference.mean == pytest.approx(energy.mean_w * seconds / inferences, rel=0.2)
    assert scenario.answers.p50_ms is not None
    assert scenario.answers.p50_ms >= 5
    assert [row[0] for row in summary_rows(report)] == ["local"]
    assert report.not_measured == ("node and network: not involved, as this machine alone was measured",)
    assert "no network, no fusion" in (folder / HTML_FILE).read_text()


def test_events_of_a_loaded_window_are_counted_from_the_end_of_the_phase_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine runs in another process, so a phase is noted when it has ended."""
    counts = itertools.count(1)
    monkeypatch.setattr(local_run, "over_current_events", lambda: OverCurrentEvents(0, 0, next(counts)))
    plan = structs.replace(SHORT, has_power=False, idle_s=0.05, warm_up_s=0.05, duration_s=0.05)
    folder = measure_local(engine_command(TINY, 1, None, 1, "busy:5"), 1, plan, tmp_path, no_progress)
    warm_up, *windows = [phase for phase in read_recording(folder).run.phases if phase.kind in (WARM_UP, WINDOW)]
    for before, window in zip((warm_up, *windows), windows, strict=False):
        assert window.start.snapshots["local"].over_current == before.end.snapshots["local"].over_current
    (energy,) = write_report(folder).scenarios[0].energies
    assert energy.over_current == dict.fromkeys((1, 2), OverCurrentEvents(0, 0, 1))


@pytest.mark.system
def test_engine_without_a_sensor_has_milliseconds_alone(tmp_path: Path) -> None:
    engine = engine_command(TINY, 0, None, 1, "busy:5")
    report = write_report(
        measure_local(engine, 0, SHORT, tmp_path, no_progress, sensor_command=["/nowhere/tegrastats"])
    )
    assert "cannot be started" in report.devices[0].not_measured
    assert report.scenarios[0].energies[0].mean_w is None
    assert report.scenarios[0].answers.p50_ms is not None


@pytest.mark.system
def test_interrupt_keeps_the_windows_that_have_ended(tmp_path: Path) -> None:
    def interrupt(stage: str, done: float, total: float, note: str = "") -> None:
        if note.startswith("window ") and not note.startswith("window 1 "):
            os.kill(os.getpid(), signal.SIGINT)

    plan = structs.replace(SHORT, windows=1000, duration_s=0.3)
    engine = engine_command(TINY, 0, None, 1, "busy:5")
    folder = measure_local(engine, 0, plan, tmp_path, interrupt, sensor_command=SIMULATOR)
    report = write_report(folder)
    assert report.cut_short is not None
    assert report.cut_short.is_interrupt
    ended = [window.number for window in report.scenarios[0].energies[0].windows]
    assert ended == list(range(1, report.cut_short.windows + 1))
    assert ended
    assert {row.window for row in read_recording(folder).answers} == {0, *ended}


@pytest.mark.system
def test_command_runs_the_engine_that_was_built_here(tmp_path: Path) -> None:
    build_engines(Bundle(TINY), Store(tmp_path / "store"), submodels=[0])
    command = ["--devices", "local", "--bundle", str(TINY), "--store", str(tmp_path / "store"), "--quick"]
    command += ["--idle", "0.5", "--warm-up", "0.1", "--duration", "0.3", "--out", str(tmp_path / "runs"), "--no-power"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert result.stdout.startswith("Quick look")
    assert "ms: of single inferences, back to back." in " ".join(result.stdout.split())
    assert "local: power not measured: left out by the plan (--no-power)" in result.stdout
    assert result.stdout.endswith(f"report: {folder / HTML_FILE}\n")
