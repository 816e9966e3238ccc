"""Frames of a GStreamer pipeline, which runs as a child process: every JetPack has gst-launch-1.0, few the bindings."""

from __future__ import annotations

import shutil
import time

import numpy as np
import numpy.typing as npt

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import fit_image
from devit_contract.errors import InputError, SourceLostError
from devit_edge_agent.sources.child import Child
from devit_edge_agent.sources.ending import Ending
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
CSI_SILENCE_NS = 30_000_000_000
"""Without a frame for that long, a CSI camera counts as lost to this process: what a service sees of the camera
service's socket is the one of its own start, which is dead once that service has started again."""
_SHUTDOWN_TIMEOUT_S = 2.0
"""From SIGINT to SIGKILL. A child that is killed outright may leave a Jetson's camera service stuck."""


class GstSource:
    """The newest frame of one pipeline; the child is restarted when it ends or hangs, after 1, 2, 4 to 30 s.

    If its elements do not fit together, the way out of a Jetson's own memory is tried before the pause.
    """

    def __init__(self, pipeline: Pipeline, preprocess: Preprocess) -> None:
        """Start the child.

        Raises:
            InputError: gst-launch-1.0 is not installed.
        """
        program = shutil.which(PROGRAM)
        if program is None:
            raise InputError(f"{PROGRAM} is not installed: apt-get install {' '.join(PACKAGES)}")
        self.problem = ""
        self._program, self._pipeline, self._preprocess = program, pipeline, preprocess
        self._ways = [pipeline.words, *([pipeline.words_for_nvmm] if pipeline.words_for_nvmm else [])]
        self._first_ending: Ending | None = None
        """Why the other way cannot start, while this one is tried."""
        self._frames = Frames(pipeline.stride_bytes * pipeline.height)
        self._newest: Captured | None = None
        self._is_closed = self._cannot_start = False
        self._pause_ns = 0
        self._child: Child | None = None
        self._opened_ns = time.monotonic_ns()
        self._start()

    def fileno(self) -> int:
        """Give a descriptor that is readable when a frame has come, or the child's pipe has ended."""
        return self._frames.wake

    def pump(self) -> None:
        """Note what has come; end a child that hangs, start the next one when it is due.

        Raises:
            SourceLostError: A CSI camera has been silent for half a minute.
        """
        if self._is_closed:
            return
        self._frames.quiet()
        child, heard_ns, now_ns = self._child, self._frames.last_ns, time.monotonic_ns()
        if self._is_csi_lost(now_ns):
            raise SourceLostError(
                f"source: the CSI camera is silent ({self.problem or 'no frame'}): "
                "systemd starts the agent again; if that does not help, restart nvargus-daemon"
            )
        if child is None:
            if now_ns >= self._start_ns + self._pause_ns:
                self._start()
            return
        if heard_ns > self._start_ns:
            self.problem = ""
        has_ended = child.has_ended()
        child.read_lines()
        if has_ended:
            self._finish(child, child.ending())
        elif now_ns - max(heard_ns, self._start_ns) >= SILENCE_NS:
            self._finish(child, child.silence(f"no frame for {SILENCE_NS // 1_000_000_000} s"))

    def newest(self, _frame_id: int = 0) -> Captured | None:
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
            if self._child is not None:
                self._child.end(_SHUTDOWN_TIMEOUT_S)
            self._frames.close()

    def _is_csi_lost(self, now_ns: int) -> bool:
        """Whether a new process may see the camera, though this one does not."""
        silent_ns = now_ns - max(self._frames.last_ns, self._opened_ns)
        return self._pipeline.is_csi and not self._cannot_start and silent_ns >= CSI_SILENCE_NS

    def _start(self) -> None:
        self._start_ns = time.monotonic_ns()
        sync = "sync=true" if self._pipeline.is_paced else "sync=false"
        try:
            self._child = Child([self._program, "-q", *self._ways[0], "!", "fdsink", sync], self._frames)
        except OSError as err:
            self._pause(Ending(f"{self._program} cannot be started: {err.strerror}"))

    def _finish(self, child: Child, ending: Ending) -> None:
        child.end(0.0)
        self._child = None
        first, self._first_ending = self._first_ending, None
        if self._frames.last_ns <= self._start_ns:
            if ending.cure and first is None and len(self._ways) > 1:
                self._ways.reverse()
                self._first_ending = ending
                self._start()
                return
            if ending.cure and first is not None and self._ways[0] is not self._pipeline.words:
                ending = first  # of the way that works everywhere
            self._ways.reverse()
        self._pause(ending)

    def _pause(self, ending: Ending) -> None:
        """Count the pause from the last start: a file that played to its end restarts immediately."""
        self._cannot_start = False
        if self._frames.last_ns > self._start_ns:
            self._pause_ns, self.problem = FIRST_PAUSE_NS, ending.text
        elif ending.cure:
            self._pause_ns, self._cannot_start = LONGEST_PAUSE_NS, True
            self.problem = f"cannot start: {ending.text}: {ending.cure}"
        else:
            self._pause_ns = next_pause_ns(self._pause_ns)
            self.problem = f"{ending.text or 'ended without a frame'}; trying again"


def next_pause_ns(pause_ns: int) -> int:
    """Double the pause between two starts that brought no frame."""
    return min(max(FIRST_PAUSE_NS, 2 * pause_ns), LONGEST_PAUSE_NS)


def _pixels(frame: bytearray, pipeline: Pipeline) -> npt.NDArray[np.uint8]:
    """Frame without the bytes that pad its rows, ``(h, w, 3)``."""
    rows = np.frombuffer(frame, np.uint8).reshape(pipeline.height, pipeline.stride_bytes)  # (h, stride)
    return rows[:, : pipeline.width * 3].reshape(pipeline.height, pipeline.width, 3)
