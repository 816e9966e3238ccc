"""What a source of the device's own images can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from devit_contract.arrays import UInt8Array


@dataclass(frozen=True)
class Captured:
    """One image of the device's own."""

    image: UInt8Array
    """Shape ``(H, W, C)``, as the graph takes it."""
    captured_ns: int
    """On this machine's ``time.monotonic_ns``: when the frame's last byte was read, or a file was. A camera's
    exposure is earlier, by what its pipeline takes."""


class Source(Protocol):
    """Where images come from; for one thread, which calls :meth:`pump` a few times a second and never waits for it."""

    @property
    def problem(self) -> str:
        """Why there are no images at present, one line; empty while there are."""

    def fileno(self) -> int:
        """Give a descriptor to poll for reading, the same for the source's whole life; -1 if nothing can come."""

    def pump(self) -> None:
        """Take in what has come, and restart what has ended; call it when readable, and before each image."""

    def newest(self, frame_id: int) -> Captured | None:
        """Hand out the newest image, again if there is no newer one; ``None`` if there is none, or no recent one.

        ``frame_id`` is the number of the frame that it is for, which decides where the images are no camera's.
        """

    def take_new(self) -> Captured | None:
        """Hand out the newest image, unless it has been handed out before."""

    def close(self) -> None:
        """End it; a second call does nothing."""
