"""The frame scheduler: requests become frames, frames go to devices, features become answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.head import Fusion, mask_of
from devit_contract.service.journal import Priority
from devit_contract.wire.codec import Dtype
from devit_contract.wire.messages import DeviceTiming
from devit_contract.wire.sockets import Sent
from devit_contract.wire.status import ClientStatus, DeviceStatus
from devit_contract.wire.words import DeviceState, MissingReason, ShedReason
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.devices.pace import Flight
from devit_fusion.events import Events
from devit_fusion.frames.answers import Answers, Shedding
from devit_fusion.frames.certainty import Certainty
from devit_fusion.frames.choices import Choice, Choices
from devit_fusion.frames.courses import MISSING, Courses
from devit_fusion.frames.images import Images
from devit_fusion.frames.join import Frame, Join
from devit_fusion.frames.liars.guard import Guard
from devit_fusion.frames.promise import Promise
from devit_fusion.frames.sending import Sending, drop_payload
from devit_fusion.frames.stages import Course, Stages
from devit_fusion.frames.turns import Turns
from devit_fusion.frames.witness import Witness
from devit_fusion.ports.clients import ClientPort, Request
from devit_fusion.ports.devices import DevicePort
from devit_fusion.ports.seats import Seats

_READY = DeviceState.READY
"""As a plain name: the enum class costs a look-up in its metaclass at each use."""


class Parts(NamedTuple):
    """Whose state decides what becomes of frames."""

    links: Mapping[int, Link]
    """By device index."""
    join: Join
    choices: Choices
    stages: Stages
    promise: Promise
    chance: random.Random
    """Which certain answers are audited."""


class Scheduler:
    """All frames and links of one node."""

    def __init__(
        self,
        fusion: Fusion,
        fleet: Fleet,
        links: Mapping[str, Link],
        devices: DevicePort,
        clients: ClientPort,
        run_id: int,
        events: Events,
        *,
        calibration: Calibration | None,
        accuracies: Mapping[int, float],
        images: Images,
        clock: Clock,
    ) -> None:
        """Join the parts; ``links`` is by device name, ``accuracies`` by mask of devices."""
        self._clock, chance = clock, random.Random()
        self._witness: Witness | None = None
        self._all_devices = fusion.head.all_devices
        self._device_count = len(fusion.head.dims)
        self._serving = serving = fleet.serving
        self._deadline_ns = round(serving.deadline_ms * 1e6)
        self.seats = Seats(links, events)
        self._links = self.seats.serving
        self._devices = devices
        self._clients = clients
        self._events = events
        self._join = Join()
        self._turns = Turns(fleet.shares)
        self._guard = Guard(fusion.head, calibration, fleet, self._links, events, clock, chance)
        shared_by_answers = self._links, clients, self._turns, events, self._guard, images, clock
        self.answers = Answers(fusion, serving.min_devices, *shared_by_answers)
        self._shedding = Shedding(fleet, self._turns, self.answers, events, self._device_count)
        stages = Stages(
            fleet,
            devices=self._device_count,
            accuracies=accuracies,
            is_calibrated=calibration is not None,
            has_own_views=clients.has_own_views,
        )
        tests = stages.tests, stages.tests_each
        certainty = None if calibration is None else Certainty(fusion, calibration, fleet.certain, tests=tests)
        self.promise, self._stages = Promise(fleet.certain, events, chance), stages
        shared = self._join, self._links, devices
        self._courses = Courses(
            fusion, fleet, stages, certainty, self.promise, *shared, self._send_stage, self._end, self._guard.look
        )
        self._sending = Sending(self._links, devices, images, run_id, self._deadline_ns)
        self._dispatched: dict[int, Request] = {}
        self._known: dict[tuple[str, int, int], Request] = {}  # waiting or dispatched, by their keys
        self._choices = Choices(fleet, self._links, self._all_devices, self._turns, stages, self._courses, clock)
        self.parts = Parts(self._links, self._join, self._choices, stages, self.promise, chance)

    def tell(self, witness: Witness | None) -> None:
        """Tell a witness of all frames from now on; ``None``: nobody."""
        self._witness = self.answers.witness = witness

    @property
    def open_frames(self) -> int:
        """Frames that have not ended."""
        return len(self._join)

    @property
    def waiting_requests(self) -> int:
        """Requests that have not been dispatched."""
        return self._turns.waiting

    def request(self, request: Request) -> None:
        """Take a request in: dispatch it now, or let it wait for its turn and for credit.

        Where too many wait, the client that has most for its weight loses its newest. A request that its client sends
        again after a lost link is answered once, over the new link.
        """
        known = self._known.setdefault(request.key, request)
        if known is not request:
            known.client = request.client
            return
        policy_problem, picture_problem = self._stages.settle(request), ""
        if request.pixels:
            decoding = self._turns.decoding(request.name)
            picture_problem = decoding.problem(request.pixels, self._serving, request.arrival_ns)
        if policy_problem or picture_problem:
            del self._known[request.key]
            self._clients.refuse(request, "policy" if policy_problem else "picture", policy_problem or picture_problem)
            return
        time_ns = request.picture.deadline_us * 1000 or self._deadline_ns
        request.deadline_ns = request.arrival_ns + min(time_ns, self._deadline_ns)
        if (why := self._shedding.why_not(request)) is not None:
            del self._known[request.key]
            self._shedding.shed(request, why, is_new=True)
            return
        self._turns.add(request)
        self.dispatch_waiting()
        while self._shedding.is_full:
            del self._known[self._shedding.make_room(request).key]

    def dispatch_waiting(self) -> None:
        """Send waiting requests in turn: once every requested ready device has room, or they have waited too long.

        Right after the node's start they also wait for devices that have not connected yet. After a restart of the node
        those connect soon, and a frame sent before would fail for no good reason.
        """
        if not (self._turns.waiting or self._courses.line or self._courses.audits):
            self._choices.wait_end_ns = None
            return
        now_ns = self._clock.now_ns
        claimed_first = self._courses.advance(now_ns)
        if not self._turns.waiting:
            self._choices.wait_end_ns = None
            if not claimed_first:
                self._courses.audit(now_ns)
            return
        self._choices.begin(now_ns)
        while (choice := self._choices.next(now_ns, claimed_first)) is not None:
            self._turns.take(choice.request)
            self._dispatch(choice)

    def take_over(self, end_ns: int) -> None:
        """Be patient with the requests that come until then: another node was to answer them."""
        self._choices.take_over(end_ns)

    def shed_waiting(self) -> None:
        """End all waiting requests without sending them to devices."""
        while self._turns.waiting:
            request = self._turns.take_heaviest()
            del self._known[request.key]
            self._shedding.shed(request, ShedReason.STANDBY)
        self._choices.rest()

    def feature_received(self, link: Link, frame_id: int, feature: Float32Array, timing: DeviceTiming) -> None:
        """Take a feature in."""
        now_ns = self._clock.now_ns
        is_probe = self._returned(link, frame_id, now_ns, timing)
        if link.is_excluded:
            frame = self._join.set_aside(frame_id, link.index, feature, is_probe=is_probe)
        else:
            frame = self._join.add(frame_id, link.index, feature, timing, is_probe=is_probe)
        if frame is not None:
            self._finish(frame, now_ns)

    def frame_skipped(self, link: Link, frame_id: int, why: MissingReason, *, is_counted: bool = False) -> None:
        """Do without a feature; ``is_counted`` if its message is among the rejected ones already."""
        now_ns = self._clock.now_ns
        is_probe = self._returned(link, frame_id, now_ns)
        if self.seats.has_spares and frame_id in self.seats.held_by_others(link):
            return
        frame = self._join.skip(frame_id, link.index, why, is_probe=is_probe or is_counted)
        if frame is not None:
            self._finish(frame, now_ns)

    def lose(self, link: Link, why: MissingReason) -> None:
        """Wait no longer for a device, in any frame."""
        now_ns = self._clock.now_ns
        self.settle()
        for frame in self._join.lose(link.index, why, self.seats.held_by_others(link)):
            self._finish(frame, now_ns)

    def refill(self, fleet: Fleet) -> None:
        """Take in that other devices belong to the fleet now, and other clients."""
        self.seats.refill()
        self._guard.know(self._links)
        for entry in fleet.shares:
            self._turns.set_client(entry)
        for name in self._turns.names - {entry.name for entry in fleet.shares}:
            for request in self._turns.remove_client(name):  # nobody is there to answer
                del self._known[request.key]

    def settle(self) -> None:
        """Give every seat to whom it belongs, and send what the one before will not answer to the new one."""
        now_ns = self._clock.now_ns
        for change in self.seats.settle(now_ns):
            self._guard.seated(change.now)
            self._choices.unblock()
            for frame in self._join.waiting_for(change.now.index):
                request = self._dispatched.get(frame.frame_id)
                if request is None or not (request.picture.payload or request.picture.dtype is Dtype.NONE):
                    continue
                if change.takes(frame.frame_id, frame.deadline_ns, now_ns, is_file=request.picture.is_file):
                    self._send_frames(request, frame, [change.now.index], (), Flight(now_ns, frame.deadline_ns))

    def expire(self, now_ns: int) -> None:
        """End the frames whose deadline has come; the devices that did not answer are stalled.

        A frame whose stage takes too long is sent on.
        """
        for frame in self._join.expire(now_ns):
            if frame.deadline_ns <= now_ns:
                for device in frame.pending:
                    self._links[device].missed(now_ns)
            if frame.course is not None:
                self._courses.expired(frame, now_ns)
            else:
                self._end(frame, now_ns)
        if self._courses.withdrawn:
            self._courses.tend(now_ns)
        self.answers.tend(now_ns)
        self._guard.tend(now_ns)
        if self.seats.has_spares:
            self.settle()

    def next_deadline_ns(self) -> int | None:
        """Tell when :meth:`expire` or :meth:`dispatch_waiting` has something to do."""
        due_ns, withdrawn = self._join.next_deadline_ns(), self._courses.withdrawn
        for other_ns in (
            self.answers.due_ns(),
            self._guard.due_ns,
            self._choices.due_ns(),
            withdrawn[0][0] if withdrawn else None,
        ):
            if other_ns is not None and (due_ns is None or other_ns < due_ns):
                due_ns = other_ns
        return due_ns

    def device_status(self) -> tuple[DeviceStatus, ...]:
        """Describe every device for people."""
        return tuple(map(self._guard.judged, self.seats.status(self._clock.now_ns, self._join.unused)))

    def client_status(self) -> tuple[ClientStatus, ...]:
        """Describe every client for people."""
        return self._turns.status()

    def _returned(self, link: Link, frame_id: int, now_ns: int, timing: DeviceTiming | None = None) -> bool:
        """Give a credit back; tell whether it was that of a probe, or of a frame that is not needed any more."""
        pace = link.pace
        was_too_slow = pace.is_too_slow
        flight = link.returned(frame_id, now_ns, timing)
        if flight is not None and timing is not None:  # else it comes twice or much too late: its times mean nothing
            link.measured(timing)
            if flight.file is not None and flight.file.client in self._turns.names:  # else it was removed
                decoding = self._turns.decoding(flight.file.client)
                decoding.add(link.index, flight.file.pixels, timing.decode_us * 1000, now_ns)
        if pace.is_too_slow is not was_too_slow:
            if was_too_slow:
                self._events.note(link.name, "recovered: a feature came in time")
            else:
                text = f"suspended: too many of its last frames took it more than {pace.late_ns / 1e6:g} ms"
                self._events.note(link.name, text, Priority.WARNING)
        if frame_id != link.probe_id:
            return flight is not None and flight.is_withdrawn
        link.probe_id = -1
        return True

    def _dispatch(self, choice: Choice) -> None:
        request, first, claimed, is_late = choice
        now_ns = self._clock.now_ns
        deadline_ns = self._choices.deadline_ns(request)
        requested = self._choices.requested(request)
        course = self._stages.course(request, first)
        pending: set[int] = set()
        probed: list[int] = []
        missing: dict[int, MissingReason] = {}
        if course is None and len(first) == self._device_count and not is_late and now_ns < deadline_ns:
            pending.update(self._links)  # all are ready and have room, as they were chosen
        else:
            first_mask = self._all_devices if course is None else mask_of([link.index for link in first])
            for index in range(self._device_count):
                link = self._links.get(index)
                if not requested >> index & 1:
                    missing[index] = MissingReason.NOT_ASKED
                elif link is None:
                    missing[index] = MissingReason.ABSENT
                elif link.state is not _READY:
                    missing[index] = MISSING[link.state]
                    if now_ns < deadline_ns and link.take_probe(now_ns):
                        pending.add(index) if link.is_excluded else probed.append(index)
                elif course is not None and not first_mask >> index & 1:
                    course.unasked.add(index)
                elif (
                    claimed >> index & 1
                    or not link.has_credit
                    or deadline_ns - now_ns <= (self._least_ns(link, request) if is_late else 0)
                ):
                    missing[index] = MissingReason.OVERLOAD
                else:
                    pending.add(index)
        if course is not None and not pending:  # those chosen first had most room
            missing |= dict.fromkeys(course.unasked, MissingReason.OVERLOAD)
            course.unasked.clear()
        if not pending and not probed and MissingReason.OVERLOAD in missing.values():
            del self._known[request.key]
            self._shedding.shed(request, ShedReason.DEADLINE, missing)
            return
        frame = self._join.open(requested, now_ns, deadline_ns, pending, missing, probed, course)
        self._dispatched[frame.frame_id] = request
        if course is not None:
            self._courses.begin(frame)
        if pending or probed:
            self._send_frames(request, frame, sorted(pending), probed)
        if course is None and not self.seats.has_spares:
            drop_payload(request)
        if not pending:
            self._finish(frame, now_ns)

    def _least_ns(self, link: Link, request: Request) -> float:
        """Tell what a request needs of a device; only where it has work: else it would never show that it is faster."""
        return link.pace.least_ns(is_encoded=request.picture.is_file) if link.in_flight else 0.0

    def _send_stage(self, course: Course, frame: Frame, links: Sequence[Link], now_ns: int, deadline_ns: int) -> None:
        """Send a frame on to devices that it has not asked yet."""
        times = Flight(now_ns, deadline_ns)
        self._send_frames(course.request, frame, [link.index for link in links], (), times)
        if not course.unasked and not self.seats.has_spares:
            drop_payload(course.request)

    def _send_frames(
        self,
        request: Request,
        frame: Frame,
        pending: Sequence[int],
        probed: Sequence[int],
        times: Flight | None = None,
    ) -> None:
        for index in probed:
            self._links[index].probe_id = frame.frame_id
        asked = (*pending, *probed)
        if self._witness is not None:
            self._witness.dispatched(request, frame, asked)
        flight = times or Flight(frame.dispatch_ns, frame.deadline_ns)
        for link, sent in self._sending.send(request, frame, asked, flight):
            self._not_sent(link, frame, sent)

    def _not_sent(self, link: Link, frame: Frame, sent: Sent) -> None:
        if self._witness is not None:
            self._witness.not_sent(link, frame, sent)
        if sent is Sent.GONE:
            self._devices.suspect()
            if self.seats.has_spares:  # its link is found lost in this turn of the loop, and then a spare is asked
                return
        why = MissingReason.OVERLOAD if sent is Sent.FULL else MissingReason.ABSENT
        is_probe = frame.frame_id == link.probe_id
        looked_at = self._join.skip(frame.frame_id, link.index, why, is_probe=is_probe)
        if looked_at is not None:
            self._finish(looked_at, self._clock.now_ns)

    def _finish(self, frame: Frame, now_ns: int) -> None:
        """Answer a frame that has ended, or look at one with a course."""
        if frame.course is not None:
            self._courses.look(frame, now_ns)
        else:
            self._end(frame, now_ns)

    def _end(self, frame: Frame, now_ns: int) -> None:
        request = self._dispatched.pop(frame.frame_id)
        del self._known[request.key]
        self.answers.end(request, frame, now_ns)
