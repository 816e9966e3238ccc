"""The frame scheduler: requests become frames, frames go to devices, features become answers."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.fleet import Serving
from devit_contract.artefacts.head import Fusion
from devit_contract.service.journal import Priority
from devit_contract.wire.codec import Copies, Dtype, Kind, Message, State
from devit_contract.wire.messages import (
    AnswerBody,
    DeviceState,
    DeviceStatus,
    DeviceTiming,
    Histogram,
    MissingReason,
    body,
)
from devit_contract.wire.sockets import Sent
from devit_fusion.client_port import ClientPort, Request
from devit_fusion.device_port import DevicePort
from devit_fusion.events import Events
from devit_fusion.join import Frame, Join
from devit_fusion.links import FAILURES_TO_OPEN, Link

_READY = DeviceState.READY
"""As a plain name: the enum class costs a look-up in its metaclass at each use."""
_MISSING = {state: MissingReason(state.value) for state in DeviceState if state is not _READY}
"""Why a device in that state has no feature in a new frame."""


class Scheduler:
    """All frames and links of one node."""

    def __init__(
        self,
        fusion: Fusion,
        serving: Serving,
        links: Mapping[str, Link],
        devices: DevicePort,
        clients: ClientPort,
        run_id: int,
        events: Events,
    ) -> None:
        """Join the parts; ``links`` is by device name."""
        self._fusion = fusion
        self._serving = serving
        self._links = {link.index: link for link in links.values()}
        self._devices = devices
        self._clients = clients
        self._run_id = run_id
        self._events = events
        self._join = Join()
        self._waiting: deque[Request] = deque()
        self._dispatched: dict[int, Request] = {}
        self._known: dict[tuple[str, int, int], Request] = {}  # waiting or dispatched, by their keys
        self._grace_end_ns = time.monotonic_ns() + round(serving.startup_grace_ms * 1e6)
        self._is_in_grace = False
        """Whether the first request in the queue waits for a device that has not connected to this node yet."""
        self._grace_over_ns = 0
        """When that last ended: deadlines of requests that waited until then count from there."""
        self.ended: Counter[str] = Counter()
        """Frames that have ended, by state; ``shed`` are those among ``failed`` that the queue had no room for."""
        self.frame_time = Histogram.empty()
        """From a request's arrival to its answer."""

    @property
    def open_frames(self) -> int:
        """Frames that have not ended."""
        return len(self._join)

    @property
    def waiting_requests(self) -> int:
        """Requests that have not been dispatched."""
        return len(self._waiting)

    def request(self, request: Request) -> None:
        """Take a request in: dispatch it now, queue it for credit, or refuse it if the queue is full.

        A request that its client sends again after a lost link is answered once, over the new link.
        """
        known = self._known.setdefault(request.key, request)
        if known is not request:
            known.client = request.client
            return
        self._waiting.append(request)
        self.dispatch_waiting()
        if len(self._waiting) > self._serving.queue:
            now_ns = time.monotonic_ns()
            requested = request.picture.mask or self._fusion.head.all_devices
            devices = range(len(self._fusion.head.dims))
            missing = {
                index: MissingReason.OVERLOAD if requested >> index & 1 else MissingReason.NOT_ASKED
                for index in devices
            }
            self.ended["shed"] += 1
            frame = Frame(0, requested, now_ns, now_ns, set(), missing, set())
            self._count(frame)
            self._send_answer(self._waiting.pop(), frame, now_ns)

    def dispatch_waiting(self) -> None:
        """Send waiting requests in order: once every requested ready device has credit, or half their time is over.

        Right after the node's start they also wait for devices that have not connected yet. After a restart of the node
        those connect soon, and a frame sent before would fail for no good reason.
        """
        now_ns = time.monotonic_ns()
        while self._waiting:
            requested = self._waiting[0].picture.mask or self._fusion.head.all_devices
            wanted = [link for link in self._links.values() if requested >> link.index & 1]
            if now_ns < self._grace_end_ns and any(not link.links and not link.is_revoked for link in wanted):
                self._is_in_grace = True
                return
            if self._is_in_grace:
                self._is_in_grace, self._grace_over_ns = False, now_ns
            may_wait = now_ns < self._wait_end_ns(self._waiting[0])
            if may_wait and any(link.state is _READY and not link.has_credit for link in wanted):
                return
            self._dispatch(self._waiting.popleft(), requested)

    def feature_received(self, link: Link, frame_id: int, feature: Float32Array, timing: DeviceTiming) -> None:
        """Take a feature in."""
        now_ns = time.monotonic_ns()
        if frame_id in link.in_flight:  # else it comes twice or much too late, and its times mean nothing
            link.measured(timing)
        is_probe = self._returned(link, frame_id, now_ns)
        self._finish(self._join.add(frame_id, link.index, feature, timing, is_probe=is_probe), now_ns)

    def frame_skipped(self, link: Link, frame_id: int, why: MissingReason, *, is_counted: bool = False) -> None:
        """Do without a feature; ``is_counted`` if its message is among the rejected ones already."""
        now_ns = time.monotonic_ns()
        is_probe = self._returned(link, frame_id, now_ns)
        self._finish(self._join.skip(frame_id, link.index, why, is_probe=is_probe or is_counted), now_ns)

    def lose(self, link: Link, why: MissingReason) -> None:
        """Wait no longer for a device, in any frame."""
        now_ns = time.monotonic_ns()
        for frame in self._join.lose(link.index, why):
            self._finish(frame, now_ns)

    def expire(self, now_ns: int) -> None:
        """End the frames whose deadline has come; the devices that did not answer are stalled."""
        for frame in self._join.expire(now_ns):
            for device in frame.pending:
                if self._links[device].missed(now_ns):
                    text = f"suspended: {FAILURES_TO_OPEN} frames in a row without its feature in time"
                    self._events.note(self._links[device].name, text, Priority.WARNING)
            self._finish(frame, now_ns)

    def next_deadline_ns(self) -> int | None:
        """Tell when :meth:`expire` has something to do."""
        due_ns = self._join.next_deadline_ns()
        if self._waiting:
            wait_end_ns = self._wait_end_ns(self._waiting[0])
            due_ns = wait_end_ns if due_ns is None else min(due_ns, wait_end_ns)
        return due_ns

    def device_status(self) -> tuple[DeviceStatus, ...]:
        """Describe every device for people."""
        now_ns = time.monotonic_ns()
        unused = self._join.unused
        return tuple(
            link.status(now_ns, {why: unused[index, why] for why in ("late", "duplicate")})
            for index, link in sorted(self._links.items())
        )

    def _wait_end_ns(self, request: Request) -> int:
        if self._is_in_grace:
            return self._grace_end_ns
        # The other half is for the devices: a frame sent later would only make them miss its deadline.
        return self._counted_from_ns(request) + round(self._serving.deadline_ms * 0.5e6)

    def _counted_from_ns(self, request: Request) -> int:
        """Tell when the time of a request's deadline began."""
        return max(request.arrival_ns, self._grace_over_ns)

    def _returned(self, link: Link, frame_id: int, now_ns: int) -> bool:
        """Give a credit back; tell whether it was that of a probe."""
        if link.returned(frame_id, now_ns):
            self._events.note(link.name, "recovered: a feature came in time")
        if frame_id != link.probe_id:
            return False
        link.probe_id = -1
        return True

    def _dispatch(self, request: Request, requested: int) -> None:
        now_ns = time.monotonic_ns()
        deadline_ns = self._counted_from_ns(request) + round(self._serving.deadline_ms * 1e6)
        pending: set[int] = set()
        probed: list[int] = []
        missing: dict[int, MissingReason] = {}
        for index in range(len(self._fusion.head.dims)):
            link = self._links.get(index)
            if not requested >> index & 1:
                missing[index] = MissingReason.NOT_ASKED
            elif link is None:
                missing[index] = MissingReason.ABSENT
            elif link.state is not _READY:
                missing[index] = _MISSING[link.state]
                if now_ns < deadline_ns and link.take_probe(now_ns):
                    probed.append(index)
            elif now_ns >= deadline_ns or not link.has_credit:  # it waited too long, for this node or for the devices
                missing[index] = MissingReason.OVERLOAD
            else:
                pending.add(index)
        frame = self._join.open(requested, now_ns, deadline_ns, pending, missing, probed)
        self._dispatched[frame.frame_id] = request
        if pending or probed:
            self._send_frames(request.picture, frame, sorted(pending), probed)
        if not pending:
            self._finish(frame, now_ns)

    def _send_frames(self, picture: Message, frame: Frame, pending: Sequence[int], probed: Sequence[int]) -> None:
        copies = Copies(
            Message(
                Kind.TRIGGER if picture.dtype is Dtype.NONE else Kind.FRAME,
                picture.dtype,
                picture.dims,
                picture.payload,
                run_id=self._run_id,
                frame_id=frame.frame_id,
                dispatch_ns=frame.dispatch_ns,
                deadline_us=max(1, (frame.deadline_ns - frame.dispatch_ns) // 1000),
            )
        )
        for index in pending:
            self._send_frame(self._links[index], frame, copies)
        for index in probed:
            self._links[index].probe_id = frame.frame_id
            self._send_frame(self._links[index], frame, copies)

    def _send_frame(self, link: Link, frame: Frame, copies: Copies) -> None:
        sent = self._devices.send_frame(link, copies)
        if sent is Sent.YES:
            link.sent(frame.frame_id, frame.deadline_ns)
            return
        if sent is Sent.GONE:
            self._devices.suspect()
        why = MissingReason.OVERLOAD if sent is Sent.FULL else MissingReason.ABSENT
        is_probe = frame.frame_id == link.probe_id
        self._finish(self._join.skip(frame.frame_id, link.index, why, is_probe=is_probe), time.monotonic_ns())

    def _finish(self, frame: Frame | None, now_ns: int) -> None:
        """Answer a frame that has ended; ``None`` stands for one that has not."""
        if frame is None:
            return
        self._count(frame)
        self._send_answer(self._dispatched.pop(frame.frame_id), frame, now_ns)

    def _count(self, frame: Frame) -> None:
        for device in frame.missing:
            if device in self._links and frame.requested >> device & 1:
                self._links[device].missing[frame.missing[device]] += 1
        for device in frame.features:
            self._links[device].answered += 1

    def _send_answer(self, request: Request, frame: Frame, now_ns: int) -> None:
        state = frame.state(self._fusion.head.all_devices, self._serving.min_devices)
        logits = self._fusion.logits(frame.features).tobytes() if state is not State.FAILED else b""
        content = AnswerBody(
            logits=logits,
            devices=tuple(frame.timings),
            missing=frame.missing,
            wait_us=(frame.dispatch_ns - request.arrival_ns) // 1000,
            collect_us=(now_ns - frame.dispatch_ns) // 1000,
            fuse_us=(time.monotonic_ns() - now_ns) // 1000,
        )
        self.ended[state.name.lower()] += 1
        self.frame_time.add_us((time.monotonic_ns() - request.arrival_ns) // 1000)
        del self._known[request.key]
        answer = Message(
            Kind.ANSWER,
            Dtype.BODY,
            payload=body(content),
            mask=frame.mask,
            state=state,
            run_id=request.picture.run_id,
            frame_id=request.picture.frame_id,
        )
        self._clients.answer(request, answer)
