"""Which classes each submodel is first trained on."""

from __future__ import annotations

import numpy as np


def random_partition(classes: int, parts: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Cut the shuffled classes into parts whose sizes differ by at most one, as DeViT does.

    >>> random_partition(5, 2, seed=0)
    ((2, 3, 4), (0, 1))
    """
    order = np.random.default_rng(seed).permutation(classes)
    return tuple(tuple(sorted(int(label) for label in part)) for part in np.array_split(order, parts))
