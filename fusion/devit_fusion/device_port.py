"""The port that devices connect to: it checks each message, then calls a handler, or counts why it does not."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import zmq

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Manifest
from devit_contract.choices import FeatureDtype
from devit_contract.errors import WireError
from devit_contract.wire.codec import AGENT_SKIPS, Copies, Dtype, Kind, Message, Reason, pack, unpack
from devit_contract.wire.messages import (
    Control,
    ControlReply,
    DeviceTiming,
    Hello,
    MissingReason,
    Question,
    Refused,
    Telemetry,
    Welcome,
    body,
    read_body,
)
from devit_contract.wire.sockets import (
    DEVICES,
    Connection,
    Context,
    Sent,
    bind_router,
    receive_routed,
    send_routed,
    user_id,
)
from devit_fusion.flood import FloodGuard
from devit_fusion.links import Link

_BURST = 32
"""Messages taken before the other port gets its turn."""
_FLOOD_BYTES = 1 << 20
"""What a connection may receive without delivering a message; one has 64 KiB at most."""
_PROBE_NS = (2_000_000, 50_000_000)
"""When links are probed after a disconnect was reported: libzmq drops the route some microseconds after the report."""
_PING_NS = 1_000_000_000
"""How often every link is pinged: an agent that hears nothing for some seconds knows that its route is gone."""
_SILENCE_NS = 10_000_000_000
"""A connection without a message for that long is shut: its loop hangs, or another peer holds the route."""
_ALIVE_NS = 2_000_000_000
"""A device whose last message is no older is alive: a HELLO of another process has a duplicate name."""
_MAX_TEXTS, _MAX_TEXT_CHARS = 8, 120
_SKIP_REASONS = {reason: MissingReason(reason.name.lower()) for reason in AGENT_SKIPS}
_DTYPES: dict[FeatureDtype, Dtype] = {"float32": Dtype.FLOAT32, "float16": Dtype.FLOAT16}


class DeviceHandler(Protocol):
    """What is called for each valid message of a device."""

    def feature_received(self, link: Link, frame_id: int, feature: Float32Array, timing: DeviceTiming) -> None:
        """Take a feature, shape ``(dim,)``, a view into the message."""

    def frame_skipped(self, link: Link, frame_id: int, why: MissingReason, *, is_counted: bool = False) -> None:
        """Do without a feature that will not come, or came unusable; then ``is_counted`` among the rejected ones."""

    def connected(self, link: Link, *, is_restarted: bool) -> None:
        """Expect nothing of the former link: the device has introduced itself, and is accepted.

        ``is_restarted`` if another process did so than the last time, rather than the same one on another connection.
        """

    def engine_changed(self, link: Link) -> None:
        """Note that a linked device runs another engine now; its frames in flight are still to come."""

    def leaving(self, link: Link) -> None:
        """Note that a device shuts down; its frames in flight are still to come."""

    def route_taken(self, link: Link) -> None:
        """Note that another peer has taken a device's routing id, so that its own link is gone."""

    def replied(self, number: int, reply: ControlReply) -> None:
        """Take an agent's reply to the question of that number."""

    def samples_received(self, link: Link, payload: bytes | memoryview) -> None:
        """Take power samples, as they came."""


class DevicePort:
    """One ROUTER socket for the links of all devices."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        keys: KeyPair | None,
        *,
        links: Mapping[str, Link],
        manifest: Manifest,
        run_id: int,
        feature_dtype: FeatureDtype = "float32",
    ) -> None:
        """Bind the port; an :class:`AddressError` says that it cannot be bound."""
        self.socket, self.endpoint, self.monitor = bind_router(context, endpoint, DEVICES, keys)
        self.guard = FloodGuard(_FLOOD_BYTES)
        self.bytes_in = 0
        self.bytes_out = 0
        self.unknown_peers = 0
        """Messages of peers that are not in the fleet, or not under their own key."""
        self.failed_handshakes = 0
        """Connections that ended without a message."""
        self._links = links
        self._by_route = {link.route: link for link in links.values()}
        self._manifest = manifest
        self._run_id = run_id
        self._feature_dtype = feature_dtype
        self._dtype = _DTYPES[feature_dtype]
        self._has_keys = keys is not None
        self._probes_ns: list[int] = []  # a heap
        self._next_ping_ns = 0
        self._connections: dict[str, Connection | None] = {}  # by device name

    def receive(self, handler: DeviceHandler) -> None:
        """Take what has come, without waiting."""
        for _ in range(_BURST):
            try:
                route, frame, surplus = receive_routed(self.socket)
            except zmq.Again:
                return
            self.bytes_in += len(frame)
            self.guard.delivered(frame)
            link = self._by_route.get(route)
            is_impostor = link is not None and self._has_keys and user_id(frame) != link.name
            if link is None or is_impostor or link.is_revoked:
                self._turn_away(route, link, handler)
                continue
            now_ns = time.monotonic_ns()
            try:
                if surplus:
                    raise WireError("frames", f"{link.name}: expected a message of one frame, found {surplus + 1}")
                self._take(link, unpack(frame.buffer), frame, now_ns, handler)
            except WireError as err:
                link.rejected[err.reason] += 1
                continue
            link.last_seen_ns = now_ns

    def cut(self, link: Link) -> None:
        """End the connection that a device's last HELLO came by; it may connect again."""
        connection = self._connections.pop(link.name, None)
        if connection is not None:
            connection.cut()

    def send_frame(self, link: Link, copies: Copies) -> Sent:
        """Send an image, without waiting."""
        data = copies.to(link.index)
        self.bytes_out += len(data)
        return send_routed(self.socket, link.route, data)

    def ask(self, link: Link, control: Control, number: int = 0) -> Sent:
        """Send a question, without waiting; the reply comes under the same number."""
        message = Message(Kind.CONTROL, Dtype.BODY, payload=body(control), run_id=self._run_id, frame_id=number)
        return send_routed(self.socket, link.route, pack(message))

    def suspect(self) -> None:
        """Have the next :meth:`lost` probe all links."""
        heapq.heappush(self._probes_ns, 0)

    def watch(self, now_ns: int) -> None:
        """Read the monitor: connections to watch, connections that sent nothing, and when :meth:`lost` has to probe."""
        for event, value in self.monitor.read():
            if event == zmq.EVENT_ACCEPTED:
                self.guard.accepted(value, now_ns)
            elif self.guard.ended(value):  # it never sent a message, so no device is gone with it
                self.failed_handshakes += 1
            else:
                for delay_ns in _PROBE_NS:
                    heapq.heappush(self._probes_ns, now_ns + delay_ns)

    def lost(self, now_ns: int) -> list[Link]:
        """Find the links that are gone.

        A disconnect is reported without the peer's name, so every link is probed: a message to one whose route was
        dropped cannot be sent. Once a second all links are probed anyway.
        """
        if now_ns < self.next_probe_ns():
            return []
        while self._probes_ns and self._probes_ns[0] <= now_ns:
            heapq.heappop(self._probes_ns)
        if now_ns >= self._next_ping_ns:
            self._next_ping_ns = now_ns + _PING_NS
        return [link for link in self._links.values() if link.hello is not None and not self._answers(link, now_ns)]

    def next_probe_ns(self) -> int:
        """Tell when :meth:`lost` has something to do."""
        return min(self._probes_ns[0], self._next_ping_ns) if self._probes_ns else self._next_ping_ns

    def _answers(self, link: Link, now_ns: int) -> bool:
        if link.last_seen_ns is not None and now_ns - link.last_seen_ns > _SILENCE_NS:
            self.cut(link)
            return False
        return self.ask(link, Control(Question.PING)) is not Sent.GONE

    def _is_alive(self, link: Link, now_ns: int) -> bool:
        """Tell whether the connection of a device's HELLO is still up, and a message came a short while ago."""
        connection = self._connections.get(link.name)
        is_recent = link.last_seen_ns is not None and now_ns - link.last_seen_ns < _ALIVE_NS
        return is_recent and connection is not None and connection.is_open

    def _turn_away(self, route: bytes, link: Link | None, handler: DeviceHandler) -> None:
        """Refuse a message under a name that is not in the fleet, not the sender's, or revoked."""
        self.unknown_peers += 1
        if link is not None and link.is_revoked:
            self._refuse(route, Reason.NAME, f"{link.name}: its key is revoked")
            return
        self._refuse(route, Reason.NAME, "expected a device of fleet.toml under its own key")
        if link is not None and link.hello is not None:
            self.cut(link)  # so that the device notices, and comes back
            handler.route_taken(link)

    def _take(self, link: Link, message: Message, frame: zmq.Frame, now_ns: int, handler: DeviceHandler) -> None:
        kind = message.kind
        if kind is Kind.HELLO:
            self._greet(link, message, frame, now_ns, handler)
            return
        if link.hello is None or message.boot_id != link.boot_id:
            raise WireError("boot", f"{link.name}: expected HELLO first")
        if kind is Kind.CONTROL:
            handler.replied(message.frame_id, read_body(message, ControlReply))
            return
        if kind is Kind.TELEMETRY:
            if read_body(message, Telemetry).device != link.name:
                raise WireError("body", f"{link.name}: expected its own samples")
            handler.samples_received(link, message.payload)
            return
        if message.run_id != self._run_id:
            raise WireError("run", f"{link.name}: expected run {self._run_id}, found {message.run_id}")
        if kind is Kind.FEATURE:
            self._feature(link, message, now_ns, handler)
        elif kind is Kind.SKIP:
            why = _SKIP_REASONS.get(message.reason)
            if why is None:
                raise WireError("reason", f"{link.name}: expected the reason of a skip, found {message.reason.name}")
            handler.frame_skipped(link, message.frame_id, why)
        elif kind is Kind.LEAVE:
            link.is_leaving = True
            send_routed(self.socket, link.route, pack(Message(Kind.LEAVE, run_id=self._run_id)))
            handler.leaving(link)
        else:
            raise WireError("kind", f"{link.name}: expected a device's message, found {kind.name}")

    def _greet(self, link: Link, message: Message, frame: zmq.Frame, now_ns: int, handler: DeviceHandler) -> None:
        hello = read_body(message, Hello)
        refusal = _objection(link, hello, self._manifest, self._feature_dtype)
        connection = Connection.of(frame)
        is_linked, is_restarted = link.hello is not None, message.boot_id != link.boot_id
        if refusal is None and is_linked and is_restarted and self._is_alive(link, now_ns):
            refusal = Reason.NAME, f"{link.name}: another agent of that name is alive: stop one, or rename it"
            # The newcomer holds the route now; once cut, the other one connects again and takes it back.
            self.cut(link)
        if refusal is not None:
            self._refuse(link.route, *refusal, message.engine_revision)
            raise WireError("hello", refusal[1])
        is_same = is_linked and not is_restarted and connection == self._connections.get(link.name)
        self._connections[link.name] = connection
        if is_same:
            link.change_engine(hello, message.engine_revision)
        else:
            link.connect(hello, message.boot_id, message.engine_revision)
        welcome = body(Welcome(credit=link.credit, feature_dtype=self._feature_dtype))
        revision = message.engine_revision  # tells the agent which of its introductions this answers
        data = Message(Kind.WELCOME, Dtype.BODY, payload=welcome, engine_revision=revision, run_id=self._run_id)
        send_routed(self.socket, link.route, pack(data))
        if is_same:
            handler.engine_changed(link)
        else:
            handler.connected(link, is_restarted=is_restarted)

    def _feature(self, link: Link, message: Message, now_ns: int, handler: DeviceHandler) -> None:
        expected = (self._manifest.submodels[link.index].output_dim,)
        fits = message.dtype is self._dtype and message.dims == expected
        feature = message.array().astype(np.float32, copy=False) if fits else None
        if feature is None:
            why = MissingReason.SHAPE
        elif message.device != link.index:
            why = MissingReason.DEVICE
        elif message.engine_revision != link.engine_revision:
            why = MissingReason.ENGINE
        elif _is_finite(feature):
            handler.feature_received(link, message.frame_id, feature, _timing(link, message, now_ns))
            return
        else:
            why = MissingReason.NONFINITE
        link.rejected[why] += 1
        handler.frame_skipped(link, message.frame_id, why, is_counted=True)

    def _refuse(self, route: bytes, reason: Reason, text: str, engine_revision: int = 0) -> None:
        """Refuse the engine that was introduced, or with 0 the device whatever it runs."""
        refusal = Message(
            Kind.REFUSED,
            Dtype.BODY,
            payload=body(Refused(text)),
            engine_revision=engine_revision,
            reason=reason,
            run_id=self._run_id,
        )
        send_routed(self.socket, route, pack(refusal))


def _objection(link: Link, hello: Hello, manifest: Manifest, feature_dtype: str) -> tuple[Reason, str] | None:
    """Say why a device cannot serve, if so."""
    if (hello.name, hello.submodel) != (link.name, link.index):
        found = f"{hello.name} with submodel {hello.submodel}"
        return Reason.NAME, f"{link.name}: expected submodel {link.index} as in fleet.toml, found {found}"
    texts = (hello.engine, hello.software, *hello.feature_dtypes)
    if len(texts) > _MAX_TEXTS or not all(text.isprintable() and len(text) <= _MAX_TEXT_CHARS for text in texts):
        return Reason.REQUEST, f"{link.name}: expected short printable names of engine, software and types"
    digests = {file.sha256 for file in manifest.files if (file.role, file.device) == ("submodel", link.index)}
    dim = manifest.submodels[link.index].output_dim
    if hello.model_sha256 not in digests or hello.feature_dim != dim or feature_dtype not in hello.feature_dtypes:
        text = (
            f"{link.name}: expected submodel {link.index} of bundle {manifest.name} {manifest.serial} with "
            f"{feature_dtype} features of {dim}, found graph {hello.model_sha256[:12]} with {hello.feature_dim}: copy "
            "the node's bundle to the device and run devit build there"
        )
        return Reason.BUNDLE, text
    return None


def _is_finite(feature: Float32Array) -> bool:
    """Tell whether every number is finite, and small enough for the answer to be: so is the sum of squares then."""
    return math.isfinite(feature.dot(feature))


def _timing(link: Link, message: Message, now_ns: int) -> DeviceTiming:
    """Measure by the node's own clock; what the device says of itself fits in there, or is cut."""
    flight = link.in_flight.get(message.frame_id)
    round_trip_us = (now_ns - flight.sent_ns) // 1000 if flight is not None else 0
    told_us = message.queue_us, message.decode_us, message.inference_us
    queue_us, decode_us, inference_us = (min(part_us, round_trip_us) for part_us in told_us)
    return DeviceTiming(
        device=link.index,
        network_us=max(0, round_trip_us - sum(told_us)),
        queue_us=queue_us,
        decode_us=decode_us,
        inference_us=inference_us,
        arrival_us=round_trip_us,
        capture_age_us=message.capture_age_us,
    )
