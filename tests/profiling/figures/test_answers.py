"""Where the time of an answer goes, by hand-made rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.wire.codec import State
from devit_contract.wire.messages import DeviceTiming
from devit_profiling.figures.answers import answer_stats, slowest_us
from devit_profiling.record.record import AnswerRow

NAMES = {0: "a", 1: "b", 2: "c"}


def row(
    *arrivals_us: int, collect_us: int = 0, missing: dict[int, str] | None = None, window: int = 1, ms: float = 10.0
) -> AnswerRow:
    """An answer whose features came after these times; the node collected as long as the last took."""
    timings = tuple(DeviceTiming(index, at, 0, 0, 0, at) for index, at in enumerate(arrivals_us))
    collect_us = collect_us or max(arrivals_us, default=0)
    return AnswerRow("together", window, State.FULL, 7, ms, 100, collect_us, 50, missing or {}, timings, 0)


def test_slowest_device_is_waited_for_from_the_second_last_feature_on() -> None:
    assert slowest_us(row(2000, 7000, 3000)) == 4000
    assert slowest_us(row(2000)) == 0


def test_device_that_misses_the_deadline_is_waited_for_from_the_last_feature_on() -> None:
    assert slowest_us(row(2000, 3000, collect_us=50_000, missing={2: "deadline"})) == 47_000
    assert slowest_us(row(collect_us=50_000, missing={0: "deadline"})) == 50_000


def test_device_that_was_not_asked_or_is_gone_is_not_waited_for() -> None:
    assert slowest_us(row(2000, 3000, missing={2: "not asked"})) == 1000
    assert slowest_us(row(2000, missing={1: "absent"})) == 0


@given(st.lists(st.lists(st.integers(1, 9000), min_size=1, max_size=3), min_size=1, max_size=20))
def test_parts_add_up_to_the_mean_latency(arrivals: list[list[int]]) -> None:
    parts = answer_stats([row(*times) for times in arrivals], NAMES, {1: 1.0}).parts
    assert parts is not None
    assert parts.latency_ms == pytest.approx(10.0)
    assert min(parts.client_ms, parts.devices_ms, parts.slowest_ms) >= 0
    assert (parts.queue_ms, parts.fuse_ms) == pytest.approx((0.1, 0.05))


def test_feature_lies_at_the_node_until_the_last_one_comes() -> None:
    stats = answer_stats([row(2000, 7000), row(3000, 7000), row(1000, 7000)], NAMES, {1: 1.0})
    assert [device.waited_ms for device in stats.devices] == [5.0, 0.0]
    assert answer_stats([row(2000)], NAMES, {1: 1.0}).devices[0].waited_ms is None


def test_each_window_has_its_own_figures() -> None:
    rows = [row(1000, ms=10.0), row(3000, ms=20.0), row(5000, ms=30.0, window=2)]
    stats = answer_stats(rows, NAMES, {1: 2.0, 2: 4.0, 3: 1.0})
    assert [(window.number, window.answers, window.per_second) for window in stats.windows] == [
        (1, 2, 1.0),
        (2, 1, 0.25),
        (3, 0, 0.0),
    ]
    assert [window.p50_ms for window in stats.windows] == [15.0, 30.0, None]
    assert [(window.number, window.arrival_p50_ms) for window in stats.devices[0].windows] == [(1, 2.0), (2, 5.0)]
    assert stats.per_second == pytest.approx(3 / 7)
