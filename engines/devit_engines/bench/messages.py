"""What an engine that runs in a process of its own and the process that started it say to each other, a line each.

The engine's process prints one :class:`Ready` line. For every line with a number of seconds on its standard input it
runs back to back for so long, then prints a :class:`Stint` line. It ends when its input is closed, as it is when the
process at its other end dies in whatever way. A failure is a :class:`Failed` line, and the end.
"""

from __future__ import annotations

import msgspec


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine is loaded and warm."""

    engine: str
    board_model: str
    l4t: str
    bundle: str
    image_shape: tuple[int, int, int]
    inference_threads: int


class Stint(msgspec.Struct, frozen=True, tag=True):
    """What the engine has done in a stretch of time."""

    start_ns: int
    """Monotonic clock, which all processes of a machine share."""
    end_ns: int
    taken_us: list[int]
    """Of each inference, one image, one after the other."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Why there is no engine, or no more."""

    why: str
    """One line, written for the user."""


Line = Ready | Stint | Failed
