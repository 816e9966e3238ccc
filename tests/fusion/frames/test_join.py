from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.artefacts.head import mask_of
from devit_contract.wire.codec import State
from devit_contract.wire.messages import DeviceTiming
from devit_contract.wire.words import MissingReason
from devit_fusion.frames.join import Frame, Join

ALL_DEVICES = 0b111
FEATURE = np.ones(2, np.float32)


def timing(device: int) -> DeviceTiming:
    return DeviceTiming(device, 0, 0, 0, 0, 0)


def opened(join: Join, *, now_ns: int = 0, awaited: tuple[int, ...] = (0, 1, 2)) -> Frame:
    missing = {device: MissingReason.ABSENT for device in range(3) if device not in awaited}
    return join.open(ALL_DEVICES, now_ns, now_ns + 100, set(awaited), missing)


def test_a_frame_ends_full_with_its_last_feature() -> None:
    join = Join()
    frame = opened(join)
    assert [join.add(frame.frame_id, device, FEATURE, timing(device)) for device in (2, 0)] == [None, None]
    assert join.add(frame.frame_id, 1, FEATURE, timing(1)) is frame
    assert frame.state(ALL_DEVICES, min_devices=3) is State.FULL
    assert len(join) == 0


def test_a_frame_ends_partial_when_the_rest_is_skipped_and_says_why() -> None:
    join = Join()
    frame = opened(join)
    join.add(frame.frame_id, 0, FEATURE, timing(0))
    join.skip(frame.frame_id, 1, MissingReason.DECODE)
    assert join.lose(2, MissingReason.ABSENT) == [frame]
    assert frame.state(ALL_DEVICES, min_devices=1) is State.PARTIAL
    assert (frame.mask, frame.missing) == (0b001, {1: MissingReason.DECODE, 2: MissingReason.ABSENT})


def test_a_deadline_ends_a_frame_at_its_nanosecond_and_not_before() -> None:
    join = Join()
    frame = opened(join, now_ns=50)
    assert join.next_deadline_ns() == 150
    assert join.expire(149) == []
    assert join.expire(150) == [frame]
    assert frame.missing == dict.fromkeys(range(3), MissingReason.DEADLINE)
    assert join.next_deadline_ns() is None


def test_deadlines_end_frames_in_their_order_and_not_in_that_of_dispatch() -> None:
    """A client whose turn it was overtook one that had asked before it."""
    join = Join()
    later, earlier, last = (opened(join, now_ns=now_ns) for now_ns in (50, 10, 90))
    assert join.next_deadline_ns() == 110
    assert join.expire(150) == [earlier, later]
    assert join.expire(190) == [last]


@pytest.mark.parametrize(
    ("wished", "came", "min_devices", "state"),
    [
        (0b111, (0, 1, 2), 3, State.FULL),
        (0b111, (0, 1), 2, State.PARTIAL),
        (0b111, (0, 1), 3, State.FAILED),
        (0b111, (), 1, State.FAILED),
        (0b010, (1,), 3, State.PARTIAL),  # only one was asked, so one is enough
        (0b010, (), 3, State.FAILED),
    ],
)
def test_the_state_follows_from_what_came_what_was_asked_and_min_devices(
    wished: int, came: tuple[int, ...], min_devices: int, state: State
) -> None:
    frame = Frame(1, wished, 0, 100, set(), {}, set(), features=dict.fromkeys(came, FEATURE), mask=mask_of(came))
    assert frame.state(ALL_DEVICES, min_devices) is state


def test_late_and_double_features_are_counted_and_never_used() -> None:
    join = Join()
    frame = opened(join, awaited=(0, 1))
    other = np.full(2, 7, np.float32)
    join.add(frame.frame_id, 0, FEATURE, timing(0))
    assert join.add(frame.frame_id, 0, other, timing(0)) is None
    join.expire(100)
    assert join.add(frame.frame_id, 1, other, timing(1)) is None
    assert join.add(frame.frame_id + 5, 1, other, timing(1)) is None
    assert dict(join.unused) == {(0, "duplicate"): 1, (1, "late"): 2}
    assert frame.features[0] is FEATURE
    assert list(frame.features) == [0]


def test_a_frame_that_waits_for_nobody_has_ended_already() -> None:
    join = Join()
    frame = opened(join, awaited=())
    assert len(join) == 0
    assert frame.state(ALL_DEVICES, min_devices=1) is State.FAILED


steps = st.one_of(
    st.tuples(st.just("open"), st.sets(st.integers(0, 2))),
    st.tuples(st.just("add"), st.integers(1, 12), st.integers(0, 2)),
    st.tuples(st.just("skip"), st.integers(1, 12), st.integers(0, 2)),
    st.tuples(st.just("lose"), st.integers(0, 2)),
    st.tuples(st.just("expire"), st.integers(1, 60)),
)


@given(st.lists(steps, max_size=60))
def test_every_frame_ends_exactly_once_whatever_happens(script: list[tuple[Any, ...]]) -> None:
    join = Join()
    now_ns = 0
    ended: list[Frame] = []
    count = 0
    for step in script:
        match step:
            case ("open", awaited):
                frame = opened(join, now_ns=now_ns, awaited=tuple(awaited))
                count += 1
                ended += [] if awaited else [frame]
            case ("add", frame_id, device):
                ended += filter(None, [join.add(frame_id, device, FEATURE, timing(device))])
            case ("skip", frame_id, device):
                ended += filter(None, [join.skip(frame_id, device, "engine")])
            case ("lose", device):
                ended += join.lose(device, MissingReason.ABSENT)
            case ("expire", by_ns):
                now_ns += by_ns
                ended += join.expire(now_ns)
        assert len(join) + len(ended) == count
    ended += join.expire(now_ns + 1000)
    assert sorted(frame.frame_id for frame in ended) == list(range(1, count + 1))
    for frame in ended:
        assert set(frame.features) | set(frame.missing) == {0, 1, 2}
        assert not set(frame.features) & set(frame.missing)


def test_a_device_that_is_only_tried_is_in_the_answer_if_its_feature_comes_in_time_and_never_late() -> None:
    join = Join()
    frame = join.open(0b11, 0, 100, {0}, {1: MissingReason.SUSPENDED}, {1})
    assert join.add(frame.frame_id, 1, FEATURE, timing(1), is_probe=True) is None
    assert join.add(frame.frame_id, 0, FEATURE, timing(0)) is frame
    assert (frame.mask, frame.missing) == (0b11, {})
    frame = join.open(0b11, 0, 100, {0}, {1: MissingReason.SUSPENDED}, {1})
    assert join.add(frame.frame_id, 0, FEATURE, timing(0)) is frame
    assert join.add(frame.frame_id, 1, FEATURE, timing(1), is_probe=True) is None
    assert (frame.mask, frame.missing, dict(join.unused)) == (0b01, {1: MissingReason.SUSPENDED}, {})
