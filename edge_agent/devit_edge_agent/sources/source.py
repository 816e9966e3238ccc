"""The device's own images: what a source can do, and opening one by its line in ``agent.toml``.

============================================== ======================================================================
``folder:DIR``                                 the pictures of a folder in the order of their names, round and round
``gst:csi?sensor=0&size=1280x720&fps=30``      a Jetson's camera behind nvarguscamerasrc
``gst:v4l2?device=/dev/video0&size=640x480``   a USB camera; ``fps=`` may be given
``gst:rtsp?url=rtsp://HOST/PATH&latency=200``  a network camera; latency in milliseconds; write ``&`` of the URL as %26
``gst:file?path=clip.mp4``                     a video file at its own speed, from the start again at its end
``gst:videotestsrc is-live=true ?size=64x48``  any other pipeline of gst-launch-1.0, without its sink
============================================== ======================================================================

``size`` is that of the captured frame, 640x480 where it is left out (1280x720 for csi); to the graph's input it is
scaled by :mod:`devit_contract.artefacts.preprocess`, as pictures of clients and of training are. GStreamer stretches
what has another shape, so give a file's or a network camera's own.
A password in a URL is seen in the list of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import InputError


@dataclass(frozen=True)
class Captured:
    """One image of the device's own."""

    image: npt.NDArray[np.uint8]
    """Shape ``(H, W, C)``, as the graph takes it."""
    captured_ns: int
    """On this machine's ``time.monotonic_ns``: when the frame's last byte was read, or a file was. A camera's
    exposure is earlier, by what its pipeline takes."""


class Source(Protocol):
    """Where images come from; for one thread, which calls :meth:`pump` a few times a second and never waits for it."""

    @property
    def problem(self) -> str:
        """Why there are no images at present, one line; empty while there are."""
        ...

    def fileno(self) -> int:
        """Give a descriptor to poll for reading, the same for the source's whole life; -1 where nothing can come."""
        ...

    def pump(self) -> None:
        """Take in what has come, and start anew what has ended; when readable, and before each image is taken."""
        ...

    def newest(self) -> Captured | None:
        """Hand out the newest image, again if there is no newer one; ``None`` where there is none, or none of late."""
        ...

    def take_new(self) -> Captured | None:
        """Hand out the newest image, unless it has been handed out before."""
        ...

    def close(self) -> None:
        """End it; a second time does nothing."""
        ...


def open_source(text: str, preprocess: Preprocess, *, base: Path) -> Source:
    """Open a source by its line in ``agent.toml``, see the table above.

    Args:
        text: The line.
        preprocess: What the graph takes.
        base: Folder that relative paths start from.

    Raises:
        InputError: The line is not usable, the folder holds no picture, or gst-launch-1.0 is not installed.
    """
    kind, _, rest = text.partition(":")
    if kind == "folder" and rest:
        from devit_edge_agent.sources.folder import FolderSource

        return FolderSource(base / rest, preprocess)
    if kind == "gst" and rest.strip():
        from devit_edge_agent.sources.gstreamer import GstSource
        from devit_edge_agent.sources.pipeline import parse_pipeline

        return GstSource(parse_pipeline(rest, base=base), preprocess)
    raise InputError(f"source: expected folder:DIR or gst:PIPELINE, found {text!r}: correct agent.toml")
