"""Bounds of a share, against exact sums and scipy's figures."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.binomial import most_within, upper_bound


@given(tries=st.integers(1, 60), data=st.data())
def test_the_bound_is_where_so_few_come_in_one_of_twenty_tries(tries: int, data: st.DataObject) -> None:
    """Against the binomial distribution itself, in whole numbers."""
    found = data.draw(st.integers(0, tries - 1))
    bound = upper_bound(found, tries)
    rate = Fraction(bound)
    terms = (math.comb(tries, count) * rate**count * (1 - rate) ** (tries - count) for count in range(found + 1))
    assert float(sum(terms)) == pytest.approx(0.05, rel=1e-6)
    assert found / tries < bound < 1.0


@pytest.mark.parametrize(
    ("found", "tries", "expected"),
    # scipy.stats.beta.ppf(0.95, found + 1, tries - found)
    [(0, 1, 0.95), (0, 2, 0.7763932), (3, 20, 0.3436614), (2, 260, 0.0240153), (5, 100_000, 0.0001051), (9, 9, 1.0)],
)
def test_the_bound_is_clopper_and_pearsons(found: int, tries: int, expected: float) -> None:
    assert upper_bound(found, tries) == pytest.approx(expected, rel=1e-3)


@given(share=st.floats(0.0, 1.0), tries=st.integers(1, 300), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_one_more_would_pass_the_share(share: float, tries: int, confidence: float) -> None:
    found = most_within(share, tries, confidence)
    assert found == -1 or upper_bound(found, tries, confidence) <= share * (1 + 1e-9)
    assert upper_bound(found + 1, tries, confidence) >= share * (1 - 1e-9)
