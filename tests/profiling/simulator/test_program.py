"""The simulated board in virtual time, and its program as a process."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devit_profiling.sensor.board_table import AGX_ORIN, AGX_THOR, BOARDS, NANO, ORIN_NANO, XAVIER_NX, Board
from devit_profiling.sensor.boards import guess_board, total_mw
from devit_profiling.sensor.sample import Sample
from devit_profiling.sensor.tegrastats import parse_line
from devit_profiling.simulator.board import SIMULATED_BOARDS, SimulatedBoard
from devit_profiling.simulator.boards import POWER
from devit_profiling.simulator.power import Physics
from devit_profiling.simulator.program import CpuMeter, main

DEADLINE_S = 30.0
PROGRAM = [sys.executable, "-m", "devit_profiling.simulator.program"]

every_board = pytest.mark.parametrize(
    "board", [BOARDS[key] for key in SIMULATED_BOARDS], ids=lambda board: str(board.key)
)


def sample_of(line: str) -> Sample:
    sample = parse_line(line)
    assert sample is not None, line
    return sample


@every_board
def test_line_reads_as_one_of_the_board_and_as_simulated(board: Board) -> None:
    sample = sample_of(SimulatedBoard(board, ripple_steps=0.0, physics=Physics()).line(0.0, 0.0))
    assert sample.is_simulated
    assert list(sample.rails_mw) == list(POWER[board.key].idle_mw)
    assert guess_board(sample) is board
    total = total_mw(board, sample.rails_mw)
    assert total is not None
    assert total == pytest.approx(sum(POWER[board.key].idle_mw[rail] for rail in board.total_rails), rel=0.05)
    assert sample.gpu_percent == (0 if board is not AGX_THOR else None)
    assert sample.stamp == ("01-01-2026 00:00:00" if board is not NANO else None)
    cores = {ORIN_NANO.key: 6, AGX_ORIN.key: 12, XAVIER_NX.key: 6, NANO.key: 4, AGX_THOR.key: 14}
    assert len(sample.cpu) == cores[board.key]


@every_board
def test_cut_off_line_that_is_still_a_sample_is_still_simulated(board: Board) -> None:
    """A figure of the simulation must never pass for a measured one."""
    line = SimulatedBoard(board).line(0.0, 0.5)
    samples = [parse_line(line[:length]) for length in range(len(line))]
    assert all(sample.is_simulated for sample in samples if sample is not None)


@every_board
def test_reading_has_risen_by_63_percent_one_time_constant_after_a_step(board: Board) -> None:
    simulated = SimulatedBoard(board, ripple_steps=0.0, physics=Physics(leakage_per_c=0.0))
    simulated.line(0.0, 0.0)
    rails_mw = sample_of(simulated.line(board.tau_s, 1.0)).rails_mw
    for rail, power_mw in rails_mw.items():
        idle_mw, load_mw = POWER[board.key].idle_mw[rail], POWER[board.key].load_mw[rail]
        expected_mw = idle_mw + (1 - math.exp(-1)) * (load_mw - idle_mw)
        assert abs(power_mw - expected_mw) <= board.lsb_mw[rail]


def test_lag_does_not_depend_on_the_sampling_period() -> None:
    slow, fast = SimulatedBoard(ORIN_NANO), SimulatedBoard(ORIN_NANO)
    slow.line(0.0, 0.0)
    fast.line(0.0, 0.0)
    for step in range(1, 11):
        fine = sample_of(fast.line(step * 0.1, 1.0)).rails_mw["VDD_IN"]
    coarse = sample_of(slow.line(1.0, 1.0)).rails_mw["VDD_IN"]
    assert fine == pytest.approx(coarse, abs=40 + 0.02 * coarse)


@every_board
def test_full_load_settles_at_the_figures_of_the_board(board: Board) -> None:
    simulated = SimulatedBoard(board, ripple_steps=0.0, physics=Physics())
    simulated.line(0.0, 0.0)
    sample = sample_of(simulated.line(1800.0, 1.7))
    assert sample.gpu_percent == (100 if board is not AGX_THOR else None)
    for rail, power_mw in sample.rails_mw.items():
        # A rail that reads below zero without power does so under load.
        expected_mw = POWER[board.key].load_mw[rail] + min(POWER[board.key].idle_mw[rail], 0)
        assert power_mw == pytest.approx(expected_mw, abs=board.lsb_mw[rail])


@every_board
def test_readings_are_whole_steps_of_the_sensor(board: Board) -> None:
    simulated = SimulatedBoard(board)
    for number in range(50):
        for rail, power_mw in sample_of(simulated.line(number * 0.106, (number % 7) / 7)).rails_mw.items():
            assert power_mw % board.lsb_mw[rail] == 0


def test_readings_at_constant_load_are_noisy() -> None:
    simulated = SimulatedBoard(ORIN_NANO)
    readings = {sample_of(simulated.line(10.0 + number, 1.0)).rails_mw["VDD_IN"] for number in range(20)}
    assert len(readings) > 1


def test_same_seed_gives_the_same_lines_and_another_seed_others() -> None:
    def lines(seed: int) -> list[str]:
        simulated = SimulatedBoard(ORIN_NANO, seed=seed)
        return [simulated.line(number * 0.106, 0.5) for number in range(20)]

    assert lines(1) == lines(1)
    assert lines(1) != lines(2)


def test_temperatures_rise_slowly_under_load() -> None:
    simulated = SimulatedBoard(ORIN_NANO)
    junction_c = [sample_of(simulated.line(time_s, 1.0)).temperatures_c["tj"] for time_s in (0.0, 1.0, 90.0, 900.0)]
    assert junction_c == sorted(junction_c)
    assert junction_c[1] - junction_c[0] < 0.5
    assert 5.0 < junction_c[3] - junction_c[0] <= 15.0


def test_second_column_is_the_mean_since_the_start() -> None:
    simulated = SimulatedBoard(ORIN_NANO)
    lines = [simulated.line(float(number), 1.0) for number in range(5)]
    readings_mw = [sample_of(line).rails_mw["VDD_IN"] for line in lines]
    assert f"VDD_IN {readings_mw[-1]}mW/{sum(readings_mw) // 5}mW " in lines[-1]


def stat(user_ticks: int, system_ticks: int, *, state: str = "S", started_ticks: int = 777) -> str:
    """Write a line of proc(5) for a process with an awkward name."""
    return f"42 (a) (b c) {state} 1 42 42 0 -1 0 0 0 0 0 {user_ticks} {system_ticks} 5 5 20 0 1 0 {started_ticks} 0 0\n"


class FakeProc:
    """A root folder with one process."""

    def __init__(self, root: Path) -> None:
        """Make the folders; the process has no counters yet."""
        self.root = root
        self.file = root / "proc" / "42" / "stat"
        self.file.parent.mkdir(parents=True)

    def write(self, text: str) -> None:
        self.file.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def test_share_is_the_cpu_time_since_the_last_call(proc: FakeProc) -> None:
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    proc.write(stat(1000, 500))
    meter = CpuMeter(42, proc.root)
    assert meter.share(10.0) == 0.0
    proc.write(stat(1000 + ticks_per_s // 4, 500 + ticks_per_s // 4))
    assert meter.share(11.0) == pytest.approx(0.5)
    assert meter.share(12.0) == 0.0
    proc.write(stat(1000 + 4 * ticks_per_s, 500))
    assert meter.share(13.0) == pytest.approx(3.5)


@pytest.mark.parametrize("end", ["gone", "dead", "replaced"])
def test_share_of_a_process_that_has_ended_is_absent(proc: FakeProc, end: str) -> None:
    """A zombie uses nothing any more, and a process id may be given to another process."""
    proc.write(stat(10, 10))
    meter = CpuMeter(42, proc.root)
    if end == "gone":
        proc.file.unlink()
    else:
        proc.write(stat(10, 10, state="Z") if end == "dead" else stat(10, 10, started_ticks=999))
    assert meter.share(1.0) is None


def test_process_that_was_never_there_has_no_share(proc: FakeProc) -> None:
    assert CpuMeter(42, proc.root).share(1.0) is None


def first_line(process: subprocess.Popen[str]) -> str:
    """Read one line; the test's own time-out is the deadline."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_program_ends_with_the_process_that_it_watches() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as watched:
        command = [*PROGRAM, "--interval", "20", "--watch-pid", str(watched.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
            assert sample_of(first_line(program)).is_simulated
            watched.kill()
            _, complaints = program.communicate(timeout=DEADLINE_S)
    assert (program.returncode, complaints) == (0, "")


def test_program_ends_at_once_when_nobody_reads() -> None:
    """The interval is longer than the deadline: it is the closed pipe that ends it, not the next line."""
    command = [*PROGRAM, "--interval", "60000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        program.wait(DEADLINE_S)
        assert (program.returncode, program.stderr.read()) == (0, "")


@pytest.mark.parametrize("key", SIMULATED_BOARDS)
def test_program_simulates_every_board_with_every_error(key: str) -> None:
    errors = ["--sensor", "average", "--ripple", "1.5", "--ramp", "0.5", "--pauses", "1", "--seed", "3"]
    command = [*PROGRAM, "--interval", "20", "--board", key, *errors]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        sample = sample_of(first_line(program))
        program.terminate()
        _, complaints = program.communicate(timeout=DEADLINE_S)
    assert (sample.is_simulated, complaints) == (True, "")
    assert list(sample.rails_mw) == list(POWER[key].idle_mw)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_program_ends_by_signal_without_a_traceback(number: signal.Signals) -> None:
    command = [*PROGRAM, "--interval", "20", "--board", "agx-orin"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert "VIN_SYS_5V0" in first_line(program)
        program.send_signal(number)
        _, complaints = program.communicate(timeout=DEADLINE_S)
    assert (program.returncode, complaints) == (-number, "")


def test_program_starts_without_the_heavy_libraries() -> None:
    """The first line of a sampler must not wait for imports."""
    code = (
        "import sys, devit_profiling.simulator.program; "
        "print([m for m in ('numpy', 'matplotlib', 'zmq') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert found.stdout.strip() == "[]"


def test_help_tells_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "milliseconds" in text
    assert "default: 1000" in text


@pytest.mark.parametrize(
    "options",
    [["--board", "toaster"], ["--interval", "0"], ["--interval", "soon"], ["--ripple", "-1"], ["--sensor", "none"]],
)
def test_wrong_options_are_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err
