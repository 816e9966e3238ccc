"""A service stops when it is told to, and its process then ends as if nothing had been."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

SERVICE = """
import sys
from devit_contract.service.lifecycle import StopSignal
should_stop = StopSignal(with_stdin="--stop-with-stdin" in sys.argv)
assert not should_stop()
print("ready", flush=True)
should_stop.wait()
assert should_stop()
"""


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SERVICE, *request.param]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
        child.kill()


@pytest.mark.parametrize("service", [(), ("--stop-with-stdin",)], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_the_exit_code_is_0(service: subprocess.Popen[str], number: signal.Signals) -> None:
    """Standard input is open still: whoever waits for it must not keep the interpreter from ending."""
    service.send_signal(number)
    assert service.wait(10) == 0
    assert service.stderr is not None
    assert service.stderr.read() == ""


@pytest.mark.parametrize("service", [("--stop-with-stdin",)], indirect=True)
def test_it_stops_when_its_standard_input_is_closed_and_not_when_something_comes_in(
    service: subprocess.Popen[str],
) -> None:
    assert service.stdin is not None
    service.stdin.write("something\n")
    service.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        service.wait(0.2)
    _, errors = service.communicate(timeout=10)  # closes it
    assert (service.returncode, errors) == (0, "")


@pytest.mark.parametrize("service", [()], indirect=True)
def test_a_closed_standard_input_stops_nothing_that_was_not_told_so(service: subprocess.Popen[str]) -> None:
    """A service under systemd has none from the start."""
    assert service.stdin is not None
    service.stdin.close()
    service.stdin = None
    with pytest.raises(subprocess.TimeoutExpired):
        service.wait(0.2)
    service.terminate()
    assert service.wait(10) == 0


def test_sighup_is_told_once_each_time_it_comes() -> None:
    script = "import os, signal\nfrom devit_contract.service.lifecycle import ReloadSignal\nreload = ReloadSignal()\n"
    script += (
        "print(reload())\nfor _ in range(2):\n    os.kill(os.getpid(), signal.SIGHUP)\n    print(reload(), reload())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["False", "True", "False", "True", "False"]
