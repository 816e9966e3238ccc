"""Clients' questions: the node answers for its status, agents for the rest; their power samples go to subscribers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from devit_contract.service.journal import Priority
from devit_contract.wire.messages import Control, ControlReply, Telemetry, body
from devit_contract.wire.sockets import Sent
from devit_contract.wire.status import NodeStatus
from devit_contract.wire.words import MissingReason, Question
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.ports.clients import ClientPort, ClientQuestion
from devit_fusion.ports.devices import DevicePort

_MAX_OPEN = 8
"""Questions of one client that one agent may have at the same time."""
_PATIENCE_NS = 5_000_000_000
"""Within that an agent replies: half a client's usual time, so that it hears whose fault it is."""


class _Open(NamedTuple):
    link: Link
    asked: ClientQuestion
    end_ns: int
    """When it is given up."""


class Questions:
    """The open questions of all clients, and who subscribed to which device's power samples."""

    def __init__(self, links: Mapping[str, Link], devices: DevicePort, clients: ClientPort, events: Events) -> None:
        """Start with none; ``links`` is by device name."""
        self._links = links
        self._devices = devices
        self._clients = clients
        self._events = events
        self._open: dict[int, _Open] = {}
        self._status_waiters: list[ClientQuestion] = []
        self._subscribers: dict[str, bytes] = {}  # device name to the client's route

    def ask(self, asked: ClientQuestion) -> None:
        """Pass a question on to the agent it is for, or answer it; the status is answered by :meth:`send_status`."""
        question, name = asked.control.question, asked.control.device
        link = self._links.get(name)
        if question is Question.STATUS:
            self._status_waiters.append(asked)
        elif question is Question.PING:  # else a client could have the node take a hung agent for a live one
            self._refuse(asked, "question 'ping': only the node asks it: send 'status'")
        elif link is None:
            self._refuse(asked, f"device {name!r}: expected one of {', '.join(self._links)}")
        elif question is Question.SAMPLE_STOP and self._subscribers.get(name, asked.client) != asked.client:
            self._clients.reply(ControlReply(), asked)  # another client samples now, and continues
        elif link.hello is None:
            self._refuse(asked, f"{name}: it is not connected: start its edge-agent")
        else:
            self._pass_on(asked, link)

    def replied(self, number: int, reply: ControlReply) -> None:
        """Hand an agent's reply to the client that asked."""
        question = self._open.pop(number, None)
        if question is not None:
            self._clients.reply(reply, question.asked)

    def samples_received(self, link: Link, payload: bytes | memoryview) -> None:
        """Hand power samples to the subscriber; without one, have the agent stop."""
        subscriber = self._subscribers.get(link.name)
        sent = Sent.GONE if subscriber is None else self._clients.relay(subscriber, payload)
        if sent is Sent.FULL:
            text = "power samples were lost: the client that asked for them does not take them"
            self._events.note(link.name, text, Priority.WARNING)
        if sent is Sent.GONE:
            self._subscribers.pop(link.name, None)
            self._devices.ask(link, Control(Question.SAMPLE_STOP, link.name))

    def abandon(self, link: Link, why: MissingReason) -> None:
        """Expect no reply of a device any more, and tell the clients that wait for one."""
        subscriber = self._subscribers.pop(link.name, None)
        if subscriber is not None:
            self._end_samples(subscriber, link.name, f"{link.name}: {why}: sampling ended")
        for number, question in list(self._open.items()):
            if question.link is link:
                del self._open[number]
                self._refuse(question.asked, f"{link.name}: {why}: see devit status")

    def expire(self, now_ns: int) -> None:
        """End the questions that an agent has not answered in time, though its link is up."""
        while self._open and next(iter(self._open.values())).end_ns <= now_ns:
            self._give_up_oldest()

    def send_status(self, describe: Callable[[], NodeStatus]) -> None:
        """Answer all clients that wait for the status together: describing it takes as long as ten frames."""
        if self._status_waiters:
            self._clients.reply(ControlReply(status=describe()), *self._status_waiters)
            self._status_waiters.clear()

    def _pass_on(self, asked: ClientQuestion, link: Link) -> None:
        if self._count(asked, link) >= _MAX_OPEN:
            self._refuse(asked, f"{link.name}: {_MAX_OPEN} questions of this client wait there: wait for their replies")
            return
        number = secrets.randbits(64)
        self._open[number] = _Open(link, asked, time.monotonic_ns() + _PATIENCE_NS)
        if asked.control.question is Question.SAMPLE_START:
            self._subscribe(link.name, asked.client)
        if self._devices.ask(link, asked.control, number) is Sent.GONE:
            self._devices.suspect()  # found lost in this turn of the loop, which ends the question

    def _count(self, asked: ClientQuestion, link: Link) -> int:
        """Count the questions of a client that an agent has not answered yet."""
        return sum(each.link is link and each.asked.name == asked.name for each in self._open.values())

    def _give_up_oldest(self) -> None:
        question = self._open.pop(next(iter(self._open)))
        text = f"{question.link.name}: its agent is connected but does not reply: restart it, and read its journal"
        self._refuse(question.asked, text)

    def _subscribe(self, device: str, client: bytes) -> None:
        """Send a device's samples to a client, and tell the one that had them."""
        before = self._subscribers.get(device)
        if before is not None and before != client:
            self._end_samples(before, device, f"{device}: another client samples it now")
        self._subscribers[device] = client

    def _end_samples(self, client: bytes, device: str, text: str) -> None:
        self._clients.relay(client, body(Telemetry(device, (), ended=text)))

    def _refuse(self, asked: ClientQuestion, text: str) -> None:
        self._clients.reply(ControlReply(error=text), asked)
