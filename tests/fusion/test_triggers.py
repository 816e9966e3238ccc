"""Triggers in stages: who works now, and who only keeps the image of the moment."""

from __future__ import annotations

from devit_contract.wire.codec import Kind, Message
from devit_fusion.frames.join import Frame, Join
from devit_fusion.frames.sending import in_stages
from devit_fusion.frames.stages import Course
from devit_fusion.ports.clients import Request


def frame(unasked: set[int]) -> Frame:
    request = Request(b"", "", Message(Kind.REQUEST), 0, "certain")
    course = Course(request, "certain", (1, 2), 2, unasked=unasked)
    return Join().open(0b1111, 1_000_000, 50_000_000, {2}, {}, course=course)


def test_the_first_trigger_goes_to_all_and_names_those_that_work_now() -> None:
    trigger, keeping = in_stages(Message(Kind.TRIGGER, dispatch_ns=1_000_000), frame({3, 0, 1}), (2,))
    assert (trigger.mask, trigger.capture_age_us, list(keeping)) == (0b0100, 0, [0, 1, 3])


def test_a_later_one_says_how_old_the_moment_is_and_nobody_keeps_another() -> None:
    trigger, keeping = in_stages(Message(Kind.TRIGGER, dispatch_ns=21_000_000), frame({3}), (0, 1))
    assert (trigger.mask, trigger.capture_age_us, list(keeping)) == (0, 20_000, [])
    at_once, _ = in_stages(Message(Kind.TRIGGER, dispatch_ns=1_000_500), frame({3}), (0, 1))
    assert at_once.capture_age_us == 1  # 0 would be the first
