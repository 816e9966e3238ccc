"""The log and the readiness of a service, received by real sockets in systemd's place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devit_contract.service.journal import Supervisor

SAY = """
import os, sys
from devit_contract.service.journal import Log, Priority
status = os.fstat(2)
if sys.argv[2] == "journal":
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
log = Log("fusion-node", sys.argv[1])
log.log(Priority.WARNING, sys.argv[3], device="jetson1\\nFAKE=1")
"""


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[socket.socket, Path]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        path = tmp_path / "socket"
        opened.bind(str(path))
        opened.settimeout(10)
        yield opened, path


def say(journal: Path, where: str, text: str = "jetson1: two\nlines") -> str:
    command = [sys.executable, "-c", SAY, str(journal), where, text]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stderr


def test_under_systemd_a_line_has_priority_and_fields_and_no_line_feed_makes_another(
    systemd: tuple[socket.socket, Path],
) -> None:
    opened, path = systemd
    assert say(path, "journal") == ""
    assert opened.recv(4096).decode().splitlines() == [
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=fusion-node",
        "MESSAGE=jetson1: two lines",
        "DEVIT_DEVICE=jetson1 FAKE=1",
    ]


@pytest.mark.parametrize("where", ["journal", "terminal"])
def test_what_no_log_can_hold_is_escaped(systemd: tuple[socket.socket, Path], where: str) -> None:
    """A file name that is not UTF-8, and a terminal's control code."""
    opened, path = systemd
    said = say(path, where, "M\udcfcller.png \x1b[2J") or opened.recv(4096).decode()
    assert r"M\xfcller.png \x1b[2J" in said


def test_where_the_journals_socket_is_gone_the_line_goes_to_stderr_with_its_priority(tmp_path: Path) -> None:
    assert say(tmp_path / "gone", "journal") == "<4>jetson1: two lines\n"


def test_elsewhere_a_line_goes_to_stderr_under_the_services_name(systemd: tuple[socket.socket, Path]) -> None:
    assert say(systemd[1], "terminal") == "fusion-node: jetson1: two lines\n"


@pytest.mark.parametrize("is_abstract", [False, True])
def test_readiness_and_end_are_told_whatever_the_kind_of_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool
) -> None:
    name = f"devit-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind("\0" + name if is_abstract else name)
        opened.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if is_abstract else name)
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        supervisor = Supervisor()
        supervisor.ready("ready, null engine")
        supervisor.alive()
        supervisor.alive()  # too soon: not told again
        supervisor.stopping()
        told = [opened.recv(4096) for _ in range(3)]
        assert told == [b"READY=1\nSTATUS=ready, null engine", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_watchdog_of_another_process_is_not_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(tmp_path / "notify"))
        opened.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000")
        monkeypatch.setenv("WATCHDOG_PID", "1")
        supervisor = Supervisor()
        supervisor.alive()
        supervisor.waiting("waiting")
        assert opened.recv(4096) == b"STATUS=waiting"


def test_without_systemd_no_socket_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise AssertionError("a socket was made")

    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    supervisor = Supervisor()
    monkeypatch.setattr(socket, "socket", refuse)
    supervisor.ready("ready")
    supervisor.alive()
    supervisor.stopping()
