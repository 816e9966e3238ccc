"""Devices with own views answer about the moment at which a frame began, whenever they are asked."""

from __future__ import annotations

from devit_contract.wire.codec import Kind, Message
from devit_edge_agent.sources.moments import Moments


class Camera:
    """Shows something else each time."""

    shown = 0

    def look(self, _frame_id: int) -> int | None:
        self.shown += 1
        return None if self.shown == 3 else self.shown


def trigger(frame_id: int, mask: int = 0, age_us: int = 0, run_id: int = 5) -> Message:
    return Message(Kind.TRIGGER, run_id=run_id, frame_id=frame_id, mask=mask, capture_age_us=age_us)


def test_who_is_asked_later_has_the_image_of_the_moment_at_which_the_frame_began() -> None:
    moments = Moments(1, Camera().look)
    assert not moments.hears(trigger(7, mask=0b01))  # only the first device works on it now
    assert moments.hears(trigger(8, mask=0b10))
    assert moments.take(trigger(8)) == 2
    assert moments.hears(trigger(7, age_us=20_000))
    assert moments.take(trigger(7)) == 1
    assert moments.take(trigger(7)) is None  # nothing newer takes its place


def test_a_trigger_without_a_mask_is_for_all() -> None:
    moments = Moments(1, Camera().look)
    assert moments.hears(trigger(1))
    assert moments.take(trigger(1)) == 1


def test_where_there_was_no_image_at_that_moment_none_is_taken_later() -> None:
    moments = Moments(0, Camera().look)
    for frame_id in (1, 2, 3):
        moments.hears(trigger(frame_id, mask=0b10))
    assert moments.hears(trigger(3, age_us=1))
    assert moments.take(trigger(3)) is None
    assert moments.hears(trigger(4, age_us=1))  # of which this device never heard
    assert moments.take(trigger(4)) is None


def test_the_last_moments_alone_are_kept_and_none_of_another_run() -> None:
    moments = Moments(0, Camera().look)
    for frame_id in range(1, 101):
        moments.hears(trigger(frame_id, mask=0b10))
    assert moments.take(trigger(68)) is None
    assert [moments.take(trigger(frame_id)) for frame_id in (69, 100)] == [69, 100]
    moments.hears(trigger(99, mask=0b10, run_id=6))  # of another node, which counts its own frames
    moments.forget(5)
    assert moments.take(trigger(99)) is None
    assert moments.take(trigger(99, run_id=6)) == 101
