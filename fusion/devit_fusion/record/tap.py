"""The node's side of a recording: whoever may open its socket gets what the node sees and does, as it happens.

What is told is packed and sent together. A recorder that is too slow loses records, counted, and never holds the node
up; the snapshot behind them says how many, and a replay goes on from there.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from devit_contract.arrays import Float32Array
from devit_contract.service.journal import Priority
from devit_contract.wire.codec import Message
from devit_contract.wire.messages import AnswerBody, ControlReply, DeviceTiming
from devit_contract.wire.sockets import Sent
from devit_contract.wire.waiting import Waiter
from devit_contract.wire.words import MissingReason
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.frames.join import Frame
from devit_fusion.frames.scheduler import Scheduler
from devit_fusion.ports.clients import Request
from devit_fusion.ports.devices import DeviceHandler
from devit_fusion.record import records
from devit_fusion.record.door import Door
from devit_fusion.record.state import snapshot
from devit_fusion.record.told import told_answer

BATCH_RECORDS, BATCH_BYTES, BACKLOG_BYTES = 128, 1 << 18, 4 << 20
"""So many records are sent together, or fewer with images of so many bytes; where the recorder has not taken the last,
they are dropped."""
_SNAPSHOT_NS = 1_000_000_000
"""How often a snapshot is told; it, and the start, wait as long again for a moment in which no frame is under way."""
_PEER = struct.Struct("3i")
_LENGTH = struct.Struct("<I")
_MOST_REASON_BYTES = 500


class Handler(DeviceHandler, Protocol):
    """What follows from each message of a device, and from the end of its link."""

    def lose(self, link: Link, why: str = "the link is gone") -> None:
        """Expect nothing of a link that has ended."""


class Tap:
    """The socket of one node, and at most one recorder on it. Without one it costs nothing."""

    def __init__(
        self,
        door: Door,
        scheduler: Scheduler,
        handler: Handler,
        events: Events,
        clock: Clock,
        start: Callable[[], records.Start],
    ) -> None:
        """Let recorders in at a door; ``start`` describes the node."""
        self._door = door
        self._scheduler, self._plain, self._events, self._clock, self._start = scheduler, handler, events, clock, start
        self.handler = handler
        """Who takes the devices' messages."""
        self.request = scheduler.request
        """Takes a client's request."""
        self._waiter: Waiter | None = None
        self._recorder: socket.socket | None = None
        self._encode = msgspec.msgpack.Encoder().encode
        self._records: list[records.Record] = []
        self.note = self._records.append
        """Keeps a record for the recorder."""
        self._image_bytes = 0
        self._queue: deque[memoryview] = deque()
        self._queued_bytes = self._lost = 0
        self._snapshot_ns = 0
        self._came: tuple[socket.socket, int] | None = None  # a recorder, and until when it waits for a quiet moment
        self.turn = 0

    @property
    def is_on(self) -> bool:
        """Whether a recorder listens."""
        return self._recorder is not None

    def join(self, waiter: Waiter) -> None:
        """Have the node's loop wait for recorders too."""
        self._waiter = waiter
        if self._door.descriptor is not None:
            waiter.add(self._door.descriptor)

    def look(self, ready: Sequence[int]) -> None:
        """Let a recorder in that has come, and end with one that has gone."""
        if self._door.descriptor in ready and (came := self._door.let_in()) is not None:
            self._take(came)
        if self._came is not None and (not self._under_way() or self._clock.now_ns >= self._came[1]):
            (came, _), self._came = self._came, None
            self._begin(came)
        if self._recorder is not None and self._recorder.fileno() in ready:
            self._hear(self._recorder)

    def tended(self) -> None:
        """Note that the node is about to do what is due by time; to be called where :attr:`is_on`."""
        self.note(records.Tended(at_ns=self._clock.now_ns, turn=self.turn))

    def end_turn(self) -> None:
        """Note that a turn of the loop is over; to be called where :attr:`is_on`."""
        self.turn += 1
        now_ns = self._clock.now_ns
        late_ns = now_ns - self._snapshot_ns
        if late_ns >= 0 and not self._queue and (late_ns >= _SNAPSHOT_NS or not self._under_way()):
            self._snapshot_ns = now_ns + _SNAPSHOT_NS
            self._show(now_ns)
        elif len(self._records) >= BATCH_RECORDS or self._image_bytes >= BATCH_BYTES:
            self._flush()
        elif self._queue:
            self._send()

    def event(self, device: str, text: str, priority: Priority) -> None:
        """Record an event."""
        text = text.encode(errors="replace").decode()  # it may hold a file name that is not UTF-8
        self.note(records.EventNoted(at_ns=self._clock.now_ns, device=device, text=text, priority=int(priority)))

    def close(self) -> None:
        """End the recording."""
        if self._came is not None:
            self._came[0].close()
        if self._recorder is not None:
            self._flush()
        if self._recorder is not None:
            self._stop("")

    def _take(self, came: socket.socket) -> None:
        """Let one recorder wait for a quiet moment."""
        if self._recorder is not None or self._came is not None:
            came.close()
        else:
            self._came = came, self._clock.now_ns + _SNAPSHOT_NS

    def _under_way(self) -> int:
        """Count what a snapshot does not hold."""
        scheduler = self._scheduler
        frames = scheduler.open_frames + scheduler.waiting_requests + scheduler.answers.waiting
        links = scheduler.parts.links.values()
        return frames + sum(flight.is_withdrawn for link in links for flight in link.in_flight.values())

    def _begin(self, came: socket.socket) -> None:
        process, user, _ = _PEER.unpack(came.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        self._recorder = came
        if self._waiter is not None:
            self._waiter.add(came.fileno())
        self._empty()
        self.handler, self.request = _Told(self, self._plain, self._scheduler, self._clock), self._request
        self._scheduler.tell(_Witness(self, self._clock))
        self._events.listener = self.event
        self.note(self._start())
        now_ns = self._clock.tick()
        self._snapshot_ns = now_ns + _SNAPSHOT_NS
        self._show(now_ns)
        self._events.note("", f"recording: process {process} of user {user} is told all, images included")

    def _show(self, now_ns: int) -> None:
        """Send a snapshot behind all that was lost, and have chance begin anew where a replay can."""
        seed = secrets.randbits(32)
        self._scheduler.parts.chance.seed(seed)
        self._flush()  # drops what there is no room for, so that none of it is behind the snapshot
        lost, self._lost = self._lost, 0
        under_way = self._under_way()
        self.note(
            snapshot(self._scheduler.parts, at_ns=now_ns, turn=self.turn, seed=seed, under_way=under_way, lost=lost)
        )
        self._flush()

    def _request(self, request: Request) -> None:
        picture = request.picture
        self._image_bytes += len(picture.payload)
        self.note(
            records.RequestCame(
                at_ns=request.arrival_ns,
                turn=self.turn,
                client=request.name,
                route=request.client,
                run_id=picture.run_id,
                number=picture.frame_id,
                mask=picture.mask,
                dtype=int(picture.dtype),
                dims=picture.dims,
                policy=request.policy,
                pixels=request.pixels,
                coding=request.coding,
                minor=picture.minor,
                image=picture.payload,  # type: ignore[arg-type]  # a view is packed as bytes are
                image_bytes=len(picture.payload),
            )
        )
        self._scheduler.request(request)

    def _flush(self) -> None:
        """Pack what is there and send it; drop it where too much waits already."""
        if self._queued_bytes > BACKLOG_BYTES:
            self._lost += len(self._records)
        elif self._records:
            body = self._encode(self._records)
            self._queue += (memoryview(_LENGTH.pack(len(body))), memoryview(body))
            self._queued_bytes += _LENGTH.size + len(body)
        self._records.clear()
        self._image_bytes = 0
        self._send()

    def _send(self) -> None:
        """Send what is packed, as far as there is room, without waiting."""
        try:
            while self._queue and self._recorder is not None:
                body = self._queue[0]
                sent = self._recorder.send(body)
                self._queued_bytes -= sent
                if sent == len(body):
                    self._queue.popleft()
                else:
                    self._queue[0] = body[sent:]
        except BlockingIOError:
            return
        except OSError:
            why = "" if self._recorder is None else _last_words(self._recorder)
            self._stop(why or "its recorder has gone")

    def _empty(self) -> None:
        self._records.clear()
        self._queue.clear()
        self._queued_bytes = self._image_bytes = self._lost = 0

    def _hear(self, recorder: socket.socket) -> None:
        why = _last_words(recorder)
        if not why:  # it wants no more than what is there, and reads that
            self._flush()
        self._stop(why)

    def _stop(self, why: str) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        if self._waiter is not None:
            self._waiter.remove(recorder.fileno())
        recorder.close()
        self.handler, self.request = self._plain, self._scheduler.request
        self._scheduler.tell(None)
        self._events.listener = None
        self._empty()
        self._events.note("", f"recording stopped: {why}" if why else "recording stopped", _priority(why))


class _Told:
    """Tells of each device's message, then hands it on."""

    def __init__(self, tap: Tap, plain: Handler, scheduler: Scheduler, clock: Clock) -> None:
        self._tap, self._plain, self._clock = tap, plain, clock
        self._note, self._feature_received = tap.note, scheduler.feature_received
        self.replied: Callable[[Link, int, ControlReply], None] = plain.replied
        self.node_asked = plain.node_asked

    def feature_received(self, link: Link, frame_id: int, feature: Float32Array, timing: DeviceTiming) -> None:
        """Take a feature."""
        self._note(
            records.FeatureCame(
                at_ns=self._clock.now_ns,
                turn=self._tap.turn,
                device=link.index,
                frame_id=frame_id,
                timing=timing,
                feature=feature.data,  # type: ignore[arg-type]  # a view is packed as bytes are
            )
        )
        self._feature_received(link, frame_id, feature, timing)

    def frame_skipped(self, link: Link, frame_id: int, why: MissingReason, *, is_counted: bool = False) -> None:
        """Take a skip."""
        self._note(
            records.SkipCame(
                at_ns=self._clock.now_ns,
                turn=self._tap.turn,
                device=link.index,
                frame_id=frame_id,
                why=why,
                is_counted=is_counted,
            )
        )
        self._plain.frame_skipped(link, frame_id, why, is_counted=is_counted)

    def connected(self, link: Link, *, is_restarted: bool) -> None:
        """Take a new link."""
        self._changed(link, "restarted" if is_restarted else "connected")
        self._plain.connected(link, is_restarted=is_restarted)

    def engine_changed(self, link: Link) -> None:
        """Take another engine."""
        self._changed(link, "engine")
        self._plain.engine_changed(link)

    def leaving(self, link: Link) -> None:
        """Take a farewell."""
        self._changed(link, "leaving")
        self._plain.leaving(link)

    def lose(self, link: Link, why: str = "the link is gone") -> None:
        """Take the end of a link."""
        self._changed(link, "lost", why)
        self._plain.lose(link, why)

    def samples_received(self, link: Link, payload: bytes | memoryview) -> None:
        """Take power samples."""
        self._note(records.PowerSampled(at_ns=self._clock.now_ns, device=link.name, body=bytes(payload)))
        self._plain.samples_received(link, payload)

    def _changed(self, link: Link, change: records.Change, why: str = "") -> None:
        self._note(
            records.LinkChanged(
                at_ns=self._clock.now_ns,
                turn=self._tap.turn,
                device=link.index,
                change=change,
                hello=link.hello,
                boot_id=link.boot_id,
                engine_revision=link.engine_revision,
                why=why,
            )
        )


class _Witness:
    """Tells of frames sent, and of answers."""

    def __init__(self, tap: Tap, clock: Clock) -> None:
        self._tap, self._note, self._clock = tap, tap.note, clock

    def dispatched(self, request: Request, frame: Frame, devices: Sequence[int]) -> None:
        """Tell of a frame that is sent."""
        self._note(
            records.Dispatched(
                at_ns=self._clock.now_ns,
                turn=self._tap.turn,
                frame_id=frame.frame_id,
                client=request.name,
                run_id=request.picture.run_id,
                number=request.picture.frame_id,
                devices=tuple(devices),
                deadline_ns=frame.deadline_ns,
            )
        )

    def not_sent(self, link: Link, frame: Frame, sent: Sent) -> None:
        """Tell of a device that could not be sent it."""
        record = records.NotSent(
            at_ns=self._clock.now_ns, frame_id=frame.frame_id, device=link.index, sent=sent.name.lower()
        )
        self._note(record)

    def answered(self, request: Request, frame: Frame, answer: Message, content: AnswerBody, spent_ns: int) -> int:
        """Tell of an answer."""
        self._note(told_answer(self._clock.now_ns, request, frame, answer, content, spent_ns))
        return spent_ns


def _last_words(recorder: socket.socket) -> str:
    """Hear why a recorder ends; empty if it does not say."""
    try:
        return recorder.recv(_MOST_REASON_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _priority(why: str) -> Priority:
    return Priority.WARNING if why else Priority.INFO
