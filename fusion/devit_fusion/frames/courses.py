"""Frames that go from stage to stage: tested, sent on, answered as soon as that is certain, and audited afterwards.

A frame whose next devices have no room waits in line before all new requests, until the next devices could not answer
in time any more. Then it takes all with room, whether the devices that it waits for have answered or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.head import Fusion, mask_of
from devit_contract.wire.codec import Dtype
from devit_contract.wire.words import DeviceState, MissingReason
from devit_fusion.devices.links import Link
from devit_fusion.frames.certainty import Certainty
from devit_fusion.frames.join import Frame, Join
from devit_fusion.frames.promise import Promise
from devit_fusion.frames.stages import Course, Stages, has_room
from devit_fusion.ports.devices import DevicePort

_READY = DeviceState.READY
MISSING = {state: MissingReason(state.value) for state in DeviceState if state is not _READY}
"""Why a device in that state has no feature in a frame."""
_MAX_AUDITS, _AUDIT_NS = 8, 1_000_000_000
"""How many audits may be open, and how long one waits for room."""

Send = Callable[[Course, Frame, Sequence[Link], int, int], None]
End = Callable[[Frame, int], None]


class Courses:
    """The staged frames of one node, and the audits of their answers."""

    def __init__(
        self,
        fusion: Fusion,
        fleet: Fleet,
        stages: Stages,
        certainty: Certainty | None,
        promise: Promise,
        join: Join,
        links: Mapping[int, Link],
        devices: DevicePort,
        send: Send,
        end: End,
        compare: Callable[[Frame], object],
    ) -> None:
        """Join the parts; ``links`` is by device index, and without ``certainty`` nothing is.

        ``send`` sends a frame to devices, at a time and with a deadline; ``end`` answers one; ``compare`` finds liars.
        """
        self._fusion, self._stages, self._certainty, self._promise = fusion, stages, certainty, promise
        self._join, self._links, self._devices = join, links, devices
        self._send, self._end, self._compare = send, end, compare
        self._min_devices = fleet.serving.min_devices
        self._credit = fleet.serving.credit
        self._deadline_ns = round(fleet.serving.deadline_ms * 1e6)
        self.line: list[Frame] = []
        """Frames that wait for room."""
        self.audits: list[Frame] = []
        """Frames that are answered, and go on to be audited."""
        self.withdrawn: deque[tuple[int, Link, int]] = deque()
        """Until when a device should have said that it skips a frame, or sent its feature; the oldest first."""

    @property
    def is_full(self) -> bool:
        """Whether so many frames wait in line that no new one may begin."""
        return len(self.line) >= self._credit * len(self._links)

    def begin(self, frame: Frame) -> None:
        """Note when a new frame's first stage is over by time."""
        for index in frame.pending:
            self._stages.asked(index)
        self._join.set_due(frame, self._stage_end_ns(frame))

    def look(self, frame: Frame, now_ns: int) -> None:
        """Decide what becomes of a frame: a feature has come, or will not, and that may have been the last."""
        course = _course(frame)
        if course.given is not None:
            if not frame.pending and not course.unasked:
                self._check(frame)
        elif self._is_enough(frame, course):
            self._release(frame, course, now_ns)
        elif not frame.pending and course.unasked:
            if frame not in self.line:  # a probe's feature may come while it waits
                self.line.append(frame)
        elif not frame.pending:
            self._conclude(frame, now_ns)

    def advance(self, now_ns: int) -> int:
        """Send on the frames in line that can be; give the devices that the others wait for, as a mask."""
        claimed = 0
        line, self.line = self.line, []
        for frame in line:
            if self._join.holds(frame):
                waits_for = self._go_on(frame, claimed, now_ns, is_late=now_ns >= frame.due_ns)
                claimed |= waits_for
                if waits_for:
                    self.line.append(frame)
        return claimed

    def audit(self, now_ns: int) -> None:
        """Ask the devices that audits still need, where they have room: to be called when nobody waits."""
        for frame in list(self.audits):
            course = _course(frame)
            if any(self._links[index].state is not _READY for index in course.unasked):
                self.audits.remove(frame)
                self._withdraw(frame, now_ns)
                self._join.close(frame)
                continue
            for link in [self._links[index] for index in sorted(course.unasked)]:
                if link.has_credit:
                    self._ask(frame, [link], now_ns, now_ns + self._deadline_ns)

    def expired(self, frame: Frame, now_ns: int) -> None:
        """Send a frame on whose stage is over by time, or end it at its deadline."""
        course = _course(frame)
        if now_ns < frame.deadline_ns:
            self._go_on(frame, 0, now_ns, is_late=True)
        elif course.given is not None:
            self.audits.remove(frame)
        else:
            if course.is_alone:
                frame.missing |= dict.fromkeys(course.unasked, MissingReason.NOT_ASKED)
            else:
                self._do_without(frame, course.unasked)
            self._conclude(frame, now_ns)

    def tend(self, now_ns: int) -> None:
        """Notice devices that have not even said that they skip a withdrawn frame."""
        while self.withdrawn and self.withdrawn[0][0] <= now_ns:
            _, link, frame_id = self.withdrawn.popleft()
            if frame_id in link.in_flight:
                link.missed(now_ns)

    def _is_enough(self, frame: Frame, course: Course) -> bool:
        if course.is_alone:
            return bool(frame.features)
        is_due = frame.mask != course.tested and course.tests_done < course.tests
        if self._certainty is None or not is_due or len(frame.features) < max(1, self._min_devices):
            return False
        verdict = self._certainty.judge(frame.features, course.tests)
        if verdict is None:
            return False
        course.tested, course.verdict = frame.mask, verdict
        course.tests_done += 1
        frame.is_certain = verdict.is_certain
        return frame.is_certain

    def _release(self, frame: Frame, course: Course, now_ns: int) -> None:
        """Answer a frame without the devices that are not needed; go on with it behind that for an audit."""
        rest = frame.pending | course.unasked
        missing = dict.fromkeys(rest, MissingReason.NOT_ASKED if course.is_alone else MissingReason.NOT_NEEDED)
        answered = replace(
            frame,
            pending=set(),
            missing=frame.missing | missing,
            features=dict(frame.features),
            timings=list(frame.timings),
        )
        if not course.is_alone and self._promise.tested(is_certain=True) and self._may_audit(frame, course):
            self._keep(frame, course, now_ns)
        else:
            self._withdraw(frame, now_ns)
            self._join.close(frame)
        self._end(answered, now_ns)

    def _may_audit(self, frame: Frame, course: Course) -> bool:
        """Tell whether all devices can answer; with own cameras, those asked later may see another image."""
        rest = frame.pending | course.unasked
        is_later = (
            bool(course.unasked) and course.request.picture.dtype is Dtype.NONE and not self._stages.keeps_moments
        )
        reached = frame.mask | mask_of(rest)
        is_whole = reached == self._fusion.head.all_devices
        return bool(rest) and is_whole and not is_later and len(self.audits) < _MAX_AUDITS

    def _keep(self, frame: Frame, course: Course, now_ns: int) -> None:
        assert course.verdict is not None
        course.given = int(course.verdict.logits.argmax())
        course.is_tested_each = False
        frame.deadline_ns = now_ns + _AUDIT_NS + self._deadline_ns
        self._join.set_due(frame, frame.deadline_ns)
        self.audits.append(frame)
        if frame in self.line:  # the feature of a probe came while it waited
            self.line.remove(frame)

    def _check(self, frame: Frame) -> None:
        """Compare an audited answer with that of all devices, if all have answered."""
        self.audits.remove(frame)
        if _course(frame).tested.bit_count() == 1:  # else features were compared when it was answered
            self._compare(frame)
        if frame.mask == self._fusion.head.all_devices:
            best = int(self._fusion.logits(frame.features).argmax())
            self._promise.audited(is_flip=best != _course(frame).given)
            if self._promise.is_broken:
                self._stages.promise_broken()

    def _go_on(self, frame: Frame, claimed: int, now_ns: int, *, is_late: bool) -> int:
        """Ask the next devices; if they have no room, give them as a mask to wait for."""
        course = _course(frame)
        self._do_without(frame, {index for index in course.unasked if self._links[index].state is not _READY})
        ready = [self._links[index] for index in sorted(course.unasked)]
        if is_late:
            chosen: Sequence[Link] = [link for link in ready if has_room(link, claimed)]
            self._do_without(frame, course.unasked - {link.index for link in chosen})
            course.is_tested_each = True
        else:
            chosen = self._stages.next(course, ready, claimed)
            if not all(has_room(link, claimed) for link in chosen):
                return mask_of([link.index for link in chosen])
            course.sizes = course.sizes[1:]
        if chosen:
            self._ask(frame, chosen, now_ns, frame.deadline_ns)
        elif not frame.pending:
            self._join.close(frame)
            self._conclude(frame, now_ns)
        self._join.set_due(frame, self._stage_end_ns(frame))
        return 0

    def _ask(self, frame: Frame, links: Sequence[Link], now_ns: int, deadline_ns: int) -> None:
        course, indices = _course(frame), {link.index for link in links}
        course.unasked -= indices
        frame.pending |= indices
        for index in indices:
            self._stages.asked(index)
        frame.asked |= mask_of(indices)
        self._send(course, frame, links, now_ns, deadline_ns)

    def _conclude(self, frame: Frame, now_ns: int) -> None:
        """Answer a frame with what has come."""
        if not _course(frame).is_alone:
            self._promise.tested(is_certain=False)
        self._end(frame, now_ns)

    def _do_without(self, frame: Frame, indices: set[int]) -> None:
        for index in indices:
            frame.missing[index] = MISSING.get(self._links[index].state, MissingReason.OVERLOAD)
        _course(frame).unasked -= indices

    def _withdraw(self, frame: Frame, now_ns: int) -> None:
        """Tell the devices that have not answered a frame that they need not."""
        for index in frame.pending:
            link = self._links[index]
            if link.withdraw(frame.frame_id):
                self._devices.withdraw(link, frame.frame_id)
                self.withdrawn.append((now_ns + 2 * self._deadline_ns, link, frame.frame_id))

    def _stage_end_ns(self, frame: Frame) -> int:
        """Tell when the devices that may still be asked could not answer in time any more."""
        course = _course(frame)
        if not course.unasked or course.is_alone:
            return frame.deadline_ns
        is_encoded = course.request.picture.is_file
        needed_ns = max(self._links[index].pace.needed_ns(is_encoded=is_encoded) for index in course.unasked)
        return frame.deadline_ns - round(needed_ns)


def _course(frame: Frame) -> Course:
    assert frame.course is not None
    return frame.course
