"""A service's log and its messages to systemd: priority and fields, readiness, watchdog. Elsewhere lines on stderr.

Protocols: https://systemd.io/JOURNAL_NATIVE_PROTOCOL and sd_notify(3). Both are one datagram on a Unix socket; no
library is needed, and none that is maintained has wheels for every Jetson.
"""

from __future__ import annotations

import enum
import os
import socket
import sys
import time
from contextlib import suppress

from devit_contract.descriptors import in_reserve
from devit_contract.printable import printable_line
from devit_contract.service.health import HealthFile

_JOURNAL = "/run/systemd/journal/socket"
_STEP_US = 180_000_000
"""Longest step of a start."""


class Priority(enum.IntEnum):
    """Priority of a line, as in syslog(3)."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


class Log:
    """One service's log."""

    def __init__(self, name: str, journal: str = _JOURNAL) -> None:
        """Write to the journal if stderr goes there (``JOURNAL_STREAM`` of systemd), else to stderr."""
        self._name = name
        self._journal = journal if _is_journal(os.environ.get("JOURNAL_STREAM", "")) else ""

    def log(self, priority: Priority, text: str, **fields: str) -> None:
        """Write one line; ``fields`` become ``DEVIT_NAME=value`` in the journal."""
        line = printable_line(text)
        if self._journal and self._send(priority, line, fields):
            return
        prefix = f"<{int(priority)}>" if self._journal else f"{self._name}: "
        # stderr may be closed already; a service runs without its log.
        with suppress(OSError, ValueError):
            print(f"{prefix}{line}", file=sys.stderr, flush=True)  # noqa: T201 - this is the log

    def _send(self, priority: Priority, line: str, fields: dict[str, str]) -> bool:
        entries = {"PRIORITY": str(int(priority)), "SYSLOG_IDENTIFIER": self._name, "MESSAGE": line}
        entries |= {f"DEVIT_{key.upper()}": printable_line(value) for key, value in fields.items()}
        data = "".join(f"{key}={value}\n" for key, value in entries.items()).encode()
        with suppress(OSError):
            _send(data, self._journal)
            return True
        return False


class Supervisor:
    """systemd, as the unit's main process sees it, or a container's health file; does nothing if there is neither."""

    def __init__(self) -> None:
        """Read from ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` whether and how often systemd expects messages."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        period_us = os.environ.get("WATCHDOG_USEC", "")
        is_own = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._alive_s = int(period_us) / 3e6 if period_us.isdigit() and is_own else 0.0
        self._next_alive_s = 0.0
        self._health = HealthFile()

    def starting(self, status: str) -> None:
        """Report the step of the start that begins now; it may take three minutes, whatever the others took."""
        self._send(f"EXTEND_TIMEOUT_USEC={_STEP_US}\nSTATUS={printable_line(status)}")

    def ready(self, status: str) -> None:
        """Report that the service is ready."""
        self._send(f"READY=1\nSTATUS={printable_line(status)}")
        self._health.ready(status)

    def waiting(self, status: str) -> None:
        """Report what the service waits for before it can serve, in a line for people."""
        self._send(f"STATUS={printable_line(status)}")
        self._health.waiting(status)

    def stopping(self) -> None:
        """Report that the service ends on purpose."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog, at a third of its period; call it from the loop that does the work."""
        self._health.alive()
        if self._alive_s and (now_s := time.monotonic()) >= self._next_alive_s:
            self._next_alive_s = now_s + self._alive_s
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with suppress(OSError):  # systemd's side is gone or full: the watchdog will show it
            _send(text.encode(), self._address)


def _send(data: bytes, address: str) -> None:
    with in_reserve(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as opened:
        opened.sendto(data, address)


def _is_journal(stream: str) -> bool:
    """Whether stderr is the stream of ``JOURNAL_STREAM``: the variable outlives a redirection."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"
