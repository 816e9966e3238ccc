"""Runs ``tegrastats`` or ``hwmon-power`` as a child process and hands out its lines with their time."""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

from devit_contract.errors import EnergyError
from devit_contract.wire.messages import PowerLine, SamplingCost
from devit_profiling.sensor.flood import LineBudget
from devit_profiling.sensor.sensor_lines import time_ns_of

_CHUNK_BYTES = 1 << 16
_SHOWN_CHARS = 300
_TERMINATE_DEADLINE_S = 2.0
_GONE_DEADLINE_NS = 200_000_000
_CPUCLOCK_SCHED = 2
_Self = TypeVar("_Self", bound="PowerSampler")


class PowerSampler:
    """A running sensor program: a context manager to be watched by a poller, without threads.

    The child has a pipe of its own, whose reading end no other process inherits: should this process die without
    leaving the context, the child's next line ends it (``SIGPIPE``). Only this child is ever stopped, by its
    process id; ``tegrastats --stop`` would end the logs of others.
    """

    def __init__(self, command: Sequence[str], interval_ms: int) -> None:
        """Keep the command, to which ``--interval`` is appended; nothing is started yet.

        The interval is nominal. Real periods of tegrastats are up to 9 % longer; below 100 ms it gives no more than
        about 9 lines a second. ``hwmon-power`` keeps 20 ms.
        """
        self._command = [*command, "--interval", str(interval_ms)]
        self._interval_ms = interval_ms
        self._budget = LineBudget(interval_ms)
        self._child: subprocess.Popen[bytes] | None = None
        self._closed_ns: int | None = None
        self._rest = b""
        self._last_text = ""
        self._last_own_ns = 0
        self._first: tuple[int, float | None] | None = None
        self._latest: tuple[int, float | None] | None = None

    def __enter__(self: _Self) -> _Self:
        """Start the child. The first line of tegrastats comes after one interval.

        Raises:
            EnergyError: The command cannot be started.
        """
        try:
            self._child = subprocess.Popen(
                self._command,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # its complaints are in the error when it ends
                start_new_session=True,  # Ctrl-C reaches this process, which then ends the child
            )
        except OSError as err:
            raise EnergyError(
                f"power sampler {self._command[0]!r} cannot be started ({err.strerror}): "
                "set `tegrastats` in agent.toml to a command that is installed here, e.g. /usr/bin/tegrastats"
            ) from err
        os.set_blocking(self.fileno(), False)
        self._budget = LineBudget(self._interval_ms)
        return self

    def __exit__(self, *error: object) -> None:
        """End the child: by SIGTERM, and by SIGKILL if it is still there after two seconds."""
        self.leave().join()

    def leave(self) -> threading.Thread:
        """Leave the context without waiting for the child's end, which the thread that is returned sees to.

        The interpreter waits for that thread when it ends, so no child outlives this process.
        """
        child = self._running()
        self._meter()
        # A child that may not be signalled, as under sudo, is ended by its next line into the closed pipe.
        _pipe(child).close()
        with suppress(PermissionError):
            child.terminate()
        self._child = None
        thread = threading.Thread(target=_bury, args=(child,), name="end of a sampler")
        thread.start()
        return thread

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._running().pid

    def fileno(self) -> int:
        """Give the descriptor to poll. Call :meth:`read_lines` on any event, error and hang-up too."""
        return _pipe(self._running()).fileno()

    def read_lines(self) -> list[PowerLine]:
        """Take the lines that have arrived, without waiting; an empty list if there are none.

        A line with the time of its reading keeps that time. All others of one call get the time of the call: read on
        every event, since an energy window uses only the first of lines that waited together. One call takes at most
        64 KiB; the descriptor stays readable for the rest, and for the end.

        Raises:
            EnergyError: The child has ended, or does not print lines of text as a sensor does.
        """
        try:
            chunk = os.read(self.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return []
        now_ns = time.monotonic_ns()
        if not chunk:
            return self._see_end(now_ns)
        if self._first is None:
            self._meter()
            self._first = self._latest
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _CHUNK_BYTES:
            raise EnergyError(
                f"power sampler {self._command[0]!r} printed {len(self._rest)} bytes without a line end, "
                "expected lines of tegrastats: correct `tegrastats` in agent.toml"
            )
        lines = [self._stamped(text.decode("utf-8", "replace").rstrip("\r"), now_ns) for text in whole]
        if not self._budget.has_room(lines):
            raise EnergyError(
                f"power sampler {self._command[0]!r} prints more than lines of tegrastats every {self._interval_ms} "
                "ms: correct `tegrastats` in agent.toml"
            )
        if lines:
            self._last_text = lines[-1].text
        return lines

    def cost(self, reader_cpu_s: float) -> SamplingCost | None:
        """Give the cost of the child from its first line on, and of the caller who reads it; ``None`` before that."""
        if self._child is not None and self._first is not None:
            self._meter()
        if self._first is None or self._latest is None or self._latest[0] == self._first[0]:
            return None
        (first_ns, first_s), (latest_ns, latest_s) = self._first, self._latest
        used_s = latest_s - first_s if first_s is not None and latest_s is not None else None
        return SamplingCost((latest_ns - first_ns) / 1e9, used_s, reader_cpu_s)

    def _meter(self) -> None:
        """Note the child's CPU time, from its first line on: the start of a program is no sampling."""
        child = self._running()
        if child.returncode is not None:
            return  # its number may be another process's by now
        self._latest = time.monotonic_ns(), cpu_s_of(child.pid)

    def _stamped(self, text: str, now_ns: int) -> PowerLine:
        own_ns = time_ns_of(text)
        if own_ns is None or not self._last_own_ns < own_ns <= now_ns:
            return PowerLine(now_ns, text)
        self._last_own_ns = own_ns
        return PowerLine(own_ns, text)

    def _see_end(self, now_ns: int) -> list[PowerLine]:
        """Tell the end of a child whose output is closed: with its exit code, which it has in a moment, or without."""
        if self._closed_ns is None:
            self._closed_ns = now_ns
            self._meter()  # before its end is looked for, which removes it
        code = self._running().poll()
        if code is None and now_ns - self._closed_ns < _GONE_DEADLINE_NS:
            return []
        last = self._rest.decode("utf-8", "replace").strip() or self._last_text
        said = f", last line {last[:_SHOWN_CHARS]!r}" if last else ", without a line"
        ended = str(code) if code is not None else "none: only its output is closed"
        raise EnergyError(
            f"power sampler ended (exit code {ended}{said}): run `{shlex.join(self._command)}` to see why"
        )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise RuntimeError("the sampler is used outside of its `with` block")
        return self._child


def cpu_s_of(pid: int) -> float | None:
    """Give the CPU time of a process and its running descendants; ``None`` where it is not known."""
    total_s = 0.0
    for number in _tree(pid):
        try:
            # The kernel's number of a process's CPU clock, linux/posix-timers.h: in nanoseconds, where /proc has 10 ms.
            total_s += time.clock_gettime(~number << 3 | _CPUCLOCK_SCHED)
        except OSError:
            if number == pid:
                return None
    return total_s


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):  # gone, or a kernel without these lists
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split():
            yield from _tree(int(child))


def _bury(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(_TERMINATE_DEADLINE_S)
    except subprocess.TimeoutExpired:
        with suppress(PermissionError):
            child.kill()
            child.wait()


def _pipe(child: subprocess.Popen[bytes]) -> IO[bytes]:
    assert child.stdout is not None  # opened with stdout=PIPE
    return child.stdout
