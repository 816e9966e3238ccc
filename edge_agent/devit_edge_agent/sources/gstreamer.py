"""Frames of a GStreamer pipeline, which runs as a child process: every JetPack has gst-launch-1.0, few the bindings."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import fit_image
from devit_contract.errors import InputError
from devit_edge_agent.sources.frames import Frames
from devit_edge_agent.sources.pipeline import Pipeline
from devit_edge_agent.sources.source import Captured

PROGRAM = "gst-launch-1.0"
PACKAGES = ("gstreamer1.0-tools", "gstreamer1.0-plugins-base", "gstreamer1.0-plugins-good")
"""What Debian and Ubuntu call the packages of the program and of the elements that the presets name."""
FIRST_PAUSE_NS = 1_000_000_000
LONGEST_PAUSE_NS = 30_000_000_000
SILENCE_NS = 10_000_000_000
"""Without a frame for that long, the child counts as hung and the newest image as none; also at a child's start."""
_SHUTDOWN_TIMEOUT_S = 2.0
"""From SIGINT to SIGKILL. A child that is killed outright may leave a Jetson's camera service stuck."""
_PIPE_BYTES = 1 << 20
"""The most that an unprivileged process may have: fewer switches between reader and writer for each frame."""
_READ_BYTES = 4096


class GstSource:
    """The newest frame of one pipeline; the child is restarted when it ends or hangs, after 1, 2, 4 to 30 s."""

    def __init__(self, pipeline: Pipeline, preprocess: Preprocess) -> None:
        """Start the child.

        Raises:
            InputError: gst-launch-1.0 is not installed.
        """
        program = shutil.which(PROGRAM)
        if program is None:
            raise InputError(f"{PROGRAM} is not installed: apt-get install {' '.join(PACKAGES)}")
        self.problem = ""
        self._pipeline, self._preprocess = pipeline, preprocess
        sync = "sync=true" if pipeline.is_paced else "sync=false"
        self._command = [program, "-q", *pipeline.words, "!", "fdsink", sync]
        self._frames = Frames(pipeline.stride_bytes * pipeline.height)
        self._newest: Captured | None = None
        self._is_closed = False
        self._pause_ns = 0
        self._run: _Run | None = None
        self._start()

    def fileno(self) -> int:
        """Give a descriptor that is readable when a frame has come, or the child's pipe has ended."""
        return self._frames.wake

    def pump(self) -> None:
        """Note what has come; end a child that hangs, start the next one when it is due."""
        if self._is_closed:
            return
        self._frames.quiet()
        run, heard_ns, now_ns = self._run, self._frames.last_ns, time.monotonic_ns()
        if run is None:
            if now_ns >= self._start_ns + self._pause_ns:
                self._start()
            return
        if heard_ns > self._start_ns:
            self.problem = ""
        has_ended = run.has_ended()
        run.read_lines()
        if has_ended:
            self._finish(run, run.why())
        elif now_ns - max(heard_ns, self._start_ns) >= SILENCE_NS:
            self._finish(run, f"no frame for {SILENCE_NS // 1_000_000_000} s")

    def newest(self) -> Captured | None:
        """Hand out the newest image, again if there is no newer one; ``None`` if it is older than ten seconds."""
        taken = self._frames.take()
        if taken is not None:
            buffer, captured_ns = taken
            self._newest = Captured(fit_image(_pixels(buffer, self._pipeline), self._preprocess), captured_ns)
        if self._newest is not None and time.monotonic_ns() - self._newest.captured_ns >= SILENCE_NS:
            self._newest = None
        return self._newest

    def take_new(self) -> Captured | None:
        """Hand out the newest image, unless it has been handed out before."""
        before = self._newest
        newest = self.newest()
        return None if newest is before else newest

    def close(self) -> None:
        """End the child, within two seconds or by force."""
        if not self._is_closed:
            self._is_closed = True
            if self._run is not None:
                self._run.end(_SHUTDOWN_TIMEOUT_S)
            self._frames.close()

    def _start(self) -> None:
        self._start_ns = time.monotonic_ns()
        try:
            self._run = _Run(self._command, self._frames)
        except OSError as err:
            self._pause(f"{self._command[0]} cannot be started: {err.strerror}")

    def _finish(self, run: _Run, why: str) -> None:
        run.end(0.0)
        self._run = None
        self._pause(why)

    def _pause(self, why: str) -> None:
        """Count the pause from the last start: a file that played to its end restarts immediately."""
        if self._frames.last_ns > self._start_ns:
            self._pause_ns, self.problem = FIRST_PAUSE_NS, why
        else:
            self._pause_ns = next_pause_ns(self._pause_ns)
            self.problem = f"{why or 'ended without a frame'}; trying again"


def next_pause_ns(pause_ns: int) -> int:
    """Double the pause between two starts that brought no frame."""
    return min(max(FIRST_PAUSE_NS, 2 * pause_ns), LONGEST_PAUSE_NS)


class _Run:
    """One child, from its start to its end, with the thread that reads its frames.

    Frames come by a pipe of their own, since NVIDIA's elements print to standard output. At the agent's end the pipe
    has no reader, and the child's next frame ends the child too.
    """

    def __init__(self, command: list[str], frames: Frames) -> None:
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
        self._rest, self._last, self._error = b"", "", ""
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
                self._last = _plain(line) or self._last
                if "error" in self._last.lower() or "erroneous" in self._last:
                    self._error = self._error or self._last

    def why(self) -> str:
        """Why it ended, in one line: its first error or else its last line; empty if it ended normally."""
        code = self._child.returncode
        return "" if code == 0 else self._error or self._last or f"{PROGRAM} ended with exit code {code}"

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


def _pixels(frame: bytearray, pipeline: Pipeline) -> npt.NDArray[np.uint8]:
    """Frame without the bytes that pad its rows, ``(h, w, 3)``."""
    rows = np.frombuffer(frame, np.uint8).reshape(pipeline.height, pipeline.stride_bytes)  # (h, stride)
    return rows[:, : pipeline.width * 3].reshape(pipeline.height, pipeline.width, 3)


def _plain(line: bytes) -> str:
    """At most 300 printable characters."""
    text = line[:_READ_BYTES].decode(errors="replace")
    return "".join(one for one in " ".join(text.split()) if one.isprintable())[:300]
