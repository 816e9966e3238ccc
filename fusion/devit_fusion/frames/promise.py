"""The promise of certain answers, kept watch on while serving. No sockets, no clock.

A share of the certain answers is audited: the remaining devices answer too, and the answer of all is compared with the
one given. Each audit bets against the promise: a flip multiplies the stake by ``q / r``, any other audit by
``(1 - q) / (1 - r)``. Here q is the flip rate seen so far, at least r, and r is the rate among certain answers that
makes the promised rate among all. While the promise holds, the stake grows beyond ``1 / (1 - confidence)`` with a
probability of ``1 - confidence`` at most, however long one watches: it is a test martingale, and Ville's inequality
bounds it at all times together (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
Journal of the Royal Statistical Society B 86, 2024, section 4; arXiv 2010.09686).
"""

from __future__ import annotations

import math
import random

from devit_contract.artefacts.fleet import Certain
from devit_contract.binomial import upper_bound
from devit_contract.service.journal import Priority
from devit_contract.wire.status import PromiseStatus
from devit_fusion.events import Events

_PRIOR_FLIPS, _PRIOR_RATES = 1.0, 2.0
"""The first bets are as if one flip had been seen already, at twice the promised rate."""


class Promise:
    """What one node has promised, and whether that holds."""

    def __init__(self, certain: Certain, events: Events, chance: random.Random | None = None) -> None:
        """Start with no answer; ``chance`` picks those that are audited."""
        self._chance = chance or random.Random()
        self._certain = certain
        self._events = events
        self._tested = 0
        self._released = 0
        self._audited = 0
        self._flipped = 0
        self._log_stake = 0.0
        self.is_broken = False
        """Whether more answers flip than was promised; this stays until the node's end."""

    def tested(self, *, is_certain: bool) -> bool:
        """Count an answer that might have been certain; tell whether to audit it."""
        self._tested += 1
        self._released += is_certain
        return is_certain and self._chance.random() < self._certain.audit

    def audited(self, *, is_flip: bool) -> None:
        """Take the outcome of an audit in."""
        rate = min(0.5, self._certain.flips * self._tested / self._released)
        guess = max(rate, (self._flipped + _PRIOR_FLIPS) / (self._audited + _PRIOR_FLIPS / (_PRIOR_RATES * rate)))
        guess = min(guess, 0.5)
        self._audited += 1
        self._flipped += is_flip
        self._log_stake += math.log(guess / rate) if is_flip else math.log((1 - guess) / (1 - rate))
        if not self.is_broken and self._log_stake >= -math.log(1.0 - self._certain.confidence):
            self.is_broken = True
            text = (
                f"the promise of {self._certain.flips:.2%} flips is broken, {self._flipped} of {self._audited} audited "
                "answers flipped: all devices are asked now; calibrate on images like these, and restart the node"
            )
            self._events.note("", text, Priority.WARNING)

    def state(self) -> tuple[int | float, ...]:
        """Give what it has counted, for :meth:`resume`."""
        return self._tested, self._released, self._audited, self._flipped, self._log_stake, int(self.is_broken)

    def resume(self, state: tuple[int | float, ...]) -> None:
        """Go on from what another has counted."""
        *counts, self._log_stake, is_broken = state
        self._tested, self._released, self._audited, self._flipped = map(int, counts)
        self.is_broken = bool(is_broken)

    def status(self) -> PromiseStatus:
        """Describe it for people."""
        bound = upper_bound(self._flipped, self._audited, self._certain.confidence)
        return PromiseStatus(
            flips=self._certain.flips,
            confidence=self._certain.confidence,
            audited=self._audited,
            flipped=self._flipped,
            flip_rate_bound=bound * self._released / self._tested if self._tested else 1.0,
            is_broken=self.is_broken,
        )
