"""What follows from each message of a device, and from the end of its link."""

from __future__ import annotations

import time

from devit_contract.service.journal import Priority
from devit_contract.wire.messages import ControlReply
from devit_contract.wire.words import MissingReason
from devit_fusion.devices.heat import Heat
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.frames.scheduler import Scheduler
from devit_fusion.questions import Questions
from devit_fusion.standby.nodes import Nodes


class Handler:
    """Hands features to the scheduler and replies to the questions, and notes what happened to links."""

    def __init__(self, scheduler: Scheduler, questions: Questions, events: Events, nodes: Nodes) -> None:
        """Join the parts."""
        self._scheduler = scheduler
        self._questions = questions
        self._events = events
        self._heat = Heat(events)
        self.feature_received = scheduler.feature_received
        self.samples_received = questions.samples_received
        self._nodes, self.node_asked = nodes, nodes.asked

    def replied(self, link: Link, number: int, reply: ControlReply) -> None:
        """Hand a client its reply; what a ping brings is the node's own."""
        if reply.over_current is not None:
            link.over_current = reply.over_current
        if number == 0:  # of a ping
            self._heat.replied(link, reply, time.monotonic_ns())
        if reply.vote is not None:
            self._nodes.voted(link, number, reply.vote)
        self._questions.replied(number, reply)

    def frame_skipped(self, link: Link, frame_id: int, why: MissingReason, *, is_counted: bool = False) -> None:
        """Do without a feature; the first one that came and is not usable is noted, as the device may be faulty."""
        if is_counted and link.rejected[why] == 1:
            self._events.note(link.name, f"sent a feature that is not used: {why}", Priority.WARNING)
        self._scheduler.frame_skipped(link, frame_id, why, is_counted=is_counted)

    def connected(self, link: Link, *, is_restarted: bool) -> None:
        """Expect nothing of the former link, and note the new one."""
        self._abandon(link, MissingReason.RESTARTED if is_restarted else MissingReason.RECONNECTED)
        self._heat.forget(link)
        self._nodes.met(link)
        self._events.note(link.name, f"ready, {link.hello.engine if link.hello is not None else ''}")

    def engine_changed(self, link: Link) -> None:
        """Note the new engine."""
        self._heat.forget(link)
        self._events.note(link.name, f"runs engine {link.engine_revision:08x} now")

    def leaving(self, link: Link) -> None:
        """Note that a device shuts down."""
        self._events.note(link.name, "shuts down")
        self._scheduler.settle()

    def lose(self, link: Link, why: str = "the link is gone") -> None:
        """Note that a link has ended, and expect nothing of it."""
        self._events.note(link.name, why, Priority.INFO if link.is_leaving else Priority.WARNING)
        link.disconnect()
        self._heat.forget(link)
        self._abandon(link, MissingReason.ABSENT)

    def _abandon(self, link: Link, why: MissingReason) -> None:
        self._scheduler.lose(link, why)
        self._questions.abandon(link, why)
