"""Why a child of GStreamer brought no frames, read from what it printed."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CURES = (
    (
        re.compile(r"not-linked|not-negotiated"),
        "its elements do not fit together: the source in agent.toml must have video of this size and fps; on a Jetson, "
        "decoders need nvvidconv: apt-get install nvidia-l4t-gstreamer",
    ),
    (
        re.compile(r"no element|missing a plug-in|no suitable plugins"),
        "install what is missing, e.g. apt-get install gstreamer1.0-plugins-bad gstreamer1.0-libav",
    ),
    (re.compile(r"erroneous pipeline"), "correct the source in agent.toml"),
    (re.compile(r"Could not determine type of stream|appears to be a text file"), "give a video file"),
)
"""Of errors that another try only repeats, and what helps; a camera that is away, or refuses, may come back."""
_NAMED = re.compile(r"ERROR: from element|WARNING: erroneous pipeline|\(Argus\) Error")
"""An error of GStreamer or of a Jetson's camera service: it counts before what libraries print."""


@dataclass(frozen=True)
class Ending:
    """How a child ended."""

    text: str
    """Why, in one line: the element, what it says, and the reason that GStreamer gives; empty if all went well."""
    cure: str = ""
    """What helps where another try only repeats it; empty where it may help."""


class Output:
    """What a child has printed so far."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._last, self._error = "", ""
        self._is_named = False
        self._below: list[str] = []

    def take(self, line: str) -> None:
        """Take the next line, which is not empty."""
        self._last = line
        if not self._is_named and _NAMED.match(line):
            self._error, self._is_named = line, True
        elif self._is_named and len(self._below) < 4:
            self._below.append(line)
        elif not self._error and "error" in line.lower():
            self._error = line

    def ending(self, otherwise: str, *, is_error: bool) -> Ending:
        """Say why the child ended; ``otherwise`` holds if it has printed nothing, its last line only for an error."""
        text = self._error.rstrip(".") + self._reason()
        text = text or (self._last if is_error else "") or otherwise
        return Ending(text, next((cure for pattern, cure in _CURES if pattern.search(text)), ""))

    def _reason(self) -> str:
        """GStreamer's reason, in brackets: it stands below a headline and a place in the source."""
        headline, _, reason, more = (*self._below, "", "", "", "")[:4]
        if not headline.startswith("Additional debug info") or not reason or reason.startswith("ERROR"):
            return ""
        return f" ({reason} {more.partition(',')[0]})" if reason.endswith(":") else f" ({reason})"
