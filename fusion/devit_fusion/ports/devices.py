"""The port that devices connect to: it checks each message, then calls a handler, or counts why it does not."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import zmq

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Manifest
from devit_contract.choices import FeatureDtype
from devit_contract.errors import WireError
from devit_contract.service.journal import Priority
from devit_contract.wire.codec import AGENT_SKIPS, Copies, Dtype, Kind, Message, Reason, pack, unpack
from devit_contract.wire.messages import (
    Control,
    ControlReply,
    DeviceTiming,
    Hello,
    Refused,
    Telemetry,
    Welcome,
    body,
    read_body,
)
from devit_contract.wire.sockets import (
    DEVICES,
    Context,
    Sent,
    bind_router,
    receive_all_routed,
    send_routed,
)
from devit_contract.wire.words import MissingReason, Question
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.ports.flood import FloodGuard
from devit_fusion.ports.peers import Peer, Peers

_BURST = 32
"""Messages taken before the other port gets its turn."""
_FLOOD_BYTES = 1 << 20
"""What a connection may receive without delivering a message; one has 64 KiB at most."""
_CONNECTIONS = 2
"""Of one key: the one that serves, and one that is about to take its place, or to be refused."""
_PROBE_NS = (2_000_000, 50_000_000)
"""When links are probed after a disconnect was reported: libzmq drops the route some microseconds after the report."""
_PING_NS = 1_000_000_000
"""How often every link is pinged: an agent that hears nothing for some seconds knows that its route is gone."""
_SILENCE_NS = 10_000_000_000
"""A connection without a message for that long is shut: its loop hangs."""
_ALIVE_NS = 2_000_000_000
"""A device whose last message is no older is alive: a HELLO of another process has a duplicate name."""
_MAX_TEXTS, _MAX_TEXT_CHARS = 8, 120
_WITHDRAWN = {Reason.WITHDRAWN: MissingReason.NOT_NEEDED, Reason.OTHER_NODE: MissingReason.ABSENT}
_SKIP_REASONS = {reason: MissingReason(reason.name.lower()) for reason in AGENT_SKIPS} | _WITHDRAWN
_DTYPES: dict[FeatureDtype, tuple[Dtype, np.dtype[Any]]] = {
    "float32": (Dtype.FLOAT32, np.dtype("<f4")),
    "float16": (Dtype.FLOAT16, np.dtype("<f2")),
}
_FLOAT32 = np.dtype(np.float32)
_HELLO, _CONTROL, _TELEMETRY, _FEATURE = Kind.HELLO, Kind.CONTROL, Kind.TELEMETRY, Kind.FEATURE
"""As plain names: the enum class costs a look-up in its metaclass at each use."""


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

    def replied(self, link: Link, number: int, reply: ControlReply) -> None:
        """Take an agent's reply to the question of that number."""

    def samples_received(self, link: Link, payload: bytes | memoryview) -> None:
        """Take power samples, as they came."""

    def node_asked(self, name: str, message: Message) -> Message | None:
        """Reply to another node of the fleet; ``None`` to anyone else."""


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
        plausible_norms: Sequence[float],
        run_id: int,
        events: Events,
        clock: Clock,
        feature_dtype: FeatureDtype = "float32",
    ) -> None:
        """Bind the port; an :class:`AddressError` says that it cannot be bound.

        ``plausible_norms`` are the longest that each device's features may be, in device order.
        """
        self.socket, self.endpoint, self.monitor = bind_router(context, endpoint, DEVICES, keys)
        self.guard = FloodGuard(_FLOOD_BYTES)
        self.peers = Peers(events, served=_CONNECTIONS, refused=0, has_keys=keys is not None)
        self.bytes_in = 0
        self.bytes_out = 0
        self.unknown_peers = 0
        """Messages of peers that are not in the fleet, or under a name that is not their key's."""
        self.failed_handshakes = 0
        """Connections that ended without a message."""
        self._events, self._clock = events, clock
        self._links = links
        self._accepted: dict[str, Peer] = {}  # by device name: the connection of its link
        self._linked: dict[Peer, Link] = {}  # the same the other way round
        self._manifest = manifest
        self._run_id = run_id
        self._feature_dtype = feature_dtype
        self._dtype, self._numpy_type = _DTYPES[feature_dtype]
        self._shapes = [(submodel.output_dim,) for submodel in manifest.submodels]
        self._plausible_squares = [norm * norm for norm in plausible_norms]
        self._probes_ns: list[int] = []  # a heap
        self._next_ping_ns = 0

    def receive(self, handler: DeviceHandler) -> None:
        """Take what has come, without waiting."""
        for route, frame, surplus in receive_all_routed(self.socket, _BURST):
            self.bytes_in += len(frame)
            peer = self.peers.of(route, frame, self.guard.delivered(frame))
            if peer is None:
                continue
            link = self._linked.get(peer)
            now_ns = self._clock.tick()
            try:
                if surplus:
                    raise WireError("frames", f"expected a message of one frame, found {surplus + 1}")
                self._take(peer, link, unpack(frame.buffer), now_ns, handler)
            except WireError as err:
                self._reject(peer, link, err)
                continue
            if link is not None:
                link.last_seen_ns = now_ns

    def cut(self, link: Link) -> None:
        """End the connection of a device's link; it may connect again."""
        peer = self._accepted.pop(link.name, None)
        if peer is not None:
            del self._linked[peer]
            self.peers.cut(peer)

    def send_frame(self, link: Link, copies: Copies) -> Sent:
        """Send an image, without waiting."""
        data = copies.to(link.index)
        self.bytes_out += len(data)
        return send_routed(self.socket, link.route, data)

    def withdraw(self, link: Link, frame_id: int) -> None:
        """Say that a frame is not needed any more, to a device that understands that; without waiting."""
        if link.hello is not None and link.hello.can_withdraw:
            message = Message(Kind.WITHDRAW, device=link.index, run_id=self._run_id, frame_id=frame_id)
            send_routed(self.socket, link.route, pack(message))

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
                self.peers.accepted(value)
                continue
            self.peers.ended(value)
            if self.guard.ended(value):  # it never sent a message, so no device is gone with it
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
        gone = [link for link in self._links.values() if link.hello is not None and not self._answers(link, now_ns)]
        for link in gone:
            self.cut(link)
        return gone

    def next_probe_ns(self) -> int:
        """Tell when :meth:`lost` has something to do."""
        return min(self._probes_ns[0], self._next_ping_ns) if self._probes_ns else self._next_ping_ns

    def _answers(self, link: Link, now_ns: int) -> bool:
        if link.last_seen_ns is not None and now_ns - link.last_seen_ns > _SILENCE_NS:
            return False
        return self.ask(link, Control(Question.PING)) is not Sent.GONE

    def _is_alive(self, link: Link, now_ns: int) -> bool:
        """Tell whether the connection of a device's link is still up, and a message came a short while ago."""
        peer = self._accepted.get(link.name)
        is_recent = link.last_seen_ns is not None and now_ns - link.last_seen_ns < _ALIVE_NS
        return is_recent and peer is not None and peer.connection.is_open

    def _reject(self, peer: Peer, link: Link | None, error: WireError) -> None:
        """Count a message that was not used: with the device whose key it came by, where that is known."""
        owner = link or self._links.get(peer.name)
        if owner is None:
            self.unknown_peers += 1
        else:
            owner.rejected[error.reason] += 1

    def _take(self, peer: Peer, link: Link | None, message: Message, now_ns: int, handler: DeviceHandler) -> None:
        kind = message.kind
        if kind is _HELLO:
            self._greet(peer, message, now_ns, handler)
            return
        if link is None or link.hello is None or message.boot_id != link.boot_id:
            if kind is _CONTROL and (reply := handler.node_asked(peer.name, message)) is not None:
                send_routed(self.socket, peer.route, pack(reply))
                return
            if kind is Kind.REQUEST or kind is _CONTROL:
                self._refuse_client(peer, message)
            raise WireError("boot", "expected HELLO first")
        if kind is _CONTROL:
            handler.replied(link, message.frame_id, read_body(message, ControlReply))
            return
        if kind is _TELEMETRY:
            if read_body(message, Telemetry).device != link.name:
                raise WireError("body", f"{link.name}: expected its own samples")
            handler.samples_received(link, message.payload)
            return
        if message.run_id != self._run_id:
            raise WireError("run", f"{link.name}: expected run {self._run_id}, found {message.run_id}")
        if kind is _FEATURE:
            self._feature(link, message, now_ns, handler)
        elif kind is Kind.SKIP:
            why = _SKIP_REASONS.get(message.reason)
            if why is None or (why is MissingReason.NOT_NEEDED and not link.has_withdrawn(message.frame_id)):
                raise WireError("reason", f"{link.name}: expected the reason of a skip, found {message.reason.name}")
            handler.frame_skipped(link, message.frame_id, why)
        elif kind is Kind.LEAVE:
            link.is_leaving = True
            send_routed(self.socket, link.route, pack(Message(Kind.LEAVE, run_id=self._run_id)))
            handler.leaving(link)
        else:
            raise WireError("kind", f"{link.name}: expected a device's message, found {kind.name}")

    def _greet(self, peer: Peer, message: Message, now_ns: int, handler: DeviceHandler) -> None:
        hello = read_body(message, Hello)
        link = self._links.get(peer.name or hello.name)
        if link is None:
            text = "expected a device of fleet.toml, found another name: correct agent.toml"
            self._refuse(peer.route, Reason.NAME, text)
            raise WireError("hello", text)
        is_linked, is_restarted = link.hello is not None, message.boot_id != link.boot_id
        former = self._accepted.get(link.name)
        refusal = self._false_name(peer, link, hello) or _objection(link, hello, self._manifest, self._feature_dtype)
        if refusal is None and former is not peer and is_restarted and self._is_alive(link, now_ns):
            refusal = Reason.NAME, f"{link.name}: another agent of that name is alive: stop one, or rename it"
        if refusal is not None:
            self._events.note(link.name, f"refused: {refusal[1]}", Priority.WARNING)
            self._refuse(peer.route, *refusal, message.engine_revision)
            raise WireError("hello", refusal[1])
        if former is not peer:
            self.cut(link)
            self._accepted[link.name], self._linked[peer] = peer, link
        link.route, link.last_seen_ns = peer.route, now_ns
        is_same = is_linked and not is_restarted and former is peer
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

    def _false_name(self, peer: Peer, link: Link, hello: Hello) -> tuple[Reason, str] | None:
        """Say what is wrong with a name that is not that of the sender's key, or of its connection."""
        if hello.name == link.name and self._linked.get(peer, link) is link:
            return None
        self.unknown_peers += 1
        found = hello.name if hello.name in self._links else "another name"
        text = f"expected {link.name}, whose key this is, found {found}: correct name or secret_key in agent.toml"
        return Reason.NAME, text

    def _feature(self, link: Link, message: Message, now_ns: int, handler: DeviceHandler) -> None:
        index = link.index
        if message.dtype is not self._dtype or message.dims != self._shapes[index]:
            why = MissingReason.SHAPE
        elif message.device != index:
            why = MissingReason.DEVICE
        elif message.engine_revision != link.engine_revision:
            why = MissingReason.ENGINE
        else:
            feature = np.frombuffer(message.payload, self._numpy_type)
            if feature.dtype is not _FLOAT32:
                feature = feature.astype(_FLOAT32)
            square = float(feature.dot(feature))
            if square <= self._plausible_squares[index]:  # so each number is finite, and the answer, if this is
                handler.feature_received(link, message.frame_id, feature, _timing(link, message, now_ns))
                return
            why = MissingReason.IMPLAUSIBLE if math.isfinite(square) else MissingReason.NONFINITE
        link.rejected[why] += 1
        handler.frame_skipped(link, message.frame_id, why, is_counted=True)

    def _refuse_client(self, peer: Peer, asked: Message) -> None:
        """Tell a client without a key that it is at the wrong port; one with a key is told in the handshake."""
        text = "this is the port of devices: clients connect to client_endpoint in fleet.toml"
        refusal = Message(
            Kind.REFUSED,
            Dtype.BODY,
            payload=body(Refused(text)),
            reason=Reason.REQUEST,
            run_id=asked.run_id,
            frame_id=asked.frame_id,
        )
        send_routed(self.socket, peer.route, pack(refusal))

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
    texts = (hello.engine, hello.software, hello.model_sha256, *hello.feature_dtypes, *hello.image_codings)
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


def _timing(link: Link, message: Message, now_ns: int) -> DeviceTiming:
    """Measure by the node's own clock; what the device says of itself fits in there, or is cut."""
    flight = link.in_flight.get(message.frame_id)
    round_trip_us = (now_ns - flight.sent_ns) // 1000 if flight is not None else 0
    queue_us, decode_us, inference_us = message.queue_us, message.decode_us, message.inference_us
    network_us = round_trip_us - queue_us - decode_us - inference_us
    if network_us < 0:
        network_us = 0
        queue_us, decode_us, inference_us = (min(us, round_trip_us) for us in (queue_us, decode_us, inference_us))
    age_us = message.capture_age_us
    return DeviceTiming(link.index, network_us, queue_us, decode_us, inference_us, round_trip_us, age_us)
