"""The port that devices connect to: what they send is checked here, and becomes events or a counted reason."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import zmq

from devit_contract.errors import WireError
from devit_contract.head import Float32Array
from devit_contract.keys import KeyPair
from devit_contract.manifest import Manifest
from devit_contract.messages import (
    Control,
    ControlReply,
    DeviceTiming,
    Hello,
    Refused,
    Welcome,
    body,
    read_body,
)
from devit_contract.sockets import Connection, Context, Monitor, device_router, user_id
from devit_contract.wire import Dtype, Kind, Message, Reason, pack, unpack
from devit_fusion.links import Link
from devit_fusion.sending import Sent, send

_BURST = 64
"""Messages taken before the other port gets its turn."""
_PROBE_NS = (2_000_000, 50_000_000)
"""When links are tried after a disconnect was reported: libzmq drops the route some microseconds after the report."""


@dataclass(frozen=True)
class Connected:
    """A device has introduced itself and is accepted; what it owed before will not come."""

    link: Link


@dataclass(frozen=True)
class Displaced:
    """Somebody else has taken a device's routing id: its own link, if it had one, is gone."""

    link: Link


@dataclass(frozen=True)
class Came:
    """A feature."""

    link: Link
    frame_id: int
    feature: Float32Array
    """Shape ``(dim,)``; a view into the message."""
    timing: DeviceTiming


@dataclass(frozen=True)
class Skipped:
    """A feature that will not come, or came unusable."""

    link: Link
    frame_id: int
    why: str


@dataclass(frozen=True)
class Replied:
    """An agent's reply to a question."""

    number: int
    reply: ControlReply


@dataclass(frozen=True)
class Sampled:
    """Power samples, as they came."""

    link: Link
    payload: bytes | memoryview


Event = Connected | Displaced | Came | Skipped | Replied | Sampled


class DevicePort:
    """One ROUTER socket and the links of all devices behind it."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        keys: KeyPair | None,
        *,
        links: Mapping[str, Link],
        manifest: Manifest,
        run_id: int,
    ) -> None:
        """Bind the port.

        Raises:
            LinkError: The address cannot be bound.
        """
        self.socket, self.endpoint = device_router(context, endpoint, keys)
        self.monitor = Monitor(self.socket, zmq.EVENT_DISCONNECTED)
        self.bytes_in = 0
        self.bytes_out = 0
        self.strangers = 0
        """Messages of peers that are not in the fleet, or not under their own key."""
        self._links = links
        self._manifest = manifest
        self._run_id = run_id
        self._has_keys = keys is not None
        self._probes_ns: list[int] = []  # a heap
        self._connections: dict[str, Connection | None] = {}

    def receive(self) -> Iterator[Event]:
        """Take what has come, without waiting."""
        for _ in range(_BURST):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            route = parts[0].bytes
            self.bytes_in += len(parts[-1])
            link = self._links.get(route.decode("ascii", "replace"))
            is_impostor = link is not None and self._has_keys and user_id(parts[-1]) != link.name
            if link is None or is_impostor or len(parts) != 2:
                self.strangers += 1
                self._refuse(route, Reason.NAME, "expected a device of fleet.toml under its own key")
                if link is not None and is_impostor and link.hello is not None:
                    own = self._connections[link.name]
                    if own is not None:
                        own.cut()  # so that the device notices, and comes back
                    yield Displaced(link)
                continue
            try:
                event = self._event(link, unpack(parts[1].buffer), time.monotonic_ns())
            except WireError as err:
                link.rejected[err.reason] += 1
                continue
            if isinstance(event, Connected):
                self._connections[link.name] = Connection.of(parts[1])
            yield event

    def send_frame(self, link: Link, message: Message, shared_crc32: int) -> Sent:
        """Send an image, without waiting."""
        data = pack(message, shared_crc32)
        self.bytes_out += len(data)
        return send(self.socket, link.name.encode(), data)

    def ask(self, link: Link, control: Control, number: int = 0) -> Sent:
        """Send a question, without waiting; the reply comes as :class:`Replied` with the same number."""
        message = Message(Kind.CONTROL, Dtype.BODY, payload=body(control), run_id=self._run_id, frame_id=number)
        return send(self.socket, link.name.encode(), pack(message))

    def suspect(self) -> None:
        """Have the next :meth:`lost` try all links."""
        heapq.heappush(self._probes_ns, 0)

    def lost(self, now_ns: int) -> list[Link]:
        """Find the links that are gone.

        A disconnect is reported without the peer's name, so every link is tried: a message to one whose route was
        dropped cannot be sent.
        """
        if self.monitor.read():
            for delay_ns in _PROBE_NS:
                heapq.heappush(self._probes_ns, now_ns + delay_ns)
        if not self._probes_ns or self._probes_ns[0] > now_ns:
            return []
        while self._probes_ns and self._probes_ns[0] <= now_ns:
            heapq.heappop(self._probes_ns)
        return [
            link
            for link in self._links.values()
            if link.hello is not None and self.ask(link, Control("ping")) is Sent.GONE
        ]

    def next_probe_ns(self) -> int | None:
        """Tell when :meth:`lost` has something to do."""
        return self._probes_ns[0] if self._probes_ns else None

    def _event(self, link: Link, message: Message, now_ns: int) -> Event:
        if message.kind is Kind.HELLO:
            return self._greet(link, message, read_body(message, Hello))
        if link.hello is None or message.boot_id != link.boot_id:
            raise WireError("boot", f"{link.name}: expected HELLO first")
        if message.kind is Kind.CONTROL:
            return Replied(message.frame_id, read_body(message, ControlReply))
        if message.kind is Kind.TELEMETRY:
            return Sampled(link, message.payload)
        if message.run_id != self._run_id:
            raise WireError("run", f"{link.name}: expected run {self._run_id}, found {message.run_id}")
        if message.kind is Kind.SKIP:
            return Skipped(link, message.frame_id, message.reason.name.lower())
        if message.kind is Kind.FEATURE:
            return self._feature(link, message, now_ns)
        raise WireError("kind", f"{link.name}: expected a device's message, found {message.kind.name}")

    def _greet(self, link: Link, message: Message, hello: Hello) -> Connected:
        refusal = _objection(link, hello, self._manifest)
        if refusal is not None:
            self._refuse(link.name.encode(), *refusal)
            raise WireError("hello", refusal[1])
        link.connect(hello, message.boot_id, message.engine_revision)
        welcome = body(Welcome(credit=link.credit, feature_dtype="float32"))
        data = pack(Message(Kind.WELCOME, Dtype.BODY, payload=welcome, run_id=self._run_id))
        send(self.socket, link.name.encode(), data)
        return Connected(link)

    def _feature(self, link: Link, message: Message, now_ns: int) -> Came | Skipped:
        expected = (self._manifest.submodels[link.index].output_dim,)
        why = ""
        if message.dtype is not Dtype.FLOAT32 or message.dims != expected:
            why = "shape"
        elif message.engine_revision != link.engine_revision:
            why = "engine"
        elif not np.isfinite(message.array()).all():
            why = "nonfinite"
        if why:
            link.rejected[why] += 1
            return Skipped(link, message.frame_id, why)
        return Came(link, message.frame_id, message.array(), _timing(link, message, now_ns))

    def _refuse(self, route: bytes, reason: Reason, text: str) -> None:
        refusal = Message(Kind.REFUSED, Dtype.BODY, payload=body(Refused(text)), reason=reason, run_id=self._run_id)
        send(self.socket, route, pack(refusal))


def _objection(link: Link, hello: Hello, manifest: Manifest) -> tuple[Reason, str] | None:
    """Say why a device cannot serve, if so."""
    if (hello.name, hello.submodel) != (link.name, link.index):
        found = f"{hello.name} with submodel {hello.submodel}"
        return Reason.NAME, f"{link.name}: expected submodel {link.index} as in fleet.toml, found {found}"
    digests = {file.sha256 for file in manifest.files if (file.role, file.device) == ("submodel", link.index)}
    dim = manifest.submodels[link.index].output_dim
    if hello.model_sha256 not in digests or hello.feature_dim != dim or "float32" not in hello.feature_dtypes:
        text = (
            f"{link.name}: expected submodel {link.index} of bundle {manifest.name} {manifest.serial} with float32 "
            f"features of {dim}, found graph {hello.model_sha256[:12]} with {hello.feature_dim}: copy the "
            "node's bundle to the device and run devit build there"
        )
        return Reason.BUNDLE, text
    return None


def _timing(link: Link, message: Message, now_ns: int) -> DeviceTiming:
    round_trip_us = (now_ns - message.dispatch_ns) // 1000
    worked_us = message.queue_us + message.decode_us + message.inference_us
    return DeviceTiming(
        device=link.index,
        network_us=max(0, round_trip_us - worked_us),
        queue_us=message.queue_us,
        decode_us=message.decode_us,
        inference_us=message.inference_us,
        arrival_us=round_trip_us,
    )
