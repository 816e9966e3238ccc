"""The port that clients connect to: requests and questions come in, answers and refusals go out."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import zmq

from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Manifest
from devit_contract.artefacts.picture_head import check_coded, check_picture
from devit_contract.choices import ImageCoding, Policy
from devit_contract.errors import ClientFault, InputError, WireError
from devit_contract.wire.codec import (
    MAX_IMAGE_MESSAGE_BYTES,
    Dtype,
    Kind,
    Message,
    Reason,
    RequestPolicy,
    pack,
    unpack,
)
from devit_contract.wire.messages import Control, ControlReply, Refused, body, read_body
from devit_contract.wire.sockets import CLIENTS, Context, Sent, bind_router, receive_all_routed, send_routed
from devit_fusion.clock import Clock
from devit_fusion.devices.pace import LEAST_BYTES
from devit_fusion.events import Events
from devit_fusion.ports.flood import FloodGuard
from devit_fusion.ports.peers import Peer, Peers

_BURST = 8
"""Messages taken before the other port gets its turn."""
_FLOOD_BYTES = MAX_IMAGE_MESSAGE_BYTES + (1 << 18)
"""What a connection may receive without delivering a message."""
_CONNECTIONS, _REFUSED_CONNECTIONS = 16, 4
"""Of one key: a desk's commands, a gateway, benchmarks; and those that are told that they are too many."""
_MAX_QUESTION_BYTES = 4096
"""Questions are kept until agents reply."""
_NOT_ACTIVE = "this node is not the active one of its fleet: give all nodes by --fleet, or ask the active one"
_REQUEST, _UINT8 = Kind.REQUEST, Dtype.UINT8
"""As plain names: the enum class costs a look-up in its metaclass at each use."""
_OWN_VIEWS = (
    "image: expected none, since each device of this bundle uses its own camera, found one: ask with devit classify "
    "--own 1; devit views makes folders for simulated cameras"
)
_POLICIES: dict[int, Policy] = {
    RequestPolicy.ALL: "all",
    RequestPolicy.CERTAIN: "certain",
    RequestPolicy.SINGLE: "single",
    RequestPolicy.REPLICA: "replica",
}


@dataclass(eq=False)
class Request:
    """A client's request for an answer."""

    client: bytes
    """Its routing id; a new connection has another."""
    name: str
    """The client's, by its key; empty without encryption."""
    picture: Message
    arrival_ns: int
    policy: Policy = "all"
    """Which devices are to be asked."""
    pixels: int = 0
    """Of a picture file, which devices have to decode."""
    coding: ImageCoding | None = None
    """What an image of the model's shape came as; ``None`` of a small one."""
    deadline_ns: int = 0
    """When it has to be answered; what it waits for devices after the node's start is added."""
    charged_ns: float = 0.0
    """What its frame is expected to take of the devices."""
    wait_end_ns: int = 0
    """Until when it may wait for devices without room, as it was judged last."""
    judged_ns: int = 0

    def __post_init__(self) -> None:
        """Keep the route by which it came first."""
        self.came_by = self.client

    @property
    def key(self) -> tuple[str, int, int]:
        """Who asks, in which run of the client, and its number: the same when it is sent again, and nobody else's."""
        return self.name, self.picture.run_id, self.picture.frame_id


@dataclass(frozen=True)
class ClientQuestion:
    """A client's question to the node, or to an agent through it."""

    client: bytes
    name: str
    """Of its key; empty without encryption."""
    asked: Message
    control: Control


class ClientPort:
    """One ROUTER socket for any number of clients."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        keys: KeyPair | None,
        *,
        manifest: Manifest,
        max_pixels: int,
        policy: Policy,
        events: Events,
        clock: Clock,
    ) -> None:
        """Bind the port; an :class:`AddressError` says that it cannot be bound.

        A picture file with more than ``max_pixels`` is refused: devices would have to decode it. A request without a
        policy has ``policy``.
        """
        self.socket, self.endpoint, self.monitor = bind_router(context, endpoint, CLIENTS, keys)
        self.guard = FloodGuard(_FLOOD_BYTES)
        self.peers = Peers(events, served=_CONNECTIONS, refused=_REFUSED_CONNECTIONS, has_keys=keys is not None)
        self.failed_handshakes = 0
        """Connections that ended without a message."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.active_until_ns = 1 << 62
        """Until when this node may answer requests: with several, one of them may."""
        self.refused: Counter[str] = Counter()
        """Invalid messages, by reason."""
        self._manifest, self._clock = manifest, clock
        self._policies = _POLICIES | {int(RequestPolicy.DEFAULT): policy}
        self._raw: ImageCoding | None = "raw" if math.prod(manifest.preprocess.shape) >= LEAST_BYTES else None
        self.has_own_views = manifest.views == "own"
        """Whether requests hold no image."""
        self._resize_to = manifest.preprocess.resize_to
        self._max_pixels = max(max_pixels, 4 * self._resize_to**2)  # whatever is resized costs so much

    def receive(self) -> Iterator[Request | ClientQuestion]:
        """Take what has come, without waiting; refuse invalid messages."""
        for client, frame, surplus in receive_all_routed(self.socket, _BURST):
            self.bytes_in += len(frame)
            peer = self.peers.of(client, frame, self.guard.delivered(frame))
            if peer is None:
                continue
            message = Message(Kind.REQUEST)
            try:
                if surplus:
                    raise WireError("size", f"expected a message of one frame, found {surplus + 1}")
                message = unpack(frame.buffer)
                yield self._read(peer, message)
            except WireError as err:
                self.refused[err.reason] += 1
                reason = Reason.SHAPE if err.reason == "shape" else Reason.REQUEST
                self._send(client, message, Kind.REFUSED, body(Refused(str(err))), reason=reason)

    def answer(self, request: Request, answer: Message) -> bool:
        """Send an answer, unless its client has gone; tell if not, as another node may be active by now."""
        if time.monotonic_ns() >= self.active_until_ns:
            self.refuse_as_standby(request)
            return False
        data = pack(answer)
        self.bytes_out += len(data)
        send_routed(self.socket, request.client, data)
        return True

    def refuse(self, request: Request, fault: ClientFault, text: str) -> None:
        """Refuse a request that is valid, but cannot be served."""
        self.refused[fault] += 1
        self._send(request.client, request.picture, Kind.REFUSED, body(Refused(text)), reason=Reason.REQUEST)

    def refuse_as_standby(self, request: Request) -> None:
        """Have a client send its request to another node: this one is not, or no more, active."""
        self.refused["standby"] += 1
        refused = body(Refused(_NOT_ACTIVE, is_standby=True))
        self._send(request.client, request.picture, Kind.REFUSED, refused, reason=Reason.REQUEST)

    def notify(self, asked: ClientQuestion, reply: ControlReply) -> Sent:
        """Reply once more to a question, whose client wants to know of changes."""
        return self._send(asked.client, asked.asked, Kind.CONTROL, body(reply))

    def reply(self, reply: ControlReply, *questions: ClientQuestion) -> None:
        """Send all these questions the same answer."""
        payload = body(reply)
        for question in questions:
            self._send(question.client, question.asked, Kind.CONTROL, payload)

    def relay(self, client: bytes, payload: bytes | memoryview) -> Sent:
        """Pass power samples on to a client."""
        return send_routed(self.socket, client, pack(Message(Kind.TELEMETRY, Dtype.BODY, payload=payload)))

    def watch(self, now_ns: int) -> None:
        """Read the monitor: connections to watch, and connections that sent nothing."""
        for event, value in self.monitor.read():
            if event == zmq.EVENT_ACCEPTED:
                self.guard.accepted(value, now_ns)
                self.peers.accepted(value)
            else:
                self.peers.ended(value)
                self.failed_handshakes += self.guard.ended(value)

    def _read(self, peer: Peer, message: Message) -> Request | ClientQuestion:
        if not self.peers.is_served(peer):
            text = f"{peer.name}: expected at most {_CONNECTIONS} connections with one key, found more: end some"
            raise WireError("connections", text)
        if message.kind is not _REQUEST:
            return _question(peer, message)
        dtype, shape = message.dtype, self._manifest.preprocess.shape
        if self.has_own_views and dtype is not Dtype.NONE:
            raise WireError("views", _OWN_VIEWS)
        is_image = not message.is_file and dtype is not Dtype.NONE  # NONE: the devices' own sources
        if is_image and ((dtype is not _UINT8 and dtype is not Dtype.ENCODED) or message.dims != shape):
            found = f"{dtype.name.lower()} {message.dims}"
            raise WireError("shape", f"image: expected uint8 {shape} or a picture file, found {found}")
        pixels = self._pixels(message.payload) if message.is_file else 0
        coding = self._coding(message) if is_image else None
        if message.mask >> len(self._manifest.submodels):
            last = len(self._manifest.submodels) - 1
            raise WireError("mask", f"mask: expected devices 0 to {last}, found {message.mask:#b}")
        policy = self._policies.get(message.policy)
        if policy is None:
            last = max(self._policies)
            raise WireError("policy", f"policy: expected 0 to {last}, found {message.policy}: use the node's release")
        return Request(peer.route, peer.name, message, self._clock.tick(), policy, pixels, coding)

    def _coding(self, image: Message) -> ImageCoding | None:
        """Tell what an image travels as, and refuse a coded one that costs devices more than its pixels should."""
        if image.dtype is _UINT8:
            return self._raw
        height, width, _ = image.dims
        try:
            return check_coded(memoryview(image.payload), width, height)
        except InputError as err:
            raise WireError("picture", str(err)) from err

    def _pixels(self, file: bytes | memoryview) -> int:
        """Count the pixels of a picture file, and refuse one that costs the devices too much."""
        if len(file) > self._max_pixels:
            text = f"picture: expected at most {self._max_pixels} bytes, one a pixel, found {len(file)}"
            raise WireError("picture", f"{text}: send it as JPEG, or raise max_pixels in fleet.toml")
        try:
            return check_picture(memoryview(file), self._max_pixels, self._resize_to)
        except InputError as err:
            raise WireError("picture", str(err)) from err

    def _send(self, client: bytes, asked: Message, kind: Kind, payload: bytes, *, reason: Reason = Reason.NONE) -> Sent:
        message = Message(
            kind, Dtype.BODY, payload=payload, reason=reason, run_id=asked.run_id, frame_id=asked.frame_id
        )
        return send_routed(self.socket, client, pack(message))


def _question(peer: Peer, message: Message) -> ClientQuestion:
    if message.kind is Kind.CONTROL:
        if len(message.payload) > _MAX_QUESTION_BYTES:
            raise WireError("size", f"expected a question of at most {_MAX_QUESTION_BYTES} bytes")
        return ClientQuestion(peer.route, peer.name, message, read_body(message, Control))
    if message.kind is Kind.HELLO:
        raise WireError("kind", "this is the port of clients: devices connect to endpoint in fleet.toml")
    raise WireError("kind", f"expected REQUEST or CONTROL, found {message.kind.name}")
