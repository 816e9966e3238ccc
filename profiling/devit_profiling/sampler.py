"""Runs ``tegrastats`` as a child process and hands out its lines with the time of their arrival."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO

from devit_contract.errors import EnergyError
from devit_profiling.tegrastats import StampedLine


class TegrastatsSampler:
    """A running ``tegrastats``: a context manager to be watched by a poller, without threads.

    The child has a pipe of its own, whose reading end no other process inherits: should this process die without
    leaving the context, the child's next line ends it (``SIGPIPE``). Only this child is ever stopped, by its
    process id; ``tegrastats --stop`` would end the logs of others.
    """

    def __init__(self, command: Sequence[str], interval_ms: int) -> None:
        """Keep what to run; nothing is started yet.

        Args:
            command: Program and arguments, e.g. ``["tegrastats"]``; ``--interval`` is appended.
            interval_ms: Nominal period in milliseconds. Real periods are up to 9 % longer; below 100 ms
                tegrastats gives no more than about 9 lines a second.
        """
        self._command = [*command, "--interval", str(interval_ms)]
        self._child: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._last_text = ""

    def __enter__(self) -> TegrastatsSampler:
        """Start the child. Its first line comes after one interval.

        Raises:
            EnergyError: The command cannot be started.
        """
        self._rest = b""
        self._last_text = ""
        try:
            self._child = subprocess.Popen(
                self._command,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # what it complains about is told when it ends
                start_new_session=True,  # Ctrl-C reaches this process, which then ends the child
            )
        except OSError as err:
            raise EnergyError(
                f"power sampler {self._command[0]!r} cannot be started ({err.strerror}): "
                "set `tegrastats` in agent.toml to a command that is installed here, e.g. /usr/bin/tegrastats"
            ) from err
        os.set_blocking(self.fileno(), False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the child: by SIGTERM, and by SIGKILL if it is still there after two seconds."""
        child = self._running()
        child.terminate()
        try:
            child.wait(_TERMINATE_DEADLINE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        _pipe(child).close()
        self._child = None

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._running().pid

    def fileno(self) -> int:
        """Give the descriptor to poll. On any event, error and hang-up too, :meth:`read_lines` has something to do."""
        return _pipe(self._running()).fileno()

    def read_lines(self) -> list[StampedLine]:
        """Take the lines that have arrived, without waiting; an empty list if there are none.

        All lines of one call carry the time of that call. Read on every event: of lines that waited together, an
        energy window uses the first alone. One call takes at most 64 KiB; the descriptor stays readable for the rest.

        Raises:
            EnergyError: The child has ended, or what it prints is no text in lines.
        """
        try:
            chunk = os.read(self.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return []
        now_ns = time.monotonic_ns()
        if not chunk:
            raise EnergyError(self._end_text())
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _CHUNK_BYTES:
            raise EnergyError(
                f"power sampler {self._command[0]!r} printed {len(self._rest)} bytes without a line end, "
                "expected lines of tegrastats: correct `tegrastats` in agent.toml"
            )
        lines = [StampedLine(now_ns, text.decode("utf-8", "replace").rstrip("\r")) for text in whole]
        if lines:
            self._last_text = lines[-1].text
        return lines

    def _end_text(self) -> str:
        """Say how the child ended, with its last words; its output is closed, so it is about to be gone."""
        last = self._rest.decode("utf-8", "replace").strip() or self._last_text
        said = f", last line {last[:_SHOWN_CHARS]!r}" if last else ", without a line"
        try:
            code = str(self._running().wait(_GONE_DEADLINE_S))
        except subprocess.TimeoutExpired:
            code = "none: only its output is closed"
        return f"power sampler ended (exit code {code}{said}): run `{shlex.join(self._command)}` to see why"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise RuntimeError("the sampler is used outside of its `with` block")
        return self._child


def _pipe(child: subprocess.Popen[bytes]) -> IO[bytes]:
    assert child.stdout is not None  # opened with stdout=PIPE
    return child.stdout


_CHUNK_BYTES = 1 << 16
_SHOWN_CHARS = 120
_TERMINATE_DEADLINE_S = 2.0
_GONE_DEADLINE_S = 0.2
