"""From the text after ``gst:`` to the arguments of gst-launch-1.0, a list that no shell ever sees."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from devit_contract.artefacts.preprocess import MAX_PIXELS
from devit_contract.errors import InputError

_SIZE = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")
_TRAILING_SIZE = re.compile(r"\s*\?size=(\S*)\s*$")
_NUMBER = re.compile(r"[0-9]{1,5}")
_ENDS_A_WORD = re.compile(r"[\s!\"'\\\x00-\x1f\x7f]")
"""What could end an element, or a value, in the arguments of gst-launch-1.0."""
_NEWEST_ONLY = "queue leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0"
"""Between camera and conversion: the next frame replaces one that was not fetched."""
_DEFAULTS = {
    "csi": {"sensor": "0", "size": "1280x720", "fps": "30"},
    "v4l2": {"device": "/dev/video0", "size": "640x480", "fps": ""},
    "rtsp": {"url": "", "size": "640x480", "latency": "200"},
    "file": {"path": "", "size": "640x480"},
}
"""Each preset's parameters; an empty one means that the element decides, or that it must be given."""


@dataclass(frozen=True)
class Pipeline:
    """What to start, and what comes out of it."""

    words: tuple[str, ...]
    """Up to the sink, which the child's pipe decides."""
    is_paced: bool
    """Frames leave by their time stamps, not as fast as they can be made: what is no camera has no other clock."""
    width: int
    height: int

    @property
    def stride_bytes(self) -> int:
        """Bytes of a row of RGB: GStreamer rounds up to four."""
        return (self.width * 3 + 3) // 4 * 4


def parse_pipeline(text: str, *, base: Path) -> Pipeline:
    """Read a preset with its parameters, e.g. ``v4l2?device=/dev/video0``, or a pipeline followed by ``?size=WxH``.

    A relative ``path`` starts from ``base``. Frames are RGB for gray graphs too: GStreamer's GRAY8 goes from 16 to 235
    or from 0 to 255, as the source pleases, and preprocessing makes gray of colours as training does.

    Raises:
        InputError: A parameter is unknown, missing or not usable, or quotes do not match.
    """
    name, _, query = text.partition("?")
    if name.strip() in _DEFAULTS:
        values = _parameters(name.strip(), query)
        width, height = _size(values["size"])
        capture, is_paced = _capture(name.strip(), values, base), name.strip() == "file"
    else:
        trailing = _TRAILING_SIZE.search(text)
        width, height = _size(trailing[1] if trailing else "640x480")
        capture, is_paced = _split(text[: trailing.start()] if trailing else text), True
    pixels = f"video/x-raw,format=RGB,width={width},height={height}"
    return Pipeline((*capture, *_split("! videoconvert ! videoscale !"), pixels), is_paced, width, height)


def _capture(preset: str, values: dict[str, str], base: Path) -> list[str]:
    width, height = _size(values["size"])
    size = f"width={width},height={height}"
    rate = f",framerate={values['fps']}/1" if values.get("fps") else ""
    if preset == "csi":
        # nvvidconv copies out of the camera's own memory (NVMM), which videoconvert cannot read.
        source = ["nvarguscamerasrc", f"sensor-id={values['sensor']}", "!"]
        nvmm = [
            f"video/x-raw(memory:NVMM),format=NV12,{size}{rate}",
            *_split("! nvvidconv !"),
            "video/x-raw,format=RGBA",
        ]
        return [*source, *nvmm, *_split(f"! {_NEWEST_ONLY}")]
    if preset == "v4l2":
        # Many USB cameras reach their full rate as JPEG only.
        caps = f"video/x-raw,{size}{rate};image/jpeg,{size}{rate}"
        return ["v4l2src", f"device={values['device']}", "!", caps, *_split(f"! decodebin ! {_NEWEST_ONLY}")]
    if preset == "rtsp":
        source = ["rtspsrc", f"location={values['url']}", f"latency={values['latency']}", "!"]
        return [*source, "application/x-rtp,media=video", *_split(f"! decodebin ! {_NEWEST_ONLY}")]
    path = base / values["path"]
    if not path.is_file():
        raise InputError(f"{path}: expected a video file, found none: correct the source in agent.toml")
    return ["filesrc", f"location={path}", *_split("! decodebin")]


def _parameters(preset: str, query: str) -> dict[str, str]:
    values = dict(_DEFAULTS[preset])
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as err:
        raise InputError(f"gst:{preset}: expected parameters as name=value&name=value, found {query!r}") from err
    for name, value in given:
        if name not in values:
            raise InputError(f"gst:{preset}: expected some of {', '.join(values)}, found {name!r}: correct agent.toml")
        if not value or _ENDS_A_WORD.search(value):
            raise InputError(f"gst:{preset}: {name}: expected no space, quote, \\ or !, found {value!r}")
        values[name] = value
    for name in ("sensor", "fps", "latency"):
        if values.get(name) and not _NUMBER.fullmatch(values[name]):
            raise InputError(f"gst:{preset}: {name}: expected a whole number, found {values[name]!r}")
    if "path" in values and not values["path"]:
        raise InputError("gst:file: expected path=FILE, found none: correct the source in agent.toml")
    if "url" in values and not values["url"].startswith(("rtsp://", "rtsps://")):
        raise InputError(f"gst:rtsp: url: expected rtsp://HOST/PATH, found {values['url']!r}: correct agent.toml")
    return values


def _size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) * int(match[2]) > MAX_PIXELS:
        raise InputError(
            f"size: expected WIDTHxHEIGHT such as 640x480, found {text!r}: correct the source in agent.toml"
        )
    return int(match[1]), int(match[2])


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as err:
        raise InputError(f"source: expected a pipeline of gst-launch-1.0, found {text!r} ({err})") from err
