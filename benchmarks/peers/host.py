"""A side's own process: the client, which starts all others of that side; none of them outlives it."""

from __future__ import annotations

import os
import secrets
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from benchmarks.network.bare import SPAWN
from benchmarks.peers.peer import Peer
from benchmarks.peers.work import Work

T = TypeVar("T")
START_S, STOP_S, LEAVE_S = 120.0, 30.0, 5.0
MARK = "DEVIT_BENCHMARK_SIDE"
"""A variable by which every process of a side can be found, whoever started it."""


class Host:
    """A running side; a context manager."""

    def __init__(self, peer: type[Peer], work: Work) -> None:
        """Start the side, and wait until it answers."""
        self.name = peer.name
        self.mark = f"{MARK}={secrets.token_hex(8)}"
        self._connection, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_live, args=(theirs, peer, work, self.mark))
        self._process.start()
        theirs.close()
        try:
            self._receive(START_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Host:
        """Use it in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the side."""
        self.close()

    def run(self, task: Callable[[Peer], T], timeout_s: float) -> T:
        """Have the side's client do something.

        Raises:
            SystemExit: It failed, ended or hangs.
        """
        self._connection.send(task)
        found: T = self._receive(timeout_s)
        return found

    def cpu_s(self) -> float:
        """Add up the CPU time that the side's processes have used so far."""
        return sum(map(_cpu_s, (self._process.pid, *marked(self.mark))))

    def close(self) -> None:
        """Stop the side's processes: in order first, and whatever is left by SIGKILL."""
        self._connection.close()
        self._process.join(STOP_S)
        self._process.kill()
        end_s = time.monotonic() + LEAVE_S
        while (left := marked(self.mark)) and time.monotonic() < end_s:
            time.sleep(0.05)
        for pid in left:
            with suppress(ProcessLookupError):
                _kill(pid)
        self._process.join()

    def _receive(self, timeout_s: float) -> T:  # type: ignore[type-var]
        try:
            if not self._connection.poll(timeout_s):
                raise SystemExit(f"{self.name}: expected it to be done within {timeout_s:g} s, found that it hangs")
            found = self._connection.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"{self.name}: expected it to run, found that it ended: see its output") from None
        if isinstance(found, Exception):
            raise SystemExit(f"{self.name}: {found}")
        return found  # type: ignore[no-any-return]


def marked(mark: str) -> list[int]:
    """Find the processes that have inherited a mark."""
    found: list[int] = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return found


def _kill(pid: int) -> None:
    """End a process, and wait until it has."""
    watched = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([watched], [], [], STOP_S)
    finally:
        os.close(watched)


def _cpu_s(pid: int | None) -> float:
    """Time that all threads of a process have used, see proc(5); 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _live(parent: Connection, peer: type[Peer], work: Work, mark: str) -> None:
    os.setsid()
    name, _, value = mark.partition("=")
    os.environ[name] = value
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(1)))
    try:
        with peer(work) as running:
            parent.send("ready")
            while True:
                parent.send(parent.recv()(running))
    except EOFError:
        return
    except Exception as err:
        parent.send(RuntimeError(str(err) if isinstance(err, RuntimeError) else f"{type(err).__name__}: {err}"))
