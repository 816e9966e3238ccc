"""Who is to blame for pairs that disagree: the fewest devices without which all others agree, if that is one set."""

from __future__ import annotations

import time
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from devit_fusion.frames.liars.evidence import _smallest_cover

PAIRS = st.frozensets(st.sampled_from(list(combinations(range(7), 2))))


@given(PAIRS, st.integers(0, 3))
def test_the_smallest_cover_is_that_of_trying_every_set(pairs: frozenset[tuple[int, int]], most: int) -> None:
    expected: frozenset[int] = frozenset()
    for size in range(1, most + 1):
        sets = [frozenset(chosen) for chosen in combinations(range(7), size)]
        covers = [each for each in sets if all(not each.isdisjoint(pair) for pair in pairs)] if pairs else []
        if covers:
            expected = covers[0] if len(covers) == 1 else frozenset()
            break
    assert _smallest_cover(pairs, most) == expected


def test_many_devices_that_disagree_do_not_hold_the_node_up() -> None:
    """As images unlike any make all of them do, whoever sends those; other frames wait meanwhile."""
    every = frozenset(combinations(range(64), 2))
    for pairs in (every, frozenset(pair for pair in every if {0, 31, 63} & set(pair))):
        _smallest_cover.cache_clear()
        start_s = time.perf_counter()
        found = _smallest_cover(pairs, 3)
        assert time.perf_counter() - start_s < 0.02
        assert found == (frozenset() if pairs is every else {0, 31, 63})
