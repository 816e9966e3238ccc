"""A recording runs through the real scheduler and fusion head: at its own time, which is not the machine's.

Without changes every message comes to the node as it came then, in the same turn of its loop and at the same
nanosecond, so that its answers are the same bytes. With changes (another policy, a device less, another bundle) a
request comes when it came, and a device answers as long after it was asked as it did then.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.head import Fusion
from devit_contract.artefacts.manifest import Manifest
from devit_contract.errors import InputError
from devit_contract.wire.codec import Message
from devit_contract.wire.messages import AnswerBody, DeviceTiming
from devit_contract.wire.sockets import Sent
from devit_contract.wire.words import MissingReason
from devit_fusion.devices.links import Link
from devit_fusion.devices.pace import Flight
from devit_fusion.events import Events
from devit_fusion.frames.images import Images
from devit_fusion.frames.join import Frame
from devit_fusion.frames.scheduler import Scheduler
from devit_fusion.ports.clients import Request
from devit_fusion.record import records
from devit_fusion.record.changes import Changes
from devit_fusion.record.handed import change_link, hear, request_of
from devit_fusion.record.known import FeatureOrSkip, Key, Known, Ledger, Pair
from devit_fusion.record.stand_ins import Ports, SetClock, Silent
from devit_fusion.record.state import resume
from devit_fusion.record.told import told_answer

_AHEAD_NS = 3_000_000_000
"""So far the recording is read ahead: what a device said later than that after it was asked counts as never."""
_NEVER_NS, _MOST_TENDS = 1 << 63, 1000
_MOST_UNQUIET = 4
"""After so many snapshots with frames under way it begins at one."""
_STEP_NS = 50_000
"""A node's loop does not turn faster than that without a message."""


class _Event(NamedTuple):
    at_ns: int
    order: int
    """Of what was recorded at the same time."""
    serial: int
    turn: int
    what: Callable[[Any], None]
    record: Any


class Replay:
    """One node, again; :meth:`run` it once."""

    def __init__(
        self,
        manifest: Manifest,
        fusion: Callable[[], Fusion],
        calibration: Calibration | None,
        changes: Changes,
        *,
        digest: Callable[[bytes], str] | None = None,
        real_time: bool = False,
    ) -> None:
        """Serve a bundle; ``digest`` tells pictures apart for labels."""
        self._manifest, self._fusion, self._calibration = manifest, fusion, calibration
        self._changes, self._digest, self._real_time = changes, digest, real_time
        self._ledger = Ledger()
        self.counts = self._ledger.counts
        self._pairs: deque[Pair] = deque()
        self._clock = SetClock()
        self._heap: list[_Event] = []
        self._order = self._serial = 0
        self._turn: int | None = None
        self._start: records.Start | None = None
        self._is_resumed, self._unquiet = False, 0
        self._typical: dict[int, tuple[int, DeviceTiming]] = {}  # by device: how long it took, lately
        self._first_ns = self._began_s = 0.0
        self._current: tuple[Known, Frame, Request] | None = None

    def run(self, recording: Iterable[records.Record]) -> Iterable[Pair]:
        """Give each request that was answered then and is answered now."""
        begin_s = time.perf_counter()
        for record in recording:
            self._take(record)
            self._go_on(record.at_ns - _AHEAD_NS)
            while self._pairs:
                yield self._pairs.popleft()
        self._drain()
        yield from self._pairs
        self._pairs.clear()
        self.counts.took_s = time.perf_counter() - begin_s

    # What is read, ahead of time.

    def _take(self, record: records.Record) -> None:
        self._order += 1
        match record:
            case records.Start():
                self._begin(record)
            case records.Snapshot():
                self._resume(record)
            case _ if not self._is_resumed:
                self.counts.cut += isinstance(record, records.RequestCame)
            case records.RequestCame():
                self._requested(record)
            case records.FeatureCame() | records.SkipCame():
                self._said(record)
            case records.Dispatched():
                self._sent(record)
            case records.NotSent():
                if (known := self._ledger.of_frame(record.frame_id)) is not None:
                    known.failed[record.device] = Sent[record.sent.upper()]
            case records.Answered():
                self._answer_of(record)
            case records.LinkChanged():
                if record.device not in self._changes.without:
                    self._push(record.at_ns, record.turn, self._change_link, record)
            case records.Tended():
                if self._changes.is_none:
                    self._push(record.at_ns, record.turn, self._tend, record)

    def _begin(self, start: records.Start) -> None:
        if self._start != start:
            if self._start is not None:
                self._drain()
            self._start, self._is_resumed = start, False

    def _resume(self, shown: records.Snapshot) -> None:
        if shown.lost and self._is_resumed:
            self.counts.lost += shown.lost
            self._drain()
            self._is_resumed = False
        if self._is_resumed:
            self._push(shown.at_ns, shown.turn, self._seed, shown)
            return
        assert self._start is not None
        self._unquiet += 1
        if shown.under_way and self._unquiet < _MOST_UNQUIET:
            return
        self.counts.under_way += shown.under_way
        self._unquiet = 0
        self._is_resumed, self._turn = True, shown.turn
        self._clock.now_ns = shown.at_ns
        self._make(self._start.fleet)
        without = self._changes.without
        links = tuple(
            msgspec.structs.replace(link, hello=None, in_flight=()) if link.device in without else link
            for link in shown.links
        )
        if without:
            shown = msgspec.structs.replace(shown, grace_end_ns=0)
        resume(self._scheduler.parts, msgspec.structs.replace(shown, links=links))
        if not self._first_ns:
            self._first_ns, self._began_s = shown.at_ns, time.monotonic()

    def _make(self, fleet: Fleet) -> None:
        serving, ports = fleet.serving, Ports(self, has_own_views=self._manifest.views == "own")
        deadline_ns = round(serving.deadline_ms * 1e6)
        self._links = {each.name: Link(each.submodel, each.name, serving.credit, deadline_ns) for each in fleet.device}
        self._by_index = {link.index: link for link in self._links.values()}
        if len(self._by_index) < len(self._links):
            raise InputError("a recording of a cell with spares: a replay cannot tell who served: record one without")
        anything: Any = ports
        self._scheduler = Scheduler(
            self._fusion(),
            fleet,
            self._links,
            anything,
            anything,
            0,
            Events(Silent("replay")),
            calibration=self._calibration,
            accuracies={subset.mask: subset.validation_accuracy for subset in self._manifest.subsets},
            images=Images(serving.images, self._manifest.preprocess, self._links),
            clock=self._clock,
        )
        self._scheduler.tell(self)

    def _requested(self, record: records.RequestCame) -> None:
        known = self._ledger.came(record)
        if self._digest is not None:
            known.image_sha256 = record.image_sha256 or self._digest(record.image)
        self._push(record.at_ns, record.turn, self._request, record)

    def _sent(self, record: records.Dispatched) -> None:
        if self._ledger.sent(record) is None:  # its request came before the recording
            self._push(record.at_ns, record.turn, self._send_foreign, record)

    def _said(self, record: FeatureOrSkip) -> None:
        known = self._ledger.of_frame(record.frame_id)
        if record.device in self._changes.without:
            return
        if known is None:
            if self._changes.is_none:
                self._push(record.at_ns, record.turn, self._hear, (record, record.frame_id))
            return
        sent_ns = known.sent_ns.get(record.device)
        if sent_ns is not None and isinstance(record, records.FeatureCame):
            self._typical[record.device] = record.at_ns - sent_ns, record.timing
        asked = known.asked.get(record.device)
        if asked is not None:  # it is late by more than was read ahead
            self._schedule(known, self._order, record, *asked)
        else:
            known.said.setdefault(record.device, []).append((self._order, record))

    def _answer_of(self, record: records.Answered) -> None:
        key = record.client, record.run_id, record.number
        known = self._ledger.find(key)
        if known is not None:
            known.answers.append(record)
            self._pair(key, known)

    # What happens, in its order.

    def _push(self, at_ns: int, turn: int, what: Callable[[Any], None], record: object, order: int = 0) -> None:
        self._serial += 1
        heapq.heappush(self._heap, _Event(at_ns, order or self._order, self._serial, turn, what, record))

    def _go_on(self, until_ns: int) -> None:
        """Do everything up to a time."""
        while self._heap and self._heap[0].at_ns <= until_ns:
            self._step()

    def _step(self) -> None:
        event = self._heap[0]
        if self._turn is not None and event.turn != self._turn:
            self._turn = None
            self._scheduler.dispatch_waiting()
            if self._heap[0] is not event:  # something that follows from that comes first
                return
        heapq.heappop(self._heap)
        self._turn = event.turn
        if not self._changes.is_none:
            self._tend_until(event.at_ns)
        if self._real_time:
            self._wait(event.at_ns)
        self._clock.now_ns = max(self._clock.now_ns, event.at_ns)
        event.what(event.record)

    def _tend_until(self, end_ns: int) -> None:
        """Do what is due by time before something comes."""
        while (due_ns := self._scheduler.next_deadline_ns()) is not None and due_ns <= end_ns:
            if self._heap and self._heap[0].at_ns < due_ns and self._heap[0].at_ns < end_ns:
                return
            self._clock.now_ns = min(end_ns, max(due_ns, self._clock.now_ns + _STEP_NS))
            self._scheduler.expire(self._clock.now_ns)
            self._scheduler.dispatch_waiting()
            if self._clock.now_ns >= end_ns:
                return

    def _drain(self) -> None:
        """Do all that was read; what is then under way has no end in the recording."""
        if not self._is_resumed:
            return
        self._empty()
        for _ in range(_MOST_TENDS if not self._changes.is_none else 0):
            due_ns = self._scheduler.next_deadline_ns()
            if due_ns is None or not (self._scheduler.open_frames or self._scheduler.waiting_requests):
                break
            self._tend_until(max(due_ns, self._clock.now_ns) + _STEP_NS)
            self._empty()
        self._ledger.clear()
        self.counts.recorded_ns += self._clock.now_ns - int(self._first_ns)
        self._first_ns = 0.0

    def _empty(self) -> None:
        """Do all that was read, and what follows from it."""
        self._go_on(_NEVER_NS)
        self._scheduler.dispatch_waiting()
        while self._heap:
            self._go_on(_NEVER_NS)
            self._scheduler.dispatch_waiting()

    def _wait(self, at_ns: int) -> None:
        left_s = (at_ns - self._first_ns) / 1e9 - (time.monotonic() - self._began_s)
        if left_s > 0:
            time.sleep(left_s)

    def _seed(self, shown: records.Snapshot) -> None:
        self._scheduler.parts.chance.seed(shown.seed)

    def _request(self, record: records.RequestCame) -> None:
        self._scheduler.request(request_of(record, self._changes.policy))

    def _hear(self, said: tuple[FeatureOrSkip, int]) -> None:
        record, frame_id = said
        hear(self._scheduler, self._by_index[record.device], record, frame_id)

    def _change_link(self, record: records.LinkChanged) -> None:
        change_link(self._scheduler, self._by_index[record.device], record)

    def _tend(self, record: records.Tended) -> None:
        self._scheduler.expire(record.at_ns)

    def _send_foreign(self, record: records.Dispatched) -> None:
        join = self._scheduler.parts.join
        join.next_id = max(join.next_id, record.frame_id + 1)
        for device in record.devices:
            if device not in self._changes.without:
                self._by_index[device].sent(record.frame_id, Flight(record.at_ns, record.deadline_ns))

    # What the scheduler does.

    def dispatched(self, request: Request, frame: Frame, devices: Sequence[int]) -> None:
        """Know which frame is sent now."""
        self._current = self._ledger[request.key], frame, request

    def send(self, link: Link) -> Sent:
        """Send the present frame: the device will say what it said."""
        assert self._current is not None
        known, frame, request = self._current
        device, now_ns = link.index, self._clock.now_ns
        known.asked[device] = now_ns, frame.frame_id
        if device in known.failed:
            return known.failed[device]
        if device in known.sent_ns and device not in self._changes.others and not self._was_left(known, device):
            for order, record in known.said.pop(device, ()):
                self._schedule(known, order, record, now_ns, frame.frame_id)
            return Sent.YES
        return self._compute(known, device, request, frame.frame_id)

    def not_sent(self, link: Link, frame: Frame, sent: Sent) -> None:
        """See nothing new: it was not sent then either."""

    def answered(self, request: Request, frame: Frame, answer: Message, content: AnswerBody, spent_ns: int) -> int:
        """Keep an answer beside the recorded one."""
        key = request.key
        known = self._ledger[key]
        if known.answers:
            spent_ns = known.answers[0].spent_ns
        known.given.append(told_answer(self._clock.now_ns, request, frame, answer, content, spent_ns))
        self._pair(key, known)
        return spent_ns

    def _was_left(self, known: Known, device: int) -> bool:
        """Tell whether a device did without a frame as its answer was certain, which it may not be now."""
        if self._changes.is_none:
            return False
        said = known.said.get(device, ())
        return any(isinstance(each, records.SkipCame) and each.why is MissingReason.NOT_NEEDED for _, each in said)

    def _schedule(self, known: Known, order: int, record: FeatureOrSkip, asked_ns: int, frame_id: int) -> None:
        """Have a device say what it said, as long after it was asked as then."""
        at_ns = asked_ns + record.at_ns - known.sent_ns[record.device]
        turn = record.turn if at_ns == record.at_ns else -self._order
        self._push(at_ns, turn, self._hear, (record, frame_id), order)

    def _compute(self, known: Known, device: int, request: Request, frame_id: int) -> Sent:
        compute, typical = self._changes.compute, self._typical.get(device)
        has_picture = known.has_image and compute is not None
        if device in self._changes.others and not has_picture:
            raise InputError(
                f"submodel {device}: the recorded features are another graph's, and images were recorded as digests "
                "alone: record with --images whole"
            )
        feature = compute(device, request.picture) if has_picture and compute is not None else None
        if feature is None or typical is None:
            self.counts.unknown += 1
            return Sent.GONE
        said = known.said.get(device, [])
        if device in known.sent_ns and not self._was_left(known, device):
            was = next((each for _, each in said if isinstance(each, records.FeatureCame)), None)
            if was is None:  # it said nothing in time then
                return Sent.YES
            took_ns, timing = was.at_ns - known.sent_ns[device], was.timing
        else:
            took_ns, timing = typical
        at_ns = self._clock.now_ns + took_ns
        record = records.FeatureCame(
            at_ns=at_ns,
            turn=0,
            device=device,
            frame_id=frame_id,
            timing=timing,
            feature=feature.astype("<f4").tobytes(),
        )
        self._push(at_ns, -self._order, self._hear, (record, frame_id))
        return Sent.YES

    def _pair(self, key: Key, known: Known) -> None:
        if known.answers and known.given:
            self._pairs.append(Pair(key, known.answers.popleft(), known.given.popleft(), known.image_sha256))
            known.failed.clear()
            known.pairs += 1
