"""Why a child of GStreamer brought no frames, read from what it printed."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CURES = (
    (
        re.compile(r"not-linked|not-negotiated"),
        "its elements do not fit together: correct size and fps of the source in agent.toml; on a Jetson, decoders "
        "need nvvidconv: apt-get install nvidia-l4t-gstreamer",
    ),
    (re.compile(r"no element|missing a plug-in|no suitable plugins"), "install the package that has what is missing"),
    (re.compile(r"erroneous pipeline"), "correct the source in agent.toml"),
    (re.compile(r"Could not determine type of stream|appears to be a text file"), "give a video file"),
)
"""Of errors that another try only repeats, and what helps; a camera that is away, or refuses, may come back."""


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
        self._last, self._error, self._reason = "", "", ""
        self._lines_below = 0
        self._has_details = False

    def take(self, line: str) -> None:
        """Take the next line; of an error, GStreamer prints the reason three lines below."""
        self._last = line or self._last
        if self._error:
            self._lines_below += 1
            if self._lines_below == 1:
                self._has_details = line.startswith("Additional debug info")
            elif self._lines_below == 3 and self._has_details and not line.startswith(("ERROR", "WARNING")):
                self._reason = line
        elif "error" in line.lower() or "erroneous" in line:
            self._error = line

    def ending(self, otherwise: str, *, is_error: bool) -> Ending:
        """Say why the child ended; ``otherwise`` holds if it has printed nothing, its last line only for an error."""
        reason = f" ({self._reason})" if self._reason else ""
        text = f"{self._error.rstrip('.')}{reason}" if reason else self._error
        text = text or (self._last if is_error else "") or otherwise
        return Ending(text, next((cure for pattern, cure in _CURES if pattern.search(text)), ""))
