"""The program itself, as a process: its lines, its ends, and what it leaves behind when it is killed for real."""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from tests.profiling.sysfs_tree import break_file, orin_nano

from devit_profiling.sensor.hwmon_averaging import STATE_FILE
from devit_profiling.sensor.sampler import PowerSampler
from devit_profiling.sensor.sensor_lines import parse_hwmon_line, time_ns_of

PROGRAM = [sys.executable, "-m", "devit_profiling.sensor.hwmon"]
DEADLINE_S = 30.0


@contextmanager
def started(root: Path, *options: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [*PROGRAM, "--root", str(root), *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def run(root: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself."""
    command = [*PROGRAM, "--root", str(root), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def lines_of(child: subprocess.Popen[str], count: int) -> list[str]:
    assert child.stdout is not None
    lines = [child.stdout.readline().rstrip("\n") for _ in range(count)]
    assert all(lines), child.communicate(timeout=DEADLINE_S)[1]
    return lines


def sampler_parent(root: Path, then: str) -> subprocess.CompletedProcess[bytes]:
    """Run a process that samples with --fast-sensor, and does this after the first line."""
    command = [*PROGRAM, "--root", str(root), "--fast-sensor", "--state", str(root / "state")]
    code = (
        "import os, select, signal\n"
        "from devit_profiling.sensor.sampler import PowerSampler\n"
        f"with PowerSampler({command!r}, 20) as sampler:\n"
        "    select.select([sampler], [], [])\n"
        f"    {then}\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=DEADLINE_S, check=False)


def first_sample(child: subprocess.Popen[str]) -> list[str]:
    """Read up to the first sample: by then the sensor is set."""
    lines = lines_of(child, 1)
    while parse_hwmon_line(lines[-1]) is None:
        lines += lines_of(child, 1)
    return lines


def samples_of(folder: Path) -> int:
    return int((folder / "samples").read_text())


def test_a_line_comes_every_period_and_carries_the_time_of_its_reading(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    before_ns = time.monotonic_ns()
    with started(tmp_path, "--interval", "20") as child:
        lines = lines_of(child, 26)
    stamps = [time_ns_of(line) or 0 for line in lines]
    assert before_ns < stamps[0]
    assert stamps[-1] < time.monotonic_ns()
    assert 25 * 20 <= (stamps[-1] - stamps[0]) / 1e6 < 25 * 20 + 1000
    sample = parse_hwmon_line(lines[0])
    assert sample is not None
    assert sample.rails_mw == {"VDD_IN": 4359, "VDD_CPU_GPU_CV": 448, "VDD_SOC": 1373}


def test_a_made_up_machine_says_simulated_on_every_sample(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    with started(tmp_path, "--interval", "20") as child:
        assert all("SIMULATED" in line for line in lines_of(child, 3))


def test_what_is_left_out_is_noted_before_the_first_sample(tmp_path: Path) -> None:
    break_file(orin_nano(tmp_path) / "curr3_input")
    with started(tmp_path) as child:
        lines = lines_of(child, 2)
    assert lines[0].startswith("INA3221 note: VDD_SOC (1-0040 channel 3) is left out")
    assert "VDD_SOC" not in lines[1]


def test_a_rail_that_fails_later_is_missing_and_noted_once(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path)
    with started(tmp_path, "--interval", "20") as child:
        first_sample(child)
        (folder / "curr2_input").write_text("")
        lines = lines_of(child, 30)
    notes = [line for line in lines if "note:" in line]
    assert len(notes) == 1
    assert notes[0].startswith("INA3221 note: VDD_CPU_GPU_CV is missing from some samples")
    assert "VDD_IN" in lines[-1]
    assert "VDD_CPU_GPU_CV" not in lines[-1]


def test_a_chip_that_is_gone_ends_it_with_one_line(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path)
    with started(tmp_path, "--interval", "20") as child:
        first_sample(child)
        for channel in (1, 2, 3):
            (folder / f"in{channel}_input").write_text("")
        _, said = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 1
    assert said.startswith("error: expected power of VDD_IN, VDD_CPU_GPU_CV, VDD_SOC, found none")
    assert said.count("\n") == 1


def test_no_chip_and_impossible_periods_are_refused(tmp_path: Path) -> None:
    nothing = run(tmp_path)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert nothing.stderr.startswith(f"error: expected a power monitor chip below {tmp_path}/sys/bus/i2c/drivers, ")
    assert nothing.stderr.count("\n") == 1
    for period in ("19", "60001", "x"):
        assert run(tmp_path, "--interval", period).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_sets_the_sensor_back(tmp_path: Path, number: signal.Signals) -> None:
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    with started(tmp_path, "--interval", "20", "--fast-sensor", "--state", tmp_path / "state") as child:
        first_sample(child)
        assert samples_of(folder) == 16
        child.send_signal(number)
        assert child.wait(DEADLINE_S) == 130
    assert samples_of(folder) == 512
    assert not (tmp_path / "state" / STATE_FILE).exists()


def test_a_reader_that_leaves_ends_it_and_sets_the_sensor_back(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    with started(tmp_path, "--interval", "20", "--fast-sensor", "--state", tmp_path / "state") as child:
        first_sample(child)
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr is not None
        assert child.stderr.read() == ""
    assert samples_of(folder) == 512


def test_a_reader_that_does_not_read_holds_up_no_signal(tmp_path: Path) -> None:
    """The pipe is made as small as it can be and fills; a write that waits for room would never see the signal."""
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    with started(tmp_path, "--interval", "20", "--fast-sensor", "--state", tmp_path / "state") as child:
        assert child.stdout is not None
        fcntl.fcntl(child.stdout, 1031, 4096)  # F_SETPIPE_SZ
        first_sample(child)
        poller = select.poll()
        poller.register(child.stdout, select.POLLIN)
        until_s = time.monotonic() + DEADLINE_S
        while _waiting_bytes(child.stdout.fileno()) < 60:  # a page counts as full from its first line on
            assert time.monotonic() < until_s
            poller.poll(20)
        child.send_signal(signal.SIGTERM)
        assert child.wait(DEADLINE_S) == 130
    assert samples_of(folder) == 512


def _waiting_bytes(descriptor: int) -> int:
    waiting = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
    return waiting[0]


@pytest.mark.parametrize("again", [[], ["--fast-sensor"]], ids=["plain", "fast"])
def test_what_a_killed_program_left_is_set_back_at_the_next_start(tmp_path: Path, again: list[str]) -> None:
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    state = tmp_path / "state"
    with started(tmp_path, "--interval", "20", "--fast-sensor", "--state", state) as child:
        first_sample(child)
        child.kill()
        child.wait(DEADLINE_S)
    assert samples_of(folder) == 16
    assert (state / STATE_FILE).exists()
    with started(tmp_path, "--interval", "20", "--state", state, *again) as child:
        lines = first_sample(child)
        assert samples_of(folder) == (16 if again else 512)
        child.terminate()
        child.wait(DEADLINE_S)
    note = "instead of 512" if again else "the averaging that a killed program had left is restored"
    assert note in lines[0]
    assert samples_of(folder) == 512
    assert not (state / STATE_FILE).exists()


@pytest.mark.parametrize("step", range(4))
def test_a_kill_at_any_step_of_setting_is_mended_by_the_next_start(tmp_path: Path, step: int) -> None:
    """With a conversion longer than the period: samples, interval, and the two state files before them."""
    folder = orin_nano(tmp_path, samples=64, update_interval=49)
    state = tmp_path / "state"
    code = (
        "import os, signal, sys\n"
        "from devit_profiling.sensor import hwmon, hwmon_averaging as averaging\n"
        "steps = []\n"
        "def counted(work):\n"
        "    def step(*arguments):\n"
        f"        if len(steps) == {step}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        steps.append(work)\n"
        "        return work(*arguments)\n"
        "    return step\n"
        "averaging._write, averaging._keep = counted(averaging._write), counted(averaging._keep)\n"
        f"hwmon.main(['--root', {str(tmp_path)!r}, '--interval', '20', '--fast-sensor', '--state', {str(state)!r}])\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=DEADLINE_S, check=False)
    assert killed.returncode == -signal.SIGKILL
    with started(tmp_path, "--state", state) as child:
        first_sample(child)
    assert (samples_of(folder), (folder / "update_interval").read_text()) == (64, "49\n")
    assert not (state / STATE_FILE).exists()


def test_an_agent_that_is_killed_leaves_the_sensor_as_it_was(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    parent = sampler_parent(tmp_path, "print(sampler.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert parent.returncode == -signal.SIGKILL
    try:
        descriptor = os.pidfd_open(int(parent.stdout))
    except ProcessLookupError:
        pass
    else:
        ended, _, _ = select.select([descriptor], [], [], DEADLINE_S)
        os.close(descriptor)
        assert ended
    assert samples_of(folder) == 512


def test_plain_sampling_loads_nothing_heavy() -> None:
    """It runs beside an inference on a small board."""
    code = (
        "import sys, devit_profiling.sensor.hwmon; "
        "print(sorted({'numpy', 'zmq', 'safetensors', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who is not")
def test_without_permission_it_is_refused_in_one_line_and_changes_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="devit-hwmon-") as name:
        root = Path(name)
        folder = orin_nano(root, samples=512, update_interval=1)
        root.chmod(0o755)
        code = (
            "import locale, os, sys\n"
            "from devit_profiling.sensor import hwmon, hwmon_averaging\n"  # nobody may not be let into this folder
            "os.setresuid(65534, 65534, 65534)\n"
            f"sys.exit(hwmon.main(['--root', {name!r}, '--fast-sensor', '--state', {name + '/state'!r}]))"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.endswith("--fast-sensor may not write it: run as root, or leave --fast-sensor out\n")
        assert done.stderr.count("\n") == 1
        assert samples_of(folder) == 512
        assert not (root / "state").exists()


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to start what may not be signalled afterwards")
def test_a_child_that_may_not_be_signalled_ends_by_the_closed_pipe(tmp_path: Path) -> None:
    """As under sudo: the sampler's parent has no right to end it."""
    folder = orin_nano(tmp_path, samples=512, update_interval=1)
    parent = sampler_parent(tmp_path, "os.setresuid(65534, 65534, 65534)")
    assert parent.returncode == 0, parent.stderr
    assert samples_of(folder) == 512


def test_the_sampler_hands_out_the_time_of_the_reading_not_of_its_own(tmp_path: Path) -> None:
    """Lines that waited together keep their distances: an agent that is busy for long loses no sample."""
    orin_nano(tmp_path)
    with PowerSampler([*PROGRAM, "--root", str(tmp_path)], 20) as sampler:
        until_s = time.monotonic() + DEADLINE_S
        while _waiting_bytes(sampler.fileno()) < 600:
            assert time.monotonic() < until_s
            select.select([], [], [], 0.02)
        lines = sampler.read_lines()
    assert len(lines) > 5
    stamps = [line.monotonic_ns for line in lines]
    assert stamps == [time_ns_of(line.text) for line in lines]
    assert min(after - before for before, after in pairwise(stamps)) > 5_000_000
