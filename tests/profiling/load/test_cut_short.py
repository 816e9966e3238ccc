"""Runs that end before their plan does: whole processes, a signal or a killed agent in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from devit_contract.errors import LinkError
from devit_pipeline.local_cell import LocalCell, LocalDevice
from devit_profiling.load.cell_run import measure_cell, raise_if_cut_short
from devit_profiling.load.load_generator import random_images
from devit_profiling.record.record import Plan
from devit_profiling.record.run_folder import read_recording
from devit_profiling.report.report import OUTPUTS, write_report

pytestmark = pytest.mark.system
TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
SIMULATOR = (sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano")
OPTIONS = ["--settle", "0", "--idle", "0.5", "--warm-up", "0.1", "--duration", "0.5", "--windows", "2"]
OPTIONS += ["--no-power"]
PLAN = Plan(settle_s=0.0, idle_s=0.4, warm_up_s=0.1, duration_s=0.4, windows=2, interval_ms=20, window_samples=3)


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    devices = [LocalDevice(f"jetson{index + 1}", index, tegrastats=SIMULATOR, engine="null") for index in range(2)]
    with LocalCell(TINY, tmp_path_factory.mktemp("cell"), devices, deadline_ms=1000) as running:
        yield running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_command_with_130_and_a_whole_report(
    cell: LocalCell, tmp_path: Path, number: signal.Signals
) -> None:
    code = "from devit_profiling.cli import main; main()"
    command = [sys.executable, "-c", code, "--devices", "jetson1,jetson2", "--fleet", str(cell.fleet_path)]
    command += ["--key", str(cell.client_key_path), "--out", str(tmp_path), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("jetson1 alone: done"):
                process.send_signal(number)
                break
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    (folder,) = tmp_path.iterdir()
    assert "warning: the run was cut short in 'jetson" in output
    assert output.endswith(f"report: {folder / 'report.html'}\n")
    before = [(folder / name).read_bytes() for name in OUTPUTS]
    write_report(folder)
    assert [(folder / name).read_bytes() for name in OUTPUTS] == before
    assert b"Cut short." in (folder / "report.html").read_bytes()


def test_agent_killed_in_the_middle_leaves_what_was_measured(cell: LocalCell, tmp_path: Path) -> None:
    """Its last window has no end on its clock, and is no figure; the run says which link was lost."""

    def kill(stage: str, _done: float, _total: float, note: str = "") -> None:
        if stage == "together" and note == "window 2 of 2" and "jetson2" in cell.pids:
            cell.kill("jetson2")

    with cell.client() as client:
        pictures = random_images((6, 8, 1))
        folder = measure_cell(client, cell.fleet, ["jetson1", "jetson2"], pictures, PLAN, tmp_path, kill)
    cell.start_agents(["jetson2"])
    report = write_report(folder)
    assert report.cut_short is not None
    assert (report.cut_short.is_interrupt, report.cut_short.scenario, report.cut_short.windows) == (
        False,
        "together",
        1,
    )
    assert "jetson2" in report.cut_short.cause
    together = report.scenarios[-1]
    assert [window.number for window in together.answers.windows] == [1]
    assert msgspec.structs.asdict(report.plan) == msgspec.structs.asdict(read_recording(folder).run.plan)
    with pytest.raises(LinkError, match="jetson2"):
        raise_if_cut_short(report.cut_short)


def test_node_killed_in_the_middle_leaves_what_was_measured(cell: LocalCell, tmp_path: Path) -> None:
    def kill(_stage: str, _done: float, _total: float, note: str = "") -> None:
        if note == "window 2 of 2" and "node" in cell.pids:
            cell.kill("node")

    with cell.client(timeout_s=2.0) as client:
        pictures = random_images((6, 8, 1))
        folder = measure_cell(client, cell.fleet, ["jetson1"], pictures, PLAN, tmp_path, kill)
    report = write_report(folder)
    assert report.cut_short is not None
    assert (report.cut_short.scenario, report.cut_short.windows) == ("jetson1 alone", 1)
    assert read_recording(folder).run.node_after is None
