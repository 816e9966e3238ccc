"""Opening a source by its line in ``agent.toml``.

============================================== ======================================================================
``folder:DIR``                                 the pictures of a folder in the order of their names, round and round
``gst:csi?sensor=0&size=1280x720&fps=30``      a Jetson's camera, by nvarguscamerasrc
``gst:v4l2?device=/dev/video0&size=640x480``   a USB camera; ``fps=`` may be given
``gst:rtsp?url=rtsp://HOST/PATH&latency=200``  a network camera; latency in milliseconds; write ``&`` of the URL as %26
``gst:file?path=clip.mp4``                     a video file at its own speed, from the start again at its end
``gst:videotestsrc is-live=true ?size=64x48``  any other pipeline of gst-launch-1.0, without its sink
============================================== ======================================================================

``size`` is that of the captured frame, 640x480 by default (1280x720 for csi);
:mod:`devit_contract.artefacts.preprocess` scales it to the graph's input, as it does pictures of clients and training.
GStreamer stretches frames of another shape, so give a file's or a network camera's own. The list of processes shows a
password in a URL.
"""

from __future__ import annotations

from pathlib import Path

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import InputError
from devit_edge_agent.sources.folder import FolderSource
from devit_edge_agent.sources.gstreamer import GstSource
from devit_edge_agent.sources.pipeline import parse_pipeline
from devit_edge_agent.sources.source import Source


def open_source(text: str, preprocess: Preprocess, *, base: Path) -> Source:
    """Open a source by its line in ``agent.toml``, see the table above; relative paths start from ``base``.

    Raises:
        InputError: The line is not usable, the folder holds no picture, or gst-launch-1.0 is not installed.
    """
    kind, _, rest = text.partition(":")
    if kind == "folder" and rest:
        return FolderSource(base / rest, preprocess)
    if kind == "gst" and rest.strip():
        return GstSource(parse_pipeline(rest, base=base), preprocess)
    raise InputError(f"source: expected folder:DIR or gst:PIPELINE, found {text!r}: correct agent.toml")
