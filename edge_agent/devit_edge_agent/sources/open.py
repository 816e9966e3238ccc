"""Opening a source by its line in ``agent.toml``.

============================================== ======================================================================
``folder:DIR``                                 the pictures of a folder in the order of their names, round and round
``gst:csi?sensor=0&size=1280x720&fps=30``      a Jetson's camera, by nvarguscamerasrc
``gst:v4l2?device=/dev/video0&size=640x480``   a USB camera; ``fps=`` may be given
``gst:rtsp?latency=200&url=rtsp://HOST/PATH``  a network camera; latency in milliseconds
``gst:file?path=clip.mp4``                     a video file at its own speed, from the start again at its end
``gst:videotestsrc is-live=true ?size=64x48``  any other pipeline of gst-launch-1.0, without its sink
============================================== ======================================================================

``url`` and ``path`` are taken as they are written, to the end of the line: write the other parameters before them. The
list of processes shows a password in a URL.

``size`` is that of a frame. Cameras on ``csi`` and ``v4l2`` are asked for it: give one of the sensor's shape. All other
frames are scaled, and what is wider or taller than ``size`` is cut around its middle first, so that a circle
stays a circle. Without ``size``, they get the shape that the model's crop needs. Then
:mod:`devit_contract.artefacts.preprocess` makes the graph's input of a frame, as it does of pictures of clients and
training.
"""

from __future__ import annotations

from pathlib import Path

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import InputError
from devit_edge_agent.sources.folder import FolderSource
from devit_edge_agent.sources.gstreamer import GstSource
from devit_edge_agent.sources.pipeline import parse_pipeline
from devit_edge_agent.sources.source import Source

_LINES = 480
"""Of scaled frames, at least: more than models take, and small enough for the agent's thread to scale again."""


def open_source(text: str, preprocess: Preprocess, *, base: Path) -> Source:
    """Open a source by its line in ``agent.toml``, see the table above; relative paths start from ``base``.

    Raises:
        InputError: The line is not usable, the folder holds no picture, or gst-launch-1.0 is not installed.
    """
    kind, _, rest = text.partition(":")
    if kind == "folder" and rest:
        return FolderSource(base / rest, preprocess)
    if kind == "gst" and rest.strip():
        return GstSource(parse_pipeline(rest, base=base, default_size=_frame_size(preprocess)), preprocess)
    raise InputError(f"source: expected folder:DIR or gst:PIPELINE, found {text!r}: correct agent.toml")


def is_csi(text: str) -> bool:
    """Tell whether a line names a camera of ``nvargus-daemon``, a Jetson's camera service."""
    kind, _, rest = text.partition(":")
    return kind == "gst" and (rest.partition("?")[0].strip() == "csi" or "nvarguscamerasrc" in rest)


def _frame_size(preprocess: Preprocess) -> tuple[int, int]:
    """Width and height of a frame that loses nothing that the model would see, whatever shape its source has.

    A model that crops takes its crop out of the square in the middle; any other takes all that has its own shape.
    """
    lines = max(_LINES, preprocess.resize_to, preprocess.height)
    if preprocess.resize_to:
        return lines, lines
    return round(lines * preprocess.width / preprocess.height), lines
