from __future__ import annotations

from devit_contract.messages import Hello
from devit_fusion.links import Link

HELLO = Hello("jetson1", 0, 4, "0" * 64, "null", ("float32",), "0")


def ready_link(credit: int = 2) -> Link:
    link = Link(0, "jetson1", credit)
    link.connect(HELLO, boot_id=1, engine_revision=2)
    return link


def test_a_device_is_absent_until_it_has_introduced_itself() -> None:
    assert Link(0, "jetson1", 2).state == "absent"
    assert ready_link().state == "ready"


def test_credit_is_taken_by_a_frame_and_given_back_by_its_answer() -> None:
    link = ready_link(credit=1)
    link.sent(1, deadline_ns=100)
    assert not link.has_credit
    link.returned(1, now_ns=50)
    assert link.has_credit


def test_a_device_is_stalled_until_its_overdue_answers_have_come() -> None:
    link = ready_link()
    link.sent(1, deadline_ns=100)
    link.sent(2, deadline_ns=110)
    link.note_overdue(now_ns=105)
    assert link.state == "stalled"
    link.note_overdue(now_ns=120)
    link.returned(1, now_ns=130)
    assert link.state == "stalled"
    link.returned(2, now_ns=131)
    assert link.state == "ready"


def test_an_answer_shows_that_earlier_ones_will_never_come() -> None:
    """An agent works in order: a lost answer must not leave its device stalled for ever."""
    link = ready_link()
    link.sent(1, deadline_ns=100)
    link.note_overdue(now_ns=105)
    link.sent(2, deadline_ns=200)
    link.returned(2, now_ns=150)
    assert link.state == "ready"
    assert not link.in_flight


def test_a_stalled_device_is_tried_again_after_a_second() -> None:
    link = ready_link()
    link.sent(1, deadline_ns=100)
    link.note_overdue(now_ns=105)
    link.forgive(now_ns=999_999_000)
    assert link.state == "stalled"
    link.forgive(now_ns=1_000_000_200)
    assert link.state == "ready"


def test_a_new_link_owes_nothing_of_the_old_one() -> None:
    link = ready_link(credit=1)
    link.sent(1, deadline_ns=100)
    link.note_overdue(now_ns=200)
    link.disconnect()
    assert link.state == "absent"
    link.connect(HELLO, boot_id=2, engine_revision=2)
    assert link.state == "ready"
    assert link.has_credit


def test_an_answer_to_a_frame_that_was_never_sent_gives_no_credit() -> None:
    link = ready_link(credit=1)
    link.sent(1, deadline_ns=100)
    link.returned(99, now_ns=10)
    assert not link.has_credit
