from __future__ import annotations

from devit_contract.wire.messages import DeviceTiming, Hello
from devit_contract.wire.words import DeviceState
from devit_fusion.devices.links import PROBE_NS, Link
from devit_fusion.devices.pace import Flight

HELLO = Hello("jetson1", 0, 4, "0" * 64, "null", ("float32",), "0")
DEADLINE_NS = 100
TIMING = DeviceTiming(0, 0, 0, 0, 0, 0)


def flight(deadline_ns: int) -> Flight:
    return Flight(deadline_ns - DEADLINE_NS, deadline_ns)


def ready_link(credit: int = 2) -> Link:
    link = Link(0, "jetson1", credit, DEADLINE_NS)
    link.connect(HELLO, boot_id=1, engine_revision=2)
    return link


def test_a_device_is_absent_until_it_has_introduced_itself() -> None:
    assert Link(0, "jetson1", 2, DEADLINE_NS).state is DeviceState.ABSENT
    assert ready_link().state is DeviceState.READY


def test_credit_is_taken_by_a_frame_and_given_back_by_its_answer() -> None:
    link = ready_link(credit=1)
    link.sent(1, flight(100))
    assert not link.has_credit
    link.returned(1, now_ns=50)
    assert link.has_credit


def test_a_device_is_stalled_until_its_overdue_answers_have_come() -> None:
    link = ready_link()
    link.sent(1, flight(100))
    link.sent(2, flight(110))
    link.missed(now_ns=105)
    assert link.state is DeviceState.STALLED
    link.missed(now_ns=120)
    link.returned(1, now_ns=130)
    assert link.state is DeviceState.STALLED
    link.returned(2, now_ns=131)
    assert link.state is DeviceState.READY


def test_an_answer_shows_that_earlier_ones_will_never_come() -> None:
    """An agent works in order: a lost answer must not leave its device stalled for ever."""
    link = ready_link()
    link.sent(1, flight(100))
    link.missed(now_ns=105)
    link.sent(2, flight(200))
    link.returned(2, now_ns=150)
    assert link.state is DeviceState.READY
    assert not link.in_flight


def test_a_frame_that_was_sent_behind_a_newer_one_is_still_to_come() -> None:
    """A frame comes to the devices of its later stages behind frames that were opened after it."""
    link = ready_link()
    link.sent(2, flight(100))
    link.sent(1, flight(100))
    link.returned(2, now_ns=50, timing=TIMING)
    assert list(link.in_flight) == [1]
    link.returned(1, now_ns=60, timing=TIMING)
    assert (link.in_flight, link.state) == ({}, DeviceState.READY)


def test_what_a_device_does_with_withdrawn_frames_says_nothing_about_its_pace() -> None:
    link = ready_link()
    for number in range(1, 6):
        link.sent(number, flight(100 * number))
        assert link.withdraw(number)
        assert link.has_withdrawn(number)
        link.returned(number, 100 * number + 50, TIMING if number % 2 else None)  # late, were it not withdrawn
    assert (link.state, link.pace.own_ns, link.in_flight) == (DeviceState.READY, 0.0, {})
    assert not link.withdraw(5)


def test_a_device_without_room_is_behind_if_what_it_holds_is_not_needed_any_more() -> None:
    link = ready_link()
    link.sent(1, flight(100))
    link.withdraw(1)
    assert not link.is_behind
    link.sent(2, flight(100))
    assert link.is_behind
    link.returned(1, 50)
    link.sent(3, flight(100))
    assert not link.is_behind


def test_three_frames_in_a_row_without_a_timely_answer_suspend_a_device_until_one_is_in_time() -> None:
    link = ready_link()
    for number in (1, 2, 3):
        assert link.state is DeviceState.READY
        link.sent(number, flight(100 * number))
        link.missed(now_ns=100 * number)
        link.returned(number, 100 * number + 10, TIMING)  # late
    assert link.state is DeviceState.SUSPENDED
    link.sent(4, flight(1000))
    link.returned(4, 1001, TIMING)
    assert link.state is DeviceState.SUSPENDED
    link.sent(5, flight(2000))
    link.returned(5, 1950, TIMING)
    assert link.state is DeviceState.READY


def test_answers_in_time_between_late_ones_do_not_hide_them() -> None:
    """Every third frame is in time."""
    link = ready_link()
    for number in range(1, 6):
        assert link.state is DeviceState.READY
        link.sent(number, flight(1000 * number))
        link.returned(number, 1000 * number + (1 if number % 3 else -50), TIMING)
    assert link.state is DeviceState.SUSPENDED


def test_a_stalled_device_is_probed_once_a_second() -> None:
    link = ready_link()
    link.sent(1, flight(100))
    assert not link.take_probe(now_ns=PROBE_NS)  # ready: it is sent every frame
    link.missed(now_ns=105)
    assert not link.take_probe(now_ns=104 + PROBE_NS)
    assert link.take_probe(now_ns=105 + PROBE_NS)
    assert not link.take_probe(now_ns=104 + 2 * PROBE_NS)
    assert link.take_probe(now_ns=105 + 2 * PROBE_NS)


def test_probes_of_a_device_that_never_answers_are_not_remembered_beyond_its_credit() -> None:
    link = ready_link(credit=2)
    for number in range(1, 50):
        link.sent(number, flight(number))
        link.missed(now_ns=number)
    assert sorted(link.in_flight) == [48, 49]


def test_a_new_link_owes_nothing_of_the_old_one() -> None:
    link = ready_link(credit=1)
    link.sent(1, flight(100))
    link.missed(now_ns=200)
    link.disconnect()
    assert link.state is DeviceState.ABSENT
    link.connect(HELLO, boot_id=2, engine_revision=2)
    assert link.state is DeviceState.READY
    assert link.has_credit


def test_another_engine_in_the_same_process_owes_what_the_old_one_did() -> None:
    link = ready_link()
    link.sent(1, flight(100))
    link.change_engine(HELLO, engine_revision=3)
    assert (link.engine_revision, list(link.in_flight)) == (3, [1])


def test_a_device_that_shuts_down_is_sent_nothing_new_and_comes_back_with_its_next_link() -> None:
    link = ready_link()
    link.is_leaving = True
    assert link.state is DeviceState.LEAVING
    link.connect(HELLO, boot_id=2, engine_revision=2)
    assert link.state is DeviceState.READY


def test_an_answer_to_a_frame_that_was_never_sent_gives_no_credit() -> None:
    link = ready_link(credit=1)
    link.sent(1, flight(100))
    link.returned(99, now_ns=10)
    assert not link.has_credit
