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
from tests.support.gone import assert_gone
from tests.support.starvation import within

from devit_contract.errors import EnergyError
from devit_contract.wire.messages import PowerLine
from devit_profiling.sensor import sampler as sampler_module
from devit_profiling.sensor.sampler import PowerSampler, cpu_s_of
from devit_profiling.sensor.tegrastats import parse_line

DEADLINE_S = 30.0
SIMULATOR = [sys.executable, "-m", "devit_profiling.simulator.program", "--board", "orin-nano"]


def printing(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_readable(sampler: PowerSampler, until_s: float) -> None:
    readable, _, _ = select.select([sampler], [], [], max(until_s - time.monotonic(), 0.0))
    assert readable, "no line before the deadline"


def take(sampler: PowerSampler, count: int) -> list[PowerLine]:
    """Read until there are ``count`` lines, as a poller loop does."""
    until_s = time.monotonic() + DEADLINE_S
    lines: list[PowerLine] = []
    while len(lines) < count:
        wait_readable(sampler, until_s)
        lines += sampler.read_lines()
    return lines


def read_to_the_end(sampler: PowerSampler) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while True:
        wait_readable(sampler, until_s)
        sampler.read_lines()


def test_lines_of_a_real_process_arrive_with_rising_stamps() -> None:
    before_ns = time.monotonic_ns()
    with PowerSampler(SIMULATOR, 20) as sampler:
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
    with PowerSampler(printing("import sys; print(sys.argv[1:])"), 250) as sampler:
        assert take(sampler, 1)[0].text == "['--interval', '250']"


def test_half_a_line_is_kept_until_its_end_comes() -> None:
    code = (
        "import os; os.write(1, b'RAM 1/'); os.write(1, b'2MB\\r\\nRAM 3'); os.write(1, b'/4MB\\n'); os.write(1, b'5')"
    )
    with PowerSampler(printing(code), 100) as sampler:
        assert [line.text for line in take(sampler, 2)] == ["RAM 1/2MB", "RAM 3/4MB"]


def test_command_that_is_not_installed_names_the_setting() -> None:
    with pytest.raises(EnergyError, match=r"no-such-tegrastats.*No such file.*`tegrastats` in agent\.toml"):
        PowerSampler(["no-such-tegrastats"], 100).__enter__()


def test_command_that_may_not_be_run_names_the_setting(tmp_path: Path) -> None:
    script = tmp_path / "tegrastats"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(EnergyError, match=r"Permission denied.*`tegrastats` in agent\.toml"):
        PowerSampler([str(script)], 100).__enter__()


def test_child_that_ends_is_an_error_with_its_code_and_last_words() -> None:
    code = "import sys; sys.exit('cannot open the power monitor')"
    with (
        PowerSampler(printing(code), 100) as sampler,
        pytest.raises(EnergyError, match=r"exit code 1, last line 'cannot open the power monitor'.*--interval 100"),
    ):
        read_to_the_end(sampler)


def test_endless_line_is_refused_instead_of_filling_the_memory() -> None:
    code = "import os\nwhile True: os.write(1, b'x' * 4096)"
    with PowerSampler(printing(code), 100) as sampler, pytest.raises(EnergyError, match="without a line end"):
        read_to_the_end(sampler)


def test_child_that_ignores_the_request_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "_TERMINATE_DEADLINE_S", 0.05)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    with PowerSampler(printing(code), 100) as sampler:
        pid = sampler.pid
        assert take(sampler, 1)[0].text == "ready"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_leaving_does_not_wait_for_a_child_that_ignores_the_request_to_end() -> None:
    """An agent stops sampling between two frames."""
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    sampler = PowerSampler(printing(code), 100).__enter__()
    pid = sampler.pid
    take(sampler, 1)
    with within(0.5):
        end = sampler.leave()
    assert end.is_alive()
    assert_gone(pid)
    end.join(DEADLINE_S)
    assert not end.is_alive()


def test_child_whose_output_is_closed_is_not_waited_for() -> None:
    """Its end is told once it has an exit code, or a fifth of a second later without one."""
    code = "import os, time\nprint('ready', flush=True)\nos.close(1); os.close(2)\ntime.sleep(60)"
    with PowerSampler(printing(code), 100) as sampler:
        take(sampler, 1)
        wait_readable(sampler, time.monotonic() + DEADLINE_S)
        with within(0.1):
            assert sampler.read_lines() == []
        with pytest.raises(EnergyError, match="exit code none: only its output is closed, last line 'ready'"):
            read_to_the_end(sampler)


@pytest.mark.parametrize(
    "line", ["RAM 1697/7620MB VDD_IN 4361mW/4287mW", "no sample", "x" * 5000], ids=["samples", "text", "long lines"]
)
def test_flood_is_refused_instead_of_filling_the_memory(line: str) -> None:
    code = f"import os\ntext = {line!r}.encode() + b'\\n'\nwhile True: os.write(1, text * 8)"
    with PowerSampler(printing(code), 100) as sampler:
        pid = sampler.pid
        with pytest.raises(EnergyError, match="prints more than lines of tegrastats every 100 ms: correct"):
            read_to_the_end(sampler)
    assert_gone(pid)


def test_child_is_gone_after_an_error_in_the_block() -> None:
    pids = []

    def fail() -> None:
        with PowerSampler(SIMULATOR, 1000) as sampler:
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

    with PowerSampler(printing("print('ready')"), 100) as sampler:
        poller.register(sampler, zmq.POLLIN)
        with pytest.raises(EnergyError, match="exit code 0, last line 'ready'"):
            read_on_every_event()
    assert lines == ["ready"]


def test_child_does_not_outlive_a_parent_that_is_killed() -> None:
    """The next line into the closed pipe ends it, also where the child watches nobody: here it watches this test."""
    command = [*SIMULATOR, "--watch-pid", str(os.getpid())]
    code = (
        "import os, signal, sys\n"
        "from devit_profiling.sensor.sampler import PowerSampler\n"
        f"with PowerSampler({command!r}, 20) as sampler:\n"
        "    print(sampler.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run(printing(code), capture_output=True, timeout=DEADLINE_S, check=False)
    assert parent.returncode == -signal.SIGKILL
    assert_gone(int(parent.stdout))


def test_sampler_that_is_not_running_says_so() -> None:
    with pytest.raises(RuntimeError, match="outside of its `with` block"):
        PowerSampler(SIMULATOR, 100).read_lines()


def test_cost_is_the_childs_cpu_time_from_its_first_line_on() -> None:
    """Half a second of work before the first line is not counted; half a second behind it is, to a tenth."""
    code = (
        "import time\n"
        "def work():\n"
        "    end_s = time.process_time() + 0.5\n"
        "    while time.process_time() < end_s: pass\n"
        "work(); print('RAM 1/2MB', flush=True); work(); print('done', flush=True); time.sleep(60)\n"
    )
    with PowerSampler(printing(code), 100) as sampler:
        assert sampler.cost(0.0) is None
        take(sampler, 2)
        cost = sampler.cost(0.125)
    assert cost is not None
    assert cost.sampler_cpu_s == pytest.approx(0.5, abs=0.1)
    assert cost.duration_s >= cost.sampler_cpu_s
    assert cost.reader_cpu_s == 0.125


def test_cost_counts_the_processes_that_the_command_starts() -> None:
    """As with sudo: what samples is a grandchild."""
    code = (
        "import subprocess, sys\n"
        "work = 'import time\\nprint(1, flush=True)\\nwhile time.process_time() < 0.5: pass\\n'\n"
        "work += 'print(2, flush=True)\\n'\n"
        "subprocess.run([sys.executable, '-c', work + 'time.sleep(60)'])\n"
    )
    with PowerSampler(printing(code), 100) as sampler:
        take(sampler, 2)
        cost = sampler.cost(0.0)
        children = Path(f"/proc/{sampler.pid}/task/{sampler.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    assert cost is not None
    assert cost.sampler_cpu_s is not None
    assert 0.3 < cost.sampler_cpu_s < 0.7


def test_cost_of_a_child_that_died_is_what_it_had_used() -> None:
    code = (
        "import time\nprint(1, flush=True)\nwhile time.process_time() < 0.4: pass\nprint(2, flush=True)\n"
        "while time.process_time() < 0.6: pass\n"
    )
    with PowerSampler(printing(code), 100) as sampler:
        with pytest.raises(EnergyError, match="exit code 0"):
            read_to_the_end(sampler)
        inside = sampler.cost(0.0)
    assert inside is not None
    assert inside == sampler.cost(0.0)
    assert 0.3 < (inside.sampler_cpu_s or 0.0) < 0.8


def test_a_process_that_is_gone_has_no_cpu_time() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(DEADLINE_S)
    assert cpu_s_of(child.pid) is None


def test_the_cpu_time_of_a_process_without_children_is_its_own() -> None:
    """In a process of its own: that of the tests may have children, whose time counts."""
    code = (
        "import os, time\n"
        "from devit_profiling.sensor.sampler import cpu_s_of\n"
        "while time.process_time() < 0.3: pass\n"
        "print(time.process_time(), cpu_s_of(os.getpid()), time.process_time())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    before_s, found_s, after_s = map(float, done.stdout.split())
    assert 0.3 <= before_s <= found_s <= after_s


def test_a_time_that_a_line_claims_is_believed_only_if_it_can_be_true() -> None:
    """Not before the last one, and not in the future."""
    ahead = 10**18 - 1
    code = (
        "import time\n"
        "now = time.monotonic_ns()\n"
        f"for ns in (now, now - 5, {ahead}): print(f'INA3221 {{ns}}ns VDD_IN 1mW')\n"
        "print(f'{now}ns VDD_IN 1mW')\n"
    )
    with PowerSampler(printing(code), 100) as sampler:
        lines = take(sampler, 4)
    own = int(lines[0].text.split()[1].removesuffix("ns"))
    assert lines[0].monotonic_ns == own
    assert all(own < line.monotonic_ns < ahead for line in lines[1:])
