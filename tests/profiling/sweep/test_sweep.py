"""Sweeps over power modes: real engine process, real sampler, SIMULATED board and ``nvpmodel``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.profiling.power_modes import ModeBoard, engine_command, mode_board

from devit_contract.errors import EnergyError, InputError
from devit_contract.service.progress import no_progress
from devit_profiling.figures.interval import Estimate
from devit_profiling.record.record import Plan
from devit_profiling.report.report import JSON_FILE, OUTPUTS, write_report
from devit_profiling.sweep.cli import show
from devit_profiling.sweep.nvpmodel import STATE_FILE, NvpModel
from devit_profiling.sweep.sweep import SweepTarget, sweep
from devit_profiling.sweep.verdict import ModeFigures, Sweep, choose

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"
SHORT = Plan(
    settle_s=0.1,
    idle_s=0.5,
    warm_up_s=0.5,
    warm_up_answers=3,
    duration_s=0.8,
    windows=2,
    interval_ms=20,
    idle_samples=3,
    window_samples=3,
)
PACES_MS = {0: 30, 1: 32, 2: 800}


def figures(number: int, joules: float | None, p99_ms: float, half: float = 0.001) -> ModeFigures:
    estimate = None if joules is None else Estimate(joules, 5, joules - half, joules + half)
    return ModeFigures(
        number=number,
        name=f"M{number}",
        p50_ms=p99_ms / 2,
        p99_ms=p99_ms,
        per_second=100.0,
        keeps_deadline=p99_ms <= 10,
        total_j_per_inference=estimate,
        resolution_j_per_inference=0.0001,
        idle_w=4.0,
        mean_w=9.0,
        not_measured="" if joules is not None else "no sensor",
    )


def test_cheapest_of_the_modes_that_keep_the_deadline_is_chosen() -> None:
    chosen, text = choose([figures(0, 0.05, 4), figures(1, 0.04, 9), figures(2, 0.02, 11)], 10)
    assert chosen is not None
    assert chosen.number == 1
    assert text == (
        "M1 (mode 1) is the cheapest that keeps the deadline of 10.0 ms, with 0.0400 J per inference and a p99 of "
        "9.00 ms"
    )


def test_modes_whose_intervals_touch_are_not_told_apart() -> None:
    _, text = choose([figures(0, 0.041, 4), figures(1, 0.04, 9), figures(2, 0.05, 9)], 10)
    assert text.endswith("; intervals do not tell it apart from M0 (mode 0)")


def test_deadline_that_no_mode_keeps_names_the_quickest() -> None:
    chosen, text = choose([figures(0, 0.05, 14), figures(1, 0.04, 19)], 10)
    assert chosen is None
    assert text == "no mode keeps the deadline of 10.0 ms; the quickest is M0 (mode 0) with a p99 of 14.0 ms"


def test_modes_without_joules_have_no_cheapest() -> None:
    assert choose([figures(0, None, 4)], 10) == (
        None,
        "no joules were measured in a mode that keeps the deadline: no sensor",
    )


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModeBoard:
    """In mode 2."""
    board = mode_board(tmp_path, 2)
    monkeypatch.setenv("PATH", f"{board.path}:{os.environ['PATH']}")
    return board


def bench(board: ModeBoard) -> SweepTarget:
    return SweepTarget("local", 0, engine_command(board, TINY, PACES_MS), NvpModel(), board.folder / "state")


def test_modes_listed_twice_or_not_at_all_are_refused_before_anything_is_changed(board: ModeBoard) -> None:
    for modes in ([], [0, 0]):
        with pytest.raises(InputError, match="expected power modes, each once"):
            sweep(bench(board), modes, 10.0, SHORT, board.folder / "runs", no_progress)
    assert board.calls == []


@pytest.mark.system
def test_sweep_names_the_cheapest_mode_and_restores_the_one_it_found(
    board: ModeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mode 0 takes most power, mode 2 misses the deadline, mode 3 needs a reboot."""
    folder, found = sweep(bench(board), [0, 1, 2, 3], 600.0, SHORT, board.folder / "runs", no_progress)
    assert board.mode == 2
    assert not board.has_rebooted
    assert not (board.folder / "state" / STATE_FILE).exists()
    assert [(mode.number, mode.keeps_deadline) for mode in found.modes] == [(0, True), (1, True), (2, False)]
    assert found.cheapest == 1
    assert found.verdict.startswith("SIMULATED: SIMULATED_1 (mode 1) is the cheapest that keeps the deadline of 600 ms")
    assert found.refused[0].startswith("power mode 3 needs a reboot")
    assert found.is_simulated
    assert found.is_whole
    assert msgspec.json.decode((folder / "sweep.json").read_bytes(), type=Sweep) == found
    show(folder, found)
    said = capsys.readouterr().out
    assert said.startswith("Power modes of local: SIMULATED power, no measurement of a board")
    assert "SIMULATED_1 (mode 1) is the cheapest" in said
    assert "note: joules of module input (VDD_IN), not calibrated" in said
    assert "note: power mode 3 needs a reboot" in said
    # It is a run like any other: its report is made again from its raw files.
    before = {name: (folder / name).read_bytes() for name in OUTPUTS}
    for name in OUTPUTS:
        (folder / name).unlink()
    write_report(folder)
    assert {name: (folder / name).read_bytes() for name in OUTPUTS} == before
    report = json.loads(before[JSON_FILE])
    for mode, scenario in zip(found.modes, report["scenarios"], strict=True):
        (energy,) = scenario["energies"]
        assert mode.total_j_per_inference is not None
        assert energy["total_j_per_inference"]["mean"] == mode.total_j_per_inference.mean
        assert mode.p50_ms is not None
        assert mode.p50_ms >= PACES_MS[mode.number]


@pytest.mark.system
def test_sweep_without_any_mode_that_can_be_set_says_why(board: ModeBoard) -> None:
    with pytest.raises(EnergyError, match="power mode 3 needs a reboot"):
        sweep(bench(board), [3], 250.0, SHORT, board.folder / "runs", no_progress)
    with pytest.raises(EnergyError, match="nvpmodel -m 7: expected mode 7, found"):
        sweep(bench(board), [7], 250.0, SHORT, board.folder / "runs", no_progress)
    assert board.mode == 2


def arguments(board: ModeBoard, *more: str) -> list[str]:
    plan = ["--duration", "10", "--windows", "1", "--idle", "1", "--settle", "0"]
    common = ["--bundle", str(TINY), "--engine", "busy:5", "--out", str(board.folder / "runs"), *plan]
    code = "from devit_profiling.cli import main; main()"
    return [sys.executable, "-c", code, "sweep", "--state", str(board.folder / "state"), *common, *more]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + 60.0
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_command_gives_the_mode_back_whatever_ends_it(board: ModeBoard, number: signal.Signals) -> None:
    command = arguments(board, "--power-modes", "0,1", "--deadline-ms", "50")
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: board.mode == 0 and len(children(process.pid)) == 2, process)
        below = children(process.pid)
        process.send_signal(number)
        code = process.wait(60)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert board.mode == (0 if number == signal.SIGKILL else 2)
    if number == signal.SIGKILL:
        restoring = arguments(board, "--restore")
        done = subprocess.run(restoring, capture_output=True, text=True, timeout=60, check=True)
        assert "SIMULATED_2 (mode 2), which a killed sweep had changed, is set again" in done.stderr
        assert board.mode == 2
    end_s = time.monotonic() + 30.0
    while any(Path(f"/proc/{pid}").exists() for pid in below):  # engine and sampler have ended by themselves
        assert time.monotonic() < end_s
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_usage_names_what_is_missing(board: ModeBoard) -> None:
    done = subprocess.run(arguments(board), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    said = " ".join(done.stderr.replace("│", " ").split())
    assert "give --power-modes, --deadline-ms and --bundle, or --restore alone" in said
