"""The file by which a container's engine learns how a service is, looked at as the engine does: by a command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devit_contract.service.health import MAX_AGE_S, VARIABLE, HealthFile
from devit_contract.service.journal import Supervisor


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "health"))
    return tmp_path / "health"


def look() -> tuple[int, str]:
    command = [sys.executable, "-m", "devit_contract.service.health"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_service_is_healthy_from_ready_on_and_not_while_it_waits(path: Path) -> None:
    supervisor = Supervisor()
    assert look()[0] == 1
    supervisor.ready("null engine")
    assert look() == (0, "ready: null engine\n")
    supervisor.waiting("waiting for the node")
    assert look() == (1, "error: the service is not ready: waiting for the node: see its log\n")


def test_a_loop_that_hangs_is_seen_and_one_that_turns_again_too(path: Path) -> None:
    supervisor = Supervisor()
    supervisor.ready("null engine")
    long_ago_s = time.time() - MAX_AGE_S - 5
    os.utime(path, (long_ago_s, long_ago_s))
    code, text = look()
    assert code == 1
    assert re.search(r"the service's loop last turned \d+ s ago, more than 10 s \(ready: null engine\)", text)
    supervisor.alive()
    assert look()[0] == 0


def test_without_a_file_named_nothing_is_written_and_the_check_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    health = HealthFile()
    health.ready("null engine")
    health.alive()
    assert list(tmp_path.iterdir()) == []
    assert look() == (1, f"error: {VARIABLE} is not set: set it as for the service\n")


def test_what_cannot_be_written_does_not_end_the_service_and_is_not_healthy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/proc/no-such-folder/health")
    supervisor = Supervisor()
    supervisor.ready("null engine")
    supervisor.alive()
    assert look()[0] == 1
