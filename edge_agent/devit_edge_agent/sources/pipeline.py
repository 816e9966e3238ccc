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
_TRAILING = re.compile(r"(.*)&(?:(size)=([0-9]+x[0-9]+)|(latency)=([0-9]+))")
"""What is a parameter of ours behind a URL or path, unless it stands before it too."""
_ENDS_A_WORD = re.compile(r"[\s!\"'\\\x00-\x1f\x7f]")
"""What could end an element, or a value, in the arguments of gst-launch-1.0."""
_ENDS_A_LOCATION = re.compile(r"[\"\\\x00-\x1f\x7f]")
"""The same behind ``location=``, where ``!`` and ``'`` are letters, and gst-launch-1.0 itself sees to blanks."""
_NEWEST_ONLY = "queue leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0"
"""Between camera and conversion: the next frame replaces one that was not fetched."""
_OUT_OF_NVMM = "! nvvidconv ! video/x-raw,format=RGBA"
"""From a Jetson's own memory, which videoconvert cannot read, to everybody's."""
_SCALE = "videoscale add-borders=false method=lanczos"
"""All pixels count, as where Pillow shrinks a picture; of GStreamer's own choice, two in each direction do."""
_EXACTLY = "video/x-raw,format={RGB,RGBA,RGBx,BGR,BGRA,BGRx,Y444_12LE};video/x-raw,colorimetry=1:4:0:0"
"""Between any format and RGB: limited range (16 to 235) goes by 12 bits, since GStreamer's short way for it rounds each
step down, and is two levels too dark. RGB and the full range of JPEG pass as they are."""
_DEFAULTS = {
    "csi": {"sensor": "0", "size": "1280x720", "fps": "30"},
    "v4l2": {"device": "/dev/video0", "size": "640x480", "fps": ""},
    "rtsp": {"url": "", "size": "", "latency": "200"},
    "file": {"path": "", "size": ""},
}
"""Each preset's parameters; an empty one means that somebody else decides, or that it must be given."""
_OWN_SIZE = ("csi", "v4l2")
"""Presets of cameras that are asked for frames of ``size``: nothing scales them."""
_AS_WRITTEN = {"rtsp": "url", "file": "path"}
"""Parameters that are not decoded: URLs and file names have ``%``, ``+``, ``&`` and ``=`` of their own."""


@dataclass(frozen=True)
class Pipeline:
    """What to start, and what comes out of it."""

    words: tuple[str, ...]
    """Up to the sink, which the child's pipe decides."""
    is_paced: bool
    """Frames leave by their time stamps, not as fast as they can be made: what is no camera has no other clock."""
    width: int
    height: int
    words_for_nvmm: tuple[str, ...] = ()
    """The same for a decoder that leaves frames in a Jetson's own memory; empty if there is no decoder.

    GStreamer chooses the decoder when it runs, and each of the two ways fails at once with the other kind.
    """

    @property
    def stride_bytes(self) -> int:
        """Bytes of a row of RGB: GStreamer rounds up to four."""
        return (self.width * 3 + 3) // 4 * 4

    @property
    def is_csi(self) -> bool:
        """Whether frames come from a Jetson's camera service."""
        return "nvarguscamerasrc" in self.words


def parse_pipeline(text: str, *, base: Path, default_size: tuple[int, int] = (640, 480)) -> Pipeline:
    """Read a preset with its parameters, e.g. ``v4l2?device=/dev/video0``, or a pipeline followed by ``?size=WxH``.

    A relative ``path`` starts from ``base``. ``default_size`` holds where frames are scaled; what is wider or taller
    than that shape is cut around its middle first, so that nothing is squashed. Frames are RGB for gray graphs too:
    GStreamer's GRAY8 goes from 16 to 235 or from 0 to 255, as the source pleases, and preprocessing makes gray of
    colours as training does.

    Raises:
        InputError: A parameter is unknown, missing or not usable, or quotes do not match.
    """
    name, _, query = text.partition("?")
    preset = name.strip()
    size: str | None
    if preset in _DEFAULTS:
        values = _parameters(preset, query.strip())
        size, is_paced = values["size"] or None, preset == "file"
        capture = _capture(preset, values, base)
    else:
        trailing = _TRAILING_SIZE.search(text)
        size, is_paced = trailing[1] if trailing else None, True
        capture = _split(text[: trailing.start()] if trailing else text)
    width, height = default_size if size is None else _size(size)
    fit = "! videoconvert ! videoscale !"
    if preset not in _OWN_SIZE:
        fit = f"! videoconvert ! aspectratiocrop aspect-ratio={width}/{height} ! {_SCALE} !"
    if preset != "csi":  # NVIDIA's converter has made RGB of it
        fit += f" videoconvert ! {_EXACTLY} ! videoconvert !"
    tail = [*_split(fit), f"video/x-raw,format=RGB,width={width},height={height}"]
    for_nvmm = () if preset == "csi" else (*capture, *_split(_OUT_OF_NVMM), *tail)
    return Pipeline((*capture, *tail), is_paced, width, height, for_nvmm)


def _capture(preset: str, values: dict[str, str], base: Path) -> list[str]:
    rate = f",framerate={values['fps']}/1" if values.get("fps") else ""
    if preset in _OWN_SIZE:
        width, height = _size(values["size"])
        size = f"width={width},height={height}"
    if preset == "csi":
        nvmm = f"video/x-raw(memory:NVMM),format=NV12,{size}{rate}"
        return [
            "nvarguscamerasrc",
            f"sensor-id={values['sensor']}",
            "!",
            nvmm,
            *_split(f"{_OUT_OF_NVMM} ! {_NEWEST_ONLY}"),
        ]
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
    if _ENDS_A_LOCATION.search(str(path)):
        raise InputError(f"gst:file: path: expected no double quote or \\, found {str(path)!r}: rename it")
    return ["filesrc", f"location={path}", *_split("! decodebin")]


def _parameters(preset: str, query: str) -> dict[str, str]:
    values = dict(_DEFAULTS[preset])
    as_written = _AS_WRITTEN.get(preset, "")
    for name, value in _pairs(preset, query, as_written):
        if name not in values:
            raise InputError(f"gst:{preset}: expected some of {', '.join(values)}, found {name!r}: correct agent.toml")
        if name != as_written and (not value or _ENDS_A_WORD.search(value)):
            raise InputError(f"gst:{preset}: {name}: expected no space, quote, \\ or !, found {value!r}")
        values[name] = value
    for name in ("sensor", "fps", "latency"):
        if values.get(name) and not _NUMBER.fullmatch(values[name]):
            raise InputError(f"gst:{preset}: {name}: expected a whole number, found {values[name]!r}")
    if "path" in values and not values["path"]:
        raise InputError("gst:file: expected path=FILE, found none: correct the source in agent.toml")
    url = values.get("url")
    if url is not None and (not url.startswith(("rtsp://", "rtsps://")) or _ENDS_A_LOCATION.search(url) or " " in url):
        raise InputError(f"gst:rtsp: url: expected rtsp://HOST/PATH, found {url!r}: correct agent.toml")
    return values


def _pairs(preset: str, query: str, as_written: str) -> list[tuple[str, str]]:
    """Split ``name=value&name=value``.

    The parameter ``as_written`` goes to the end, but for the other ones behind it that do not stand before it.
    """
    found = re.fullmatch(rf"(?:(.*?)&)??{as_written}=(.*)", query) if as_written else None
    before, rest = (query, None) if found is None else (found[1] or "", found[2])
    try:
        pairs = parse_qsl(before, keep_blank_values=True, strict_parsing=True) if before else []
    except ValueError as err:
        raise InputError(f"gst:{preset}: expected parameters as name=value&name=value, found {query!r}") from err
    if rest is None:
        return pairs
    while last := _TRAILING.fullmatch(rest):
        name, value = last[2] or last[4], last[3] or last[5]
        if name not in _DEFAULTS[preset] or name in dict(pairs):
            break
        rest = last[1]
        pairs.append((name, value))
    return [*pairs, (as_written, rest)]


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
