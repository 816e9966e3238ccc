"""The child process: its lines, its end, and what is said when there is none."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

from devit_contract.errors import EnergyError
from devit_profiling import sampler as sampler_module
from devit_profiling.sampler import TegrastatsSampler
from devit_profiling.tegrastats import StampedLine, parse_line

DEADLINE_S = 30.0
SIMULATOR = [sys.executable, "-m", "devit_profiling.simulator", "--board", "orin-nano"]


def printing(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_readable(sampler: TegrastatsSampler, until_s: float) -> None:
    readable, _, _ = select.select([sampler], [], [], max(until_s - time.monotonic(), 0.0))
    assert readable, "no line before the deadline"


def take(sampler: TegrastatsSampler, count: int) -> list[StampedLine]:
    """Read until there are ``count`` lines, as a poller loop does."""
    until_s = time.monotonic() + DEADLINE_S
    lines: list[StampedLine] = []
    while len(lines) < count:
        wait_readable(sampler, until_s)
        lines += sampler.read_lines()
    return lines


def read_to_the_end(sampler: TegrastatsSampler) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while True:
        wait_readable(sampler, until_s)
        sampler.read_lines()


def assert_gone(pid: int) -> None:
    """Wait for a process that is no child of this one, under the deadline."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([descriptor], [], [], DEADLINE_S)
    finally:
        os.close(descriptor)
    assert ended, f"process {pid} outlived its parent"


def test_lines_of_a_real_process_arrive_with_rising_stamps() -> None:
    before_ns = time.monotonic_ns()
    with TegrastatsSampler(SIMULATOR, 20) as sampler:
        pid = sampler.pid
        assert sampler.read_lines() == []
        lines = take(sampler, 5)
    stamps = [line.monotonic_ns for line in lines]
    assert before_ns < stamps[0]
    assert stamps == sorted(stamps)
    assert stamps[-1] > stamps[0]
    samples = [parse_line(line.text) for line in lines]
    assert all(sample is not None and sample.is_simulated and "VDD_IN" in sample.rails_mw for sample in samples)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_interval_is_handed_to_the_command() -> None:
    with TegrastatsSampler(printing("import sys; print(sys.argv[1:])"), 250) as sampler:
        assert take(sampler, 1)[0].text == "['--interval', '250']"


def test_half_a_line_is_kept_until_its_end_comes() -> None:
    code = (
        "import os; os.write(1, b'RAM 1/'); os.write(1, b'2MB\\r\\nRAM 3'); os.write(1, b'/4MB\\n'); os.write(1, b'5')"
    )
    with TegrastatsSampler(printing(code), 100) as sampler:
        assert [line.text for line in take(sampler, 2)] == ["RAM 1/2MB", "RAM 3/4MB"]


def test_command_that_is_not_installed_names_the_setting() -> None:
    with pytest.raises(EnergyError, match=r"no-such-tegrastats.*No such file.*`tegrastats` in agent\.toml"):
        TegrastatsSampler(["no-such-tegrastats"], 100).__enter__()


def test_command_that_may_not_be_run_names_the_setting(tmp_path: Path) -> None:
    script = tmp_path / "tegrastats"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(EnergyError, match=r"Permission denied.*`tegrastats` in agent\.toml"):
        TegrastatsSampler([str(script)], 100).__enter__()


def test_child_that_ends_is_an_error_with_its_code_and_last_words() -> None:
    code = "import sys; sys.exit('cannot open the power monitor')"
    with (
        TegrastatsSampler(printing(code), 100) as sampler,
        pytest.raises(EnergyError, match=r"exit code 1, last line 'cannot open the power monitor'.*--interval 100"),
    ):
        read_to_the_end(sampler)


def test_endless_line_is_refused_instead_of_filling_the_memory() -> None:
    code = "import os\nwhile True: os.write(1, b'x' * 4096)"
    with TegrastatsSampler(printing(code), 100) as sampler, pytest.raises(EnergyError, match="without a line end"):
        read_to_the_end(sampler)


def test_child_that_ignores_the_request_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "_TERMINATE_DEADLINE_S", 0.05)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    with TegrastatsSampler(printing(code), 100) as sampler:
        pid = sampler.pid
        assert take(sampler, 1)[0].text == "ready"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_child_is_gone_after_an_error_in_the_block() -> None:
    pids = []

    def fail() -> None:
        with TegrastatsSampler(SIMULATOR, 1000) as sampler:
            pids.append(sampler.pid)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_zeromq_poller_wakes_for_lines_and_for_the_end() -> None:
    """The end is told as an error event without an input event: any event must lead to a read."""
    poller = zmq.Poller()
    lines: list[str] = []

    def read_on_every_event() -> None:
        while poller.poll(int(DEADLINE_S * 1000)):
            lines.extend(line.text for line in sampler.read_lines())

    with TegrastatsSampler(printing("print('ready')"), 100) as sampler:
        poller.register(sampler, zmq.POLLIN)
        with pytest.raises(EnergyError, match="exit code 0, last line 'ready'"):
            read_on_every_event()
    assert lines == ["ready"]


def test_child_does_not_outlive_a_parent_that_is_killed() -> None:
    """The next line into the closed pipe ends it, also where the child watches nobody: here it watches this test."""
    command = [*SIMULATOR, "--watch-pid", str(os.getpid())]
    code = (
        "import os, signal, sys\n"
        "from devit_profiling.sampler import TegrastatsSampler\n"
        f"with TegrastatsSampler({command!r}, 20) as sampler:\n"
        "    print(sampler.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run(printing(code), capture_output=True, timeout=DEADLINE_S, check=False)
    assert parent.returncode == -signal.SIGKILL
    assert_gone(int(parent.stdout))


def test_sampler_that_is_not_running_says_so() -> None:
    with pytest.raises(RuntimeError, match="outside of its `with` block"):
        TegrastatsSampler(SIMULATOR, 100).read_lines()
