"""The fusion node: one thread and one poll loop over both ports."""

from __future__ import annotations

import gc
import secrets
import time
from collections.abc import Callable
from importlib.metadata import version
from types import TracebackType

import zmq

from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Bundle
from devit_contract.artefacts.revoked import RevokedKeys
from devit_contract.errors import InputError, LinkError
from devit_contract.service.journal import Log, Priority, Supervisor
from devit_contract.wire.messages import Control, ControlReply, NodeStatus, Telemetry, body
from devit_contract.wire.sockets import CLIENTS, DEVICES, Gatekeeper, open_context
from devit_fusion.client_port import ClientPort, Question, Request
from devit_fusion.device_port import (
    Came,
    Changed,
    Connected,
    DevicePort,
    Displaced,
    Event,
    Leaving,
    Replied,
    Skipped,
)
from devit_fusion.events import Events
from devit_fusion.links import Link
from devit_fusion.scheduler import Cell
from devit_fusion.sending import Sent

_IDLE_POLL_MS = 200
"""Longest wait of the loop: how soon it sees that it shall stop."""
_LOOK_NS = 200_000_000
"""Between two looks at the file of revoked keys."""
_AGENT_QUESTIONS = ("describe", "mark", "sample-start", "sample-stop", "undivided")
"""What agents reply to; anything else would stay open for ever."""
_MAX_QUESTIONS = 256
"""Questions to agents that may be open at once."""


class FusionNode:
    """Serves one cell; a context manager. Build it, then call :meth:`serve`."""

    def __init__(
        self,
        bundle: Bundle,
        fleet: Fleet,
        keys: KeyPair | None,
        *,
        head: FusionHead | None = None,
        revoked: RevokedKeys | None = None,
        log: Log | None = None,
    ) -> None:
        """Bind both ports.

        Args:
            bundle: What is served.
            fleet: Who serves and who asks.
            keys: The node's own, or ``None`` without encryption.
            head: The fusion head, where it is not the bundle's.
            revoked: Keys that are let in no more; looked at again five times a second.
            log: Where events go.

        Raises:
            InputError: Fleet, bundle and keys do not fit together.
            LinkError: An address cannot be bound.
        """
        _check_fleet(bundle, fleet, keys)
        self._fleet = fleet
        self._manifest = bundle.manifest
        fusion = Fusion(head or bundle.fusion_head())
        self._start_ns = time.monotonic_ns()
        self._events = Events(log or Log("fusion-node"))
        run_id = secrets.randbits(64)
        self._links = {device.name: Link(device.submodel, device.name, fleet.serving.credit) for device in fleet.device}
        self._questions: dict[int, tuple[Link, Question]] = {}
        self._curious: list[Question] = []  # who waits for the status, to the end of the turn
        self._listeners: dict[str, bytes] = {}
        self._opened = open_context()
        context = self._opened.__enter__()
        try:
            self._gate = Gatekeeper(context, _allowed(fleet)) if keys is not None else None
            node = fleet.node
            self._devices = DevicePort(
                context,
                node.endpoint,
                keys,
                links=self._links,
                manifest=self._manifest,
                run_id=run_id,
                feature_dtype=fleet.serving.feature_dtype,
            )
            self._clients = ClientPort(context, node.client_endpoint, keys, manifest=self._manifest)
        except LinkError:
            self.close()
            raise
        self._revoked = revoked
        self._next_look_ns = 0
        self._cell = Cell(fusion, fleet.serving, self._links, self._devices, self._clients, run_id, self._events)

    def __enter__(self) -> FusionNode:
        """Use the node in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both ports."""
        self.close()

    def close(self) -> None:
        """Close both ports."""
        self._opened.__exit__(None, None, None)

    @property
    def endpoint(self) -> str:
        """Where devices connect, with the real port."""
        return self._devices.endpoint

    @property
    def client_endpoint(self) -> str:
        """Where clients connect, with the real port."""
        return self._clients.endpoint

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Run until ``should_stop``, which is asked at least five times a second."""
        poller = zmq.Poller()
        readables = (
            self._devices.socket,
            self._devices.monitor.descriptor,
            self._clients.socket,
            self._clients.monitor.descriptor,
        )
        for readable in readables:
            poller.register(readable, zmq.POLLIN)
        if self._gate is not None:
            poller.register(self._gate.descriptor, zmq.POLLIN)
        supervisor = Supervisor()
        supervisor.ready(f"serving {self._manifest.name} {self._manifest.serial}")
        gc.freeze()  # what lives from here on as long as the node is not looked at again
        while not should_stop():
            # Only what is readable is read: each read in vain costs as much as a message.
            ready = {readable for readable, _ in poller.poll(self._poll_ms())}
            supervisor.alive()
            self._look_for_revoked()
            if self._gate is not None and self._gate.descriptor in ready:
                self._gate.answer()
            if self._devices.socket in ready:
                for event in self._devices.receive():
                    self._take(event)
            if self._clients.socket in ready:
                for wish in self._clients.receive():
                    if isinstance(wish, Request):
                        self._cell.request(wish)
                    else:
                        self._ask(wish)
                self._tell_status()
            now_ns = time.monotonic_ns()
            if self._clients.monitor.descriptor in ready:
                self._clients.watch(now_ns)
            if self._devices.monitor.descriptor in ready:
                self._devices.watch(now_ns)
            for link in self._devices.lost(now_ns):
                self._lose(link)
            self._stop_floods(now_ns)
            self._cell.expire(now_ns)
            self._cell.dispatch_waiting()
        supervisor.stopping()

    def _poll_ms(self) -> int:
        due_ns = self._devices.next_probe_ns()
        for other_ns in (self._cell.next_deadline_ns(), self._devices.guard.next_ns(), self._clients.guard.next_ns()):
            if other_ns is not None and other_ns < due_ns:
                due_ns = other_ns
        return min(_IDLE_POLL_MS, max(0, -(-(due_ns - time.monotonic_ns()) // 1_000_000)))

    def _stop_floods(self, now_ns: int) -> None:
        for name, guard in (("device", self._devices.guard), ("client", self._clients.guard)):
            before = guard.cut
            guard.check(now_ns)
            if guard.cut != before:
                text = f"a {name}'s connection was shut: its message did not end"
                self._events.note("", text, Priority.WARNING)

    def _look_for_revoked(self) -> None:
        now_ns = time.monotonic_ns()
        if self._revoked is None or self._gate is None or now_ns < self._next_look_ns:
            return
        self._next_look_ns = now_ns + _LOOK_NS
        before = self._gate.revoked
        self._revoked.refresh()
        if self._revoked.problem:
            self._events.note("", self._revoked.problem, Priority.ERROR)
        if self._revoked.keys == before:
            return
        self._gate.revoked = self._revoked.keys
        for device in self._fleet.device:
            link = self._links[device.name]
            link.is_revoked = device.public_key.encode() in self._gate.revoked
            if link.is_revoked and link.hello is not None:
                self._devices.cut(link)
                self._lose(link, "its key was revoked")
        names = (client.name for client in self._fleet.client if client.public_key.encode() in self._gate.revoked)
        self._clients.revoke(frozenset(names))

    def _take(self, event: Event) -> None:
        if isinstance(event, Came):
            self._cell.came(event)
        elif isinstance(event, Skipped):
            self._cell.skipped(event)
        elif isinstance(event, Connected):
            self._abandon(event.link, "restarted" if event.is_restarted else "reconnected")
            hello = event.link.hello
            self._events.note(event.link.name, f"ready, {hello.engine if hello is not None else ''}")
        elif isinstance(event, Changed):
            self._events.note(event.link.name, f"goes on with engine {event.link.engine_revision:08x}")
        elif isinstance(event, Leaving):
            self._events.note(event.link.name, "shuts down")
        elif isinstance(event, Displaced):
            self._lose(event.link, "its name was taken by another key")
        elif isinstance(event, Replied):
            _, question = self._questions.pop(event.number, (None, None))
            if question is not None:
                self._clients.reply(event.reply, question)
        else:
            listener = self._listeners.get(event.link.name)
            sent = Sent.GONE if listener is None else self._clients.relay(listener, event.payload)
            if sent is Sent.FULL:
                text = "power samples were lost: the client that asked for them does not take them"
                self._events.note(event.link.name, text, Priority.WARNING)
            if sent is Sent.GONE:
                # Whoever asked for samples has gone, and nobody else would tell the agent to stop.
                self._listeners.pop(event.link.name, None)
                self._devices.ask(event.link, Control("sample-stop", event.link.name))

    def _lose(self, link: Link, why: str = "the link is gone") -> None:
        self._events.note(link.name, why, Priority.INFO if link.is_leaving else Priority.WARNING)
        link.disconnect()
        self._abandon(link, "absent")

    def _abandon(self, link: Link, why: str) -> None:
        """Expect nothing more of what a device owed, and tell those who wait for it."""
        self._cell.lose(link, why)
        listener = self._listeners.pop(link.name, None)
        if listener is not None:
            self._clients.relay(listener, body(Telemetry(link.name, (), ended=f"{link.name}: {why}: sampling ended")))
        for number, (asked, question) in list(self._questions.items()):
            if asked is link:
                del self._questions[number]
                self._clients.reply(ControlReply(error=f"{link.name}: {why}: see devit status"), question)

    def _ask(self, question: Question) -> None:
        """Answer a question, or pass it on to the agent it is for."""
        control = question.control
        link = self._links.get(control.device)
        if control.ask == "status":
            self._curious.append(question)
        elif control.ask not in _AGENT_QUESTIONS:
            known = ", ".join(("status", *_AGENT_QUESTIONS))
            self._clients.reply(ControlReply(error=f"question {control.ask!r}: expected one of {known}"), question)
        elif link is None:
            known = ", ".join(self._links)
            self._clients.reply(ControlReply(error=f"device {control.device!r}: expected one of {known}"), question)
        elif control.ask == "sample-stop" and self._listeners.get(link.name, question.client) != question.client:
            self._clients.reply(ControlReply(), question)  # somebody else samples now: that goes on
        elif link.hello is None:
            text = f"{link.name}: expected it to be connected, found no link: start its edge-agent"
            self._clients.reply(ControlReply(error=text), question)
        else:
            if len(self._questions) >= _MAX_QUESTIONS:
                # The oldest: its agent hangs, or it would have answered long ago.
                hung, unanswered = self._questions.pop(next(iter(self._questions)))
                self._clients.reply(
                    ControlReply(error=f"{hung.name}: it does not answer: see devit status"), unanswered
                )
            number = secrets.randbits(64)
            self._questions[number] = (link, question)
            if control.ask == "sample-start":
                self._listen(link.name, question.client)
            if self._devices.ask(link, control, number) is Sent.GONE:
                self._lose(link)

    def _tell_status(self) -> None:
        """Answer those who asked for it, all at once: it takes as long as ten frames to describe."""
        if self._curious:
            self._clients.reply(ControlReply(status=self._status()), *self._curious)
            self._curious.clear()

    def _listen(self, device: str, client: bytes) -> None:
        """Send a device's samples to a client, and tell the one that had them."""
        before = self._listeners.get(device)
        if before is not None and before != client:
            text = f"{device}: another client samples it now"
            self._clients.relay(before, body(Telemetry(device, (), ended=text)))
        self._listeners[device] = client

    def _refused_handshakes(self) -> int:
        return self._devices.failed_handshakes + self._clients.failed_handshakes

    def _status(self) -> NodeStatus:
        manifest, serving = self._manifest, self._fleet.serving
        return NodeStatus(
            bundle=f"{manifest.name} {manifest.serial}",
            labels=manifest.labels,
            image_shape=manifest.preprocess.shape,
            preprocess=manifest.preprocess,
            frames=dict(self._cell.ended),
            devices=self._cell.device_status(),
            k_min=serving.k_min,
            deadline_ms=serving.deadline_ms,
            software=version("devit"),
            uptime_s=(time.monotonic_ns() - self._start_ns) / 1e9,
            open_frames=self._cell.open_frames,
            waiting_requests=self._cell.waiting_requests,
            frame_time=self._cell.frame_time.histogram(),
            refused_handshakes=self._refused_handshakes(),
            strangers=self._devices.strangers,
            refused_requests=dict(self._clients.refused),
            floods=self._devices.guard.cut + self._clients.guard.cut,
            events=self._events.latest(),
            wire_bytes={
                "devices_in": self._devices.bytes_in,
                "devices_out": self._devices.bytes_out,
                "clients_in": self._clients.bytes_in,
                "clients_out": self._clients.bytes_out,
            },
        )


def _allowed(fleet: Fleet) -> dict[bytes, dict[bytes, str]]:
    return {
        DEVICES: {device.public_key.encode(): device.name for device in fleet.device},
        CLIENTS: {client.public_key.encode(): client.name for client in fleet.client},
    }


def _check_fleet(bundle: Bundle, fleet: Fleet, keys: KeyPair | None) -> None:
    count = len(bundle.manifest.submodels)
    for device in fleet.device:
        if not 0 <= device.submodel < count:
            raise InputError(
                f"device {device.name}: expected a submodel from 0 to {count - 1} of bundle {bundle.folder}, "
                f"found {device.submodel}"
            )
    if fleet.has_keys and keys is None:
        raise InputError("expected the node's secret key, as fleet.toml has its public_key: give it with --key")
    if keys is not None and keys.public.decode() != fleet.node.public_key:
        raise InputError("expected the secret key of the node's public_key in fleet.toml, found another one's")
