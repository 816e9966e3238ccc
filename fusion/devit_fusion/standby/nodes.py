"""One node among several: its claim, its links to the others, and the clients that want to know which is active.

A node that is not active refuses requests, and clients send them to the one that is. Frames that a node had under way
when its leases ended get no answer from it: it looks at the clock before each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from devit_contract.artefacts.fleet import Fleet, Node
from devit_contract.artefacts.keys import KeyPair
from devit_contract.errors import RefusedError, WireError
from devit_contract.service.journal import Priority
from devit_contract.wire.client_link import ClientLink
from devit_contract.wire.codec import Dtype, Kind, Message, pack
from devit_contract.wire.lease import LONGEST_MS, LOOK_NS
from devit_contract.wire.messages import Control, ControlReply, Vote, body, read_body
from devit_contract.wire.sockets import Sent
from devit_contract.wire.status import NodeState, NodeView
from devit_contract.wire.waiting import Waiter
from devit_contract.wire.words import Question
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.ports.clients import ClientPort, ClientQuestion
from devit_fusion.ports.devices import DevicePort
from devit_fusion.standby.claim import Claim

_MAX_WATCHERS = 1024
"""Clients that are told; beyond, the one that asked first is not told any more."""
_LINGER_MS = 200
"""How long the last messages of a node that stops may take."""


class _Neighbour:
    """Another node, and the link to it."""

    def __init__(self, node: Node, keys: KeyPair | None, waiter: Waiter, events: Events) -> None:
        self.name = node.name
        key = node.public_key.encode() or None
        self.link = ClientLink(
            node.endpoint, keys, key, lambda text: events.note(node.name, text, Priority.WARNING), waiter
        )
        self.state: NodeState = "unreachable"
        self.run_id = 0
        self.since_ns = self.heard_ns = time.monotonic_ns()

    def become(self, state: NodeState, now_ns: int) -> None:
        if state != self.state:
            self.state, self.since_ns = state, now_ns


class Nodes:
    """All nodes of a fleet as one of them sees them; where there is one, it is always active."""

    def __init__(
        self,
        fleet: Fleet,
        place: int,
        keys: KeyPair | None,
        run_id: int,
        links: Mapping[str, Link],
        devices: DevicePort,
        clients: ClientPort,
        events: Events,
        *,
        take_over: Callable[[int], None],
        give_up: Callable[[], None],
        started_ns: int | None,
    ) -> None:
        """Connect to the others in the background; ``place`` is this node's own in the fleet file.

        When this node becomes active, ``take_over`` is told until when to be patient with requests; when it is not any
        more, ``give_up`` ends those that wait. The process started at ``started_ns``, or before; ``None``: just now.
        """
        self._names = [node.name for node in fleet.nodes]
        self._place = place
        others = [node for index, node in enumerate(fleet.nodes) if index != place]
        self._links, self._devices, self._clients, self._events = links, devices, clients, events
        self._take_over, self._give_up, self._patience_ns = take_over, give_up, fleet.lease_ms * 500_000
        self._waiter = Waiter()
        self._neighbours = {node.name: _Neighbour(node, keys, self._waiter, events) for node in others}
        now_ns = time.monotonic_ns()
        self._claim = Claim(
            run_id,
            [device.name for device in fleet.device],
            list(self._neighbours),
            place=place,
            lease_ns=fleet.lease_ms * 1_000_000,
            started_ns=started_ns or now_ns,
        )
        self._is_active, self._since_ns = not others, now_ns
        self._watchers: dict[tuple[str, int], ClientQuestion] = {}
        clients.active_until_ns = self._claim.holds_until_ns
        for link in links.values():
            link.is_lent = not others

    def close(self) -> None:
        """Close the links to the others."""
        for neighbour in self._neighbours.values():
            neighbour.link.close(_LINGER_MS)

    def know(self, fleet: Fleet) -> None:
        """Take in that other devices belong to the fleet now."""
        self._claim.know([device.name for device in fleet.device])

    def next_ns(self) -> int | None:
        """Tell when :meth:`tend` has something to do; ``None`` for never."""
        return self._claim.next_ns

    def descriptors(self) -> list[int]:
        """Give what becomes readable when :meth:`hear` has something to read."""
        return [each for neighbour in self._neighbours.values() for each in neighbour.link.descriptors]

    def hear(self) -> None:
        """Take what the other nodes have sent."""
        ready = self._waiter.wait(0)
        for neighbour in self._neighbours.values():
            try:
                neighbour.link.tend(ready)
                for message in neighbour.link.receive():
                    self._heard(neighbour, message)
            except (RefusedError, WireError) as err:
                self._events.note(neighbour.name, str(err), Priority.WARNING)

    def tend(self, now_ns: int) -> None:
        """Ask all others for their leases if it is time."""
        if self._claim.next_ns is None or now_ns < self._claim.next_ns:
            return
        self.hear()
        lease_ns = self._claim.round(now_ns)
        self._follow(now_ns)
        self._ask(lease_ns)
        for neighbour in self._neighbours.values():
            if not neighbour.link.is_linked or now_ns - neighbour.heard_ns > 2 * self._patience_ns:
                neighbour.become("unreachable", now_ns)

    def voted(self, link: Link, number: int, vote: Vote) -> None:
        """Take a device's reply."""
        now_ns = time.monotonic_ns()
        link.is_lent = vote.holder == self._claim.run_id
        self._claim.voted(link.name, number, vote.holder, now_ns)
        self._follow(now_ns)

    def met(self, link: Link) -> None:
        """Ask a device that has just connected for its lease."""
        if self._neighbours:
            link.is_lent = False
            self._ask_device(link, self._claim.asks_ns)

    def asked(self, name: str, message: Message) -> Message | None:
        """Reply to another node that asks for this one's lease; ``None`` if it is something else.

        Raises:
            WireError: It is no question of a node.
        """
        control = read_body(message, Control)
        if control.question is not Question.LEASE or (name or control.device) not in self._neighbours:
            return None
        if not 0 <= control.lease_ms <= LONGEST_MS:
            raise WireError("body", f"lease: expected at most {LONGEST_MS} ms, found {control.lease_ms}")
        now_ns = time.monotonic_ns()
        holder = self._claim.own.ask(message.run_id, message.frame_id, control.lease_ms * 1_000_000, now_ns)
        return _reply(self._vote(holder, now_ns), message)

    def watch(self, asked: ClientQuestion) -> None:
        """Tell a client whether this node is active, now and whenever that changes."""
        self._watchers[asked.name, asked.asked.run_id] = asked
        for surplus in list(islice(self._watchers, max(0, len(self._watchers) - _MAX_WATCHERS))):
            del self._watchers[surplus]
        now_ns = time.monotonic_ns()
        self._clients.reply(ControlReply(vote=self._vote(self._claim.own.holder(now_ns), now_ns)), asked)

    def stop(self) -> None:
        """Give all leases back, so that the next node need not wait for their end."""
        if self._neighbours:
            self._claim.give_back(time.monotonic_ns())
            self._claim.number += 1
            self._follow(time.monotonic_ns())
            self._ask(LOOK_NS)
            self._devices.socket.close(linger=_LINGER_MS)

    def views(self) -> tuple[NodeView, ...]:
        """Describe all nodes for people; none where there is one."""
        if not self._neighbours:
            return ()
        now_ns = time.monotonic_ns()
        own = NodeView(
            self._names[self._place],
            "active" if now_ns < self._claim.holds_until_ns else "standby",
            self._claim.run_id,
            (now_ns - self._since_ns) / 1e9,
            self._claim.granted(now_ns),
        )
        others = {
            name: NodeView(name, each.state, each.run_id, (now_ns - each.since_ns) / 1e9)
            for name, each in self._neighbours.items()
        }
        return tuple(others.get(name, own) for name in self._names)

    def _ask(self, lease_ns: int) -> None:
        lease_ms, number = lease_ns // 1_000_000, self._claim.number
        for link in self._links.values():
            if link.hello is not None:
                self._ask_device(link, lease_ns)
        control = body(Control(Question.LEASE, self._names[self._place], lease_ms=lease_ms))
        data = pack(Message(Kind.CONTROL, Dtype.BODY, payload=control, run_id=self._claim.run_id, frame_id=number))
        for neighbour in self._neighbours.values():
            neighbour.link.send(data)

    def _ask_device(self, link: Link, lease_ns: int) -> None:
        self._devices.ask(link, Control(Question.LEASE, link.name, lease_ms=lease_ns // 1_000_000), self._claim.number)

    def _heard(self, neighbour: _Neighbour, message: Message) -> None:
        if message.kind is not Kind.CONTROL or message.run_id != self._claim.run_id:
            raise WireError("kind", f"expected a vote of another node, found {message.kind.name}")
        vote, now_ns = read_body(message, ControlReply).vote, time.monotonic_ns()
        if vote is None:
            raise WireError("body", "expected a vote of another node, found another reply")
        neighbour.run_id, neighbour.heard_ns = vote.run_id, now_ns
        neighbour.become("active" if vote.is_active else "standby", now_ns)
        self._claim.voted(neighbour.name, message.frame_id, vote.holder, now_ns)
        self._follow(now_ns)

    def _follow(self, now_ns: int) -> None:
        """Note whether this node is active, and tell the clients if that has changed."""
        self._clients.active_until_ns = until_ns = self._claim.holds_until_ns
        if (now_ns < until_ns) is self._is_active:
            return
        self._is_active, self._since_ns = not self._is_active, now_ns
        if self._is_active:
            for neighbour in self._neighbours.values():
                if neighbour.state == "active":  # as it said last; it is not any more
                    neighbour.become("standby", now_ns)
            self._take_over(now_ns + self._patience_ns)
        else:
            self._give_up()  # refused, so that the clients ask the node that is active now
        granted = ", ".join(self._claim.granted(now_ns))
        text = (
            f"this node is active now, granted by {granted}" if self._is_active else "this node is not active any more"
        )
        self._events.note("", text, Priority.NOTICE)
        reply = ControlReply(vote=self._vote(self._claim.own.holder(now_ns), now_ns))
        for key, asked in list(self._watchers.items()):
            if self._clients.notify(asked, reply) is Sent.GONE:
                del self._watchers[key]

    def _vote(self, holder: int, now_ns: int) -> Vote:
        return Vote(holder, now_ns < self._claim.holds_until_ns, self._claim.run_id)


def place_of(nodes: Sequence[Node], keys: KeyPair | None, name: str) -> int | None:
    """Find which of a fleet's nodes has these keys, or without keys that name; ``None`` if none has."""
    for place, node in enumerate(nodes):
        if node.public_key == keys.public.decode() if keys is not None else node.name == (name or nodes[0].name):
            return place
    return None


def _reply(vote: Vote, asked: Message) -> Message:
    payload = body(ControlReply(vote=vote))
    return Message(Kind.CONTROL, Dtype.BODY, payload=payload, run_id=asked.run_id, frame_id=asked.frame_id)
