"""From a frame that has ended to its answer: fused, counted and sent.

The head of an unusual subset of devices may take long to compute. Its first frames wait for that beside the others, so
that a client that walks through the subsets holds nobody else up. Requests that are not served for the sake of the
others are answered at once, counted by reason, and told of now and then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.head import Fusion
from devit_contract.service.journal import Priority
from devit_contract.wire.answer import SHED_TEXTS
from devit_contract.wire.codec import Dtype, Kind, Message, State
from devit_contract.wire.messages import AnswerBody, body
from devit_contract.wire.status import HeadStatus, Histogram
from devit_contract.wire.words import NEVER_ASKED, MissingReason, ShedReason
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.frames.images import Images
from devit_fusion.frames.join import Frame
from devit_fusion.frames.liars.guard import Guard
from devit_fusion.frames.turns import Turns
from devit_fusion.frames.witness import Witness
from devit_fusion.ports.clients import ClientPort, Request

_HEAD_NS, _LOOK_NS = 200_000_000, 5_000_000
"""How long a frame waits for the head of its subset, and how often it is looked for."""
_MAX_WAITING_BYTES = 12 << 20
"""Of all requests that wait, beside their number: pictures of some MiB fill no memory."""
_TOLD_NS = 60_000_000_000
"""How often an event says that a client's requests are not served, and why."""
_NEW_WORDS_MINOR = 2
"""Of the protocol: since when clients know the words below, which are told older ones by others."""
_NEW_WORDS = {
    MissingReason.NOT_NEEDED: MissingReason.NOT_ASKED,
    MissingReason.SUSPECT: MissingReason.SUSPENDED,
}


class _Ended(NamedTuple):
    request: Request
    frame: Frame
    now_ns: int
    """When it ended."""
    novelty: float | None


class Answers:
    """What becomes of all frames of one node in the end."""

    def __init__(
        self,
        fusion: Fusion,
        min_devices: int,
        links: Mapping[int, Link],
        clients: ClientPort,
        turns: Turns,
        events: Events,
        guard: Guard,
        images: Images,
        clock: Clock,
    ) -> None:
        """Join the parts; ``links`` is by device index."""
        self._guard, self._images, self._clock = guard, images, clock
        self._fusion = fusion
        self._all_devices = fusion.head.all_devices
        self._min_devices = min_devices
        self._links = links
        self._clients = clients
        self._turns = turns
        self._events = events
        self._waiting: list[_Ended] = []  # for their heads
        self._served = b""
        """The connection for which the last head was computed."""
        self.witness: Witness | None = None
        """Who is told of each answer."""
        self.ended: Counter[str] = Counter()
        """Frames that have ended, by state; ``shed`` are those among ``failed`` that were not served."""
        self.asked: Counter[int] = Counter()
        """The same frames, by the number of devices that they asked."""
        self.frame_time = Histogram.empty()
        """From a request's arrival to its answer."""

    @property
    def waiting(self) -> int:
        """Frames that wait for their heads."""
        return len(self._waiting)

    def end(self, request: Request, frame: Frame, now_ns: int) -> None:
        """Answer a frame, now or when its head has come."""
        ended = _Ended(request, frame, now_ns, self._guard.look(frame))
        if self._state(frame) is not State.FAILED and not self._fusion.prepare(frame.mask):
            self._waiting.append(ended)
        else:
            self._answer(ended)

    def shed(self, request: Request, missing: dict[int, MissingReason], why: ShedReason) -> None:
        """Answer a request that is not served."""
        now_ns = self._clock.now_ns
        wait_us = (now_ns - request.arrival_ns) // 1000
        content = AnswerBody(
            b"",
            (),
            _in_words_of(request, missing),
            wait_us,
            0,
            0,
            request.policy,
            images=self._images.wanted(),
            shed=why,
        )
        answer = self._send(request, content, 0, State.FAILED)
        if self.witness is not None:
            frame = Frame(0, request.picture.mask or self._all_devices, now_ns, now_ns, set(), missing, set())
            self.witness.answered(request, frame, answer, content, 0)
        self._count(missing)
        self.ended["shed"] += 1
        self.asked[0] += 1

    def tend(self, now_ns: int) -> None:
        """Answer the frames whose heads have come; the connections that wait have one computed by turns."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for ended in sorted(waiting, key=lambda ended: ended.request.came_by == self._served):
            if self._fusion.prepare(ended.frame.mask):
                self._answer(ended)
            elif now_ns >= ended.now_ns + _HEAD_NS:
                self._answer(ended, problem="the head of a subset of devices was not computed in time: ask again")
            else:
                self._waiting.append(ended)
                if self._fusion.coming == ended.frame.mask:
                    self._served = ended.request.came_by

    def due_ns(self) -> int | None:
        """Tell when :meth:`tend` has something to do."""
        return self._clock.now_ns + _LOOK_NS if self._waiting else None

    def head_status(self) -> HeadStatus:
        """Describe the heads of subsets for people."""
        return HeadStatus(self._fusion.kept, self._fusion.kept_bytes, self._fusion.computed, len(self._waiting))

    def _answer(self, ended: _Ended, *, problem: str = "") -> None:
        request, frame, now_ns, novelty = ended
        took_ns = _took_ns(frame, now_ns, len(self._links))
        start_ns = self._clock.read_ns()
        logits = self._logits(frame, problem)
        fused_ns = self._clock.read_ns()
        spent_ns = fused_ns - start_ns
        state = self._state(frame)
        verdict = None if frame.course is None else frame.course.verdict
        content = AnswerBody(
            logits=logits,
            devices=tuple(frame.timings),
            missing=_in_words_of(request, frame.missing),
            wait_us=(frame.dispatch_ns - request.arrival_ns) // 1000,
            collect_us=(now_ns - frame.dispatch_ns) // 1000,
            fuse_us=(fused_ns - now_ns) // 1000,
            policy=request.policy,
            asked=frame.asked,
            score=None if verdict is None else verdict.score,
            threshold=None if verdict is None else verdict.threshold,
            novelty=novelty,
            images=self._images.wanted(),
        )
        answer = self._send(request, content, frame.mask, state)
        if self.witness is not None:
            spent_ns = self.witness.answered(request, frame, answer, content, spent_ns)
        self._count(frame.missing)
        for device in frame.features:
            self._links[device].answered += 1
        self.asked[frame.asked.bit_count()] += 1
        self._turns.ended(request, took_ns + spent_ns, state)

    def _send(self, request: Request, content: AnswerBody, mask: int, state: State) -> Message:
        answer = Message(
            Kind.ANSWER,
            Dtype.BODY,
            payload=body(content),
            mask=mask,
            state=state,
            run_id=request.picture.run_id,
            frame_id=request.picture.frame_id,
        )
        if self._clients.answer(request, answer):
            self.ended[state.name.lower()] += 1
        self.frame_time.add_us((self._clock.read_ns() - request.arrival_ns) // 1000)
        return answer

    def _state(self, frame: Frame) -> State:
        return frame.state(self._all_devices, self._min_devices)

    def _logits(self, frame: Frame, problem: str) -> bytes:
        """Fuse a frame, if there are features enough and no problem; without a finite answer, no feature counts."""
        if self._state(frame) is State.FAILED:
            return b""
        if not problem:
            with np.errstate(over="ignore", invalid="ignore"):
                logits = self._fused(frame)
                is_finite = math.isfinite(logits.dot(logits))  # so is every number then
            if is_finite:
                return logits.tobytes()
            problem = "an answer was not finite, though every feature was: make the bundle again with devit export"
        self._events.note("", problem, Priority.WARNING)
        frame.missing |= dict.fromkeys(frame.features, MissingReason.FUSION)
        frame.features.clear()
        frame.mask = 0
        frame.timings.clear()
        return b""

    def _fused(self, frame: Frame) -> Float32Array:
        """Fuse a frame, unless the last test of it has done so already."""
        course = frame.course
        if course is None or course.verdict is None or course.tested != frame.mask:
            return self._fusion.logits(frame.features)
        return course.verdict.logits

    def _count(self, missing: Mapping[int, MissingReason]) -> None:
        for device, why in missing.items():
            if device in self._links and why not in NEVER_ASKED:
                self._links[device].missing[why] += 1


class Shedding:
    """What one node does not serve."""

    def __init__(self, fleet: Fleet, turns: Turns, answers: Answers, events: Events, devices: int) -> None:
        """Shed requests of ``turns``, which ask some of so many devices."""
        self._queue, self._devices = fleet.serving.queue, devices
        self._turns, self._answers, self._events = turns, answers, events
        self._told_ns: dict[tuple[str, ShedReason], int] = {}

    @property
    def is_full(self) -> bool:
        """Whether more wait than the queue has room for."""
        return self._turns.waiting > self._queue or self._turns.waiting_bytes > _MAX_WAITING_BYTES

    def why_not(self, request: Request) -> ShedReason | None:
        """Tell why a new request finds no place, or that it may be added; also where it would only be taken out again.

        A client that floods a full queue costs the node half as much so.
        """
        turns = self._turns
        is_long = turns.waiting >= self._queue
        is_full = is_long or turns.waiting_bytes + len(request.picture.payload) > _MAX_WAITING_BYTES
        if is_full and turns.is_heaviest(request):
            return ShedReason.QUEUE if is_long else ShedReason.BYTES
        return ShedReason.MAX_IN_FLIGHT if turns.is_at_limit(request) else None

    def make_room(self, newest: Request) -> Request:
        """Take a request out of the full queue, answer and return it; ``newest`` is the one that has filled it."""
        is_long = self._turns.waiting > self._queue
        request = self._turns.take_heaviest()
        why = ShedReason.SHARE if request.name != newest.name else ShedReason.QUEUE if is_long else ShedReason.BYTES
        self.shed(request, why)
        return request

    def shed(
        self,
        request: Request,
        why: ShedReason,
        missing: Mapping[int, MissingReason] | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        """Answer a request that is not served; ``missing`` says why each device is not in the answer."""
        mask = request.picture.mask
        if missing is None:
            missing = {
                index: MissingReason.OVERLOAD if not mask or mask >> index & 1 else MissingReason.NOT_ASKED
                for index in range(self._devices)
            }
        self._answers.shed(request, dict(missing), why)
        self._turns.shed(request, why, is_new=is_new)
        now_ns, known = request.arrival_ns, (request.name, why)
        if now_ns >= self._told_ns.get(known, 0):
            self._told_ns[known] = now_ns + _TOLD_NS
            limit = f" ({self._turns.limit_of(request.name)})" if why is ShedReason.MAX_IN_FLIGHT else ""
            text = f"a request was not served: {SHED_TEXTS[why]}{limit}; told once a minute"
            self._events.note(request.name, text, Priority.WARNING)


def _took_ns(frame: Frame, now_ns: int, devices: int) -> int:
    """Tell what a frame took of the devices: the longest work, or all the time until it ended without an answer.

    A frame that asks some of them takes its part of all: others may be asked by another one meanwhile.
    """
    if frame.pending or not frame.timings:
        return now_ns - frame.dispatch_ns
    work_us = (timing.decode_us + timing.inference_us for timing in frame.timings)
    if frame.course is not None and frame.course.policy != "all":
        return 1000 * sum(work_us) // devices
    return 1000 * max(work_us)


def _in_words_of(request: Request, missing: dict[int, MissingReason]) -> dict[int, MissingReason]:
    """Use the words that the client knows, if it is of the first minor version."""
    if request.picture.minor >= _NEW_WORDS_MINOR:
        return missing
    return {device: _NEW_WORDS.get(why, why) for device, why in missing.items()}
