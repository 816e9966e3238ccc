"""Bounds of a share, exact for any number of tries (Clopper and Pearson, Biometrika 26, 1934)."""

from __future__ import annotations

import math

_HALVINGS = 50
"""Down to the precision of a float."""


def upper_bound(found: int, tries: int, confidence: float = 0.95) -> float:
    """Compute how large a share may be of which ``found`` were seen in so many tries; 1 without any.

    With a larger share, as few as these would come with a probability of ``1 - confidence`` at most.

    >>> round(upper_bound(0, 256), 4), round(upper_bound(2, 2), 4)
    (0.0116, 1.0)
    """
    if found == tries:
        return 1.0
    low, high = found / tries, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _probability_of_at_most(found, tries, middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def most_within(share: float, tries: int, confidence: float = 0.95) -> int:
    """Compute how many may be found in so many tries for :func:`upper_bound` to be ``share`` at most; -1 for none.

    >>> most_within(0.0117, 256), most_within(0.0115, 256)
    (0, -1)
    """
    found = -1
    while found + 1 < tries and _probability_of_at_most(found + 1, tries, share) <= 1.0 - confidence:
        found += 1
    return found


def _probability_of_at_most(found: int, tries: int, share: float) -> float:
    """Sum up the binomial distribution, by logarithms: the factors are too large and too small for a float."""
    if share <= 0.0 or share >= 1.0:
        return float(share <= 0.0 or found >= tries)
    whole = math.lgamma(tries + 1)
    return math.fsum(
        math.exp(
            whole
            - math.lgamma(count + 1)
            - math.lgamma(tries - count + 1)
            + count * math.log(share)
            + (tries - count) * math.log1p(-share)
        )
        for count in range(found + 1)
    )
