"""One child process of GStreamer, from its start to its end, with the thread that reads its frames."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from devit_contract.printable import printable_line
from devit_edge_agent.sources.ending import Ending, Output
from devit_edge_agent.sources.frames import Frames

_PIPE_BYTES = 1 << 20
"""The most that an unprivileged process may have: fewer switches between reader and writer for each frame."""
_READ_BYTES = 4096
_IN_ENGLISH = {"LC_ALL": "C.UTF-8", "LANGUAGE": ""}
"""What it prints is read here, and GStreamer translates it."""


class Child:
    """A running ``gst-launch-1.0``.

    Frames come by a pipe of their own, since NVIDIA's elements print to standard output. At the agent's end the pipe
    has no reader, and the child's next frame ends the child too.
    """

    def __init__(self, command: Sequence[str], frames: Frames) -> None:
        """Start it; its pipe stands behind the command, as ``fd=``. An :class:`OSError` says why it cannot be."""
        read_end, write_end = os.pipe()
        try:
            with suppress(OSError):  # a limit of this machine or user; a smaller pipe works too
                fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            self._child = subprocess.Popen(
                [*command, f"fd={write_end}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(write_end,),
                env={**os.environ, **_IN_ENGLISH},
                start_new_session=True,  # Ctrl-C in a terminal is for the agent, which ends its child properly
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        assert self._child.stdout is not None
        self._lines = self._child.stdout
        os.set_blocking(self._lines.fileno(), False)
        self._program = Path(command[0]).name
        self._rest, self._output = b"", Output()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=frames.read, args=(read_end, self._is_over), daemon=True)
        self._thread.start()

    def has_ended(self) -> bool:
        """Whether the child is gone and all its frames are read."""
        return self._child.poll() is not None and not self._thread.is_alive()

    def read_lines(self) -> None:
        """Read what it has printed, without waiting."""
        chunk: bytes | None = b"-"
        while chunk:
            chunk = self._lines.read(_READ_BYTES)
            *lines, rest = (self._rest + (chunk or b"")).split(b"\n")
            self._rest = rest[-_READ_BYTES:]
            for line in lines:
                if text := _plain(line):
                    self._output.take(text)

    def ending(self) -> Ending:
        """Why it has ended."""
        code = self._child.returncode
        otherwise = f"{self._program} ended with exit code {code}" if code else ""
        return self._output.ending(otherwise, is_error=code != 0)

    def silence(self, otherwise: str) -> Ending:
        """Why it may be silent, though it runs."""
        said = self._output.ending("", is_error=False)
        return Ending(f"{otherwise}: {said.text}" if said.text else otherwise)

    def end(self, timeout_s: float) -> None:
        """Interrupt it, then kill it and all its children."""
        self._is_over.set()
        if timeout_s:
            self._signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout_s)
        self._signal(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process that hangs in a driver cannot be killed
            self._child.wait(1.0)
        self._thread.join(1.0)
        self._lines.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)


def _plain(line: bytes) -> str:
    """At most 300 printable characters."""
    return printable_line(line[:_READ_BYTES].decode(errors="replace"))[:300]
