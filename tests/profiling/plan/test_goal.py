"""Goals as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.errors import InputError
from devit_profiling.plan.goal import Goal, parse_goal
from devit_profiling.plan.nearest import rounded


def test_a_goal_has_all_its_keys_or_their_defaults() -> None:
    found = parse_goal(" deadline-ms=30 , rate=20, survive=1, watts=30, accuracy=90.5", 50)
    assert found == Goal(30.0, 20.0, 1, 30.0, 90.5)
    assert parse_goal("", 50) == Goal(50.0, 1.0, 0, None, None)
    assert parse_goal(found.text, 50) == found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("deadline=30", "'deadline' is not one of deadline-ms, rate, survive, watts, accuracy"),
        ("rate=1, rate=2", "'rate' is there twice"),
        ("rate", "rate: expected 0.001 to 100000, found ''"),
        ("rate=fast", "rate: expected 0.001 to 100000, found 'fast'"),
        ("rate=nan", "found 'nan'"),
        ("rate=0", "found '0'"),
        ("survive=0.5", "survive: expected a whole number of devices, found '0.5'"),
        ("accuracy=101", "accuracy: expected 0 to 100, found '101'"),
    ],
)
def test_another_key_or_value_is_refused_with_an_example(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem.replace("(", r"\(")) as refused:
        parse_goal(text, 50)
    assert ": write e.g. " in str(refused.value)


@given(st.floats(1e-3, 1e5))
def test_rounding_goes_to_the_safe_side_by_a_tenth_at_most(value: float) -> None:
    assert value * (1 - 1e-9) <= rounded(value, up=True) <= value * 1.1 * (1 + 1e-9)
    assert value * (1 + 1e-9) >= rounded(value, up=False) >= value * 0.9 * (1 - 1e-9)
