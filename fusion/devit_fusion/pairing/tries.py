"""How often a code may be tried: three times, then there is a pause, which grows.

The tries of all connections and addresses count together: many at once are no more tries than one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TRIES = 3
"""Between two pauses."""
FIRST_PAUSE_S = 30.0
_GROWTH = 2


class Tries:
    """Counts wrong codes."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        """Begin with three tries; ``clock_s`` tells seconds since any moment."""
        self.failed = 0
        self._clock_s = clock_s
        self._pause_s = FIRST_PAUSE_S
        self._until_s = float("-inf")

    def wrong(self) -> None:
        """Count a wrong code; after every third one a pause begins, twice as long as the one before."""
        self.failed += 1
        if self.failed % TRIES == 0:
            self._until_s = self._clock_s() + self._pause_s
            self._pause_s *= _GROWTH

    def pause_s(self) -> float:
        """Tell for how many seconds no code is looked at; 0 if one may be tried now."""
        return max(0.0, self._until_s - self._clock_s())
