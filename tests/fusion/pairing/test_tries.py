"""How often a code may be tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.wire.pairing import CODE_ALPHABET, CODE_LENGTH
from devit_fusion.pairing.tries import Tries


def count_tries(seconds: float) -> int:
    """Try as often as it is let, for so many seconds."""
    now_s, count = 0.0, 0
    tries = Tries(lambda: now_s)
    while now_s < seconds:
        tries.wrong()
        count += 1
        now_s += tries.pause_s()
    return count


@pytest.mark.parametrize(("seconds", "tries"), [(600, 15), (86_400, 36)])
def test_a_guesser_has_few_tries_in_the_time_of_a_pairing(seconds: float, tries: int) -> None:
    assert count_tries(seconds) == tries
    assert tries / len(CODE_ALPHABET) ** CODE_LENGTH < 1e-7


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=40))
def test_no_three_wrong_codes_are_followed_by_another_try_before_a_pause_that_grows(waits_s: list[float]) -> None:
    now_s = 0.0
    tries, pauses_s = Tries(lambda: now_s), []
    for wait_s in waits_s:
        now_s += wait_s
        if tries.pause_s():
            continue
        tries.wrong()
        if pause_s := tries.pause_s():
            pauses_s.append(pause_s)
    assert len(pauses_s) == tries.failed // 3
    assert pauses_s == pytest.approx([30 * 2**number for number in range(len(pauses_s))])
