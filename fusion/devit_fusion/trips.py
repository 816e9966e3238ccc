"""How long a device's images take from the node into its engine, by what they travel as. No clock of its own."""

from __future__ import annotations

from collections import deque
from statistics import median_low

from devit_contract.choices import ImageCoding

LEAST_BYTES = 16_384
"""Smaller images are never coded, as that takes longer than to send them; so they are not measured either."""
KEPT = 9
"""Of so many the middle one counts, so that four hiccups say nothing."""


class Trips:
    """The last images of one device."""

    def __init__(self) -> None:
        """Start with none."""
        self._last_us: dict[ImageCoding, deque[int]] = {}

    def add(self, coding: ImageCoding, trip_us: int) -> None:
        """Take in one image's."""
        self._last_us.setdefault(coding, deque(maxlen=KEPT)).append(trip_us)

    def middle_us(self, coding: ImageCoding) -> int | None:
        """Give the middle one of the last; ``None`` before there are enough."""
        last_us = self._last_us.get(coding, ())
        return median_low(last_us) if len(last_us) == KEPT else None

    def forget(self, coding: ImageCoding) -> None:
        """Have what comes from now on count alone."""
        self._last_us.pop(coding, None)

    def status(self) -> dict[str, int]:
        """Give the middle ones for people."""
        return {coding: median_low(last_us) for coding, last_us in self._last_us.items()}
