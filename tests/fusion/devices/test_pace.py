"""Which devices are too slow, and how many frames they may hold, by times in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from devit_contract.wire.messages import DeviceTiming
from devit_fusion.devices.pace import File, Flight, Pace

MS = 1_000_000
FILE = File("desk", 1_000_000)
DEADLINE_MS = 50


class Device:
    """A device whose frames take as long as a test says; the clock is the test's."""

    def __init__(self, credit: int = 8) -> None:
        self.pace = Pace(credit, DEADLINE_MS * MS)
        self.now_ms = 0

    def answer(
        self, took_ms: int, *, sent_ms: int | None = None, queue_ms: int = 0, decode_ms: int = 0, work_ms: int = 0
    ) -> None:
        """Answer a frame, sent when the one before ended or at ``sent_ms``, ``took_ms`` later."""
        sent_ms = self.now_ms if sent_ms is None else sent_ms
        self.now_ms = sent_ms + took_ms
        flight = Flight(sent_ms * MS, (sent_ms + DEADLINE_MS) * MS, FILE if decode_ms else None)
        timing = DeviceTiming(0, 0, 1000 * queue_ms, 1000 * decode_ms, 1000 * work_ms, 1000 * took_ms)
        self.pace.answered(flight, self.now_ms * MS, timing)


@pytest.mark.parametrize(
    ("took_ms", "frames"),
    [
        ([60], 3),
        ([60, 1], 7),  # every second one late, just after the deadline
        ([49, 1], 7),  # or just before
        ([60, 60, 1], 5),
        ([60, 1, 1], 13),
        ([60, 1, 1, 1], 33),
    ],
)
def test_a_pattern_of_late_frames_suspends_a_device(took_ms: Sequence[int], frames: int) -> None:
    device = Device()
    for number in range(frames):
        assert not device.pace.is_too_slow
        device.answer(took_ms[number % len(took_ms)])
    assert device.pace.is_too_slow


@pytest.mark.parametrize("took_ms", [[1], [44], [60, *[1] * 19], [60, 60, *[1] * 18]])
def test_a_device_that_is_late_now_and_then_is_not_suspended(took_ms: Sequence[int]) -> None:
    device = Device()
    for number in range(400):
        device.answer(took_ms[number % len(took_ms)])
        assert not device.pace.is_too_slow


def test_one_frame_in_time_ends_a_suspension_and_one_late_frame_after_it_begins_another() -> None:
    device = Device()
    for _ in range(9):
        device.answer(60)
    device.answer(10)
    assert not device.pace.is_too_slow
    device.answer(60)
    assert device.pace.is_too_slow
    for _ in range(20):
        device.answer(10)
    device.answer(60)
    assert not device.pace.is_too_slow


def test_waiting_behind_other_frames_is_not_a_devices_own_time() -> None:
    """Four frames of 20 ms, all sent at once: the last one comes 30 ms after its deadline."""
    device = Device()
    for turn in range(30):
        for place in range(4):
            device.answer(20 * (place + 1), sent_ms=100 * turn, queue_ms=20 * place, work_ms=20)
    assert not device.pace.is_too_slow


def test_a_device_cannot_say_that_a_frame_waited_when_nothing_was_before_it() -> None:
    device = Device()
    for _ in range(3):
        device.answer(60, queue_ms=55)
    assert device.pace.is_too_slow


def test_a_slow_network_suspends_though_frames_follow_closely_on_each_other() -> None:
    """Two are always under way for 60 ms, and come 30 ms apart."""
    device = Device()
    for number in range(3):
        device.answer(60, sent_ms=30 * number, queue_ms=0)
    assert device.pace.is_too_slow


def test_decoding_a_file_of_a_client_is_not_a_devices_own_time() -> None:
    device = Device()
    for _ in range(30):
        device.answer(200, decode_ms=190)
        device.pace.skipped(Flight(device.now_ms * MS, 0, FILE), (device.now_ms + 500) * MS)
        device.now_ms += 500
    assert not device.pace.is_too_slow
    for _ in range(3):
        device.answer(200, decode_ms=100, work_ms=60)
    assert device.pace.is_too_slow


def test_waiting_behind_a_file_of_a_client_on_the_network_is_not_a_devices_own_time() -> None:
    device = Device()
    for turn in range(30):
        device.answer(100, sent_ms=200 * turn, decode_ms=10)
        device.answer(105, sent_ms=200 * turn, work_ms=5)
    assert not device.pace.is_too_slow


def test_an_image_is_not_thought_to_need_as_long_as_the_files_of_others() -> None:
    device = Device(credit=2)
    for _ in range(40):
        device.answer(60, decode_ms=40, work_ms=5)
        device.answer(6, work_ms=5)
    assert device.pace.room == 1
    assert device.pace.needed_ns(is_encoded=False) < 10 * MS
    assert device.pace.needed_ns(is_encoded=True) > 50 * MS


def test_frames_that_a_device_never_answers_count_as_late_when_it_answers_later_ones() -> None:
    device = Device()
    for _ in range(3):
        device.pace.passed_over(Flight(0, 0))
        device.answer(1)
    device.pace.passed_over(Flight(0, 0))
    assert device.pace.is_too_slow


@pytest.mark.parametrize(
    ("took_ms", "work_ms", "room"),
    [
        (2, 1, 8),  # no more than the credit
        (10, 10, 3),  # 3 x 10 + 10 of 50 ms, with some to spare
        (20, 20, 1),
        (30, 5, 2),  # most of it is the network
        (49, 49, 1),  # never none
        (200, 200, 1),
    ],
)
def test_a_device_holds_as_many_frames_as_leave_room_for_one_more_in_time(
    took_ms: int, work_ms: int, room: int
) -> None:
    device = Device(credit=8)
    for _ in range(40):
        device.answer(took_ms, work_ms=work_ms)
    assert device.pace.room == room


def test_a_hiccup_is_forgotten_within_some_frames() -> None:
    device = Device(credit=2)
    for took_ms in [10] * 20 + [2000]:
        device.answer(took_ms, work_ms=took_ms)
    assert device.pace.room == 1
    for _ in range(10):
        device.answer(10, work_ms=10)
    assert device.pace.room == 2
