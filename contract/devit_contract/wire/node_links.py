"""A client's links to all nodes of a fleet: one is asked, the others are kept warm for when they take over.

Each node says whether it is active when a link to it is made, and whenever that changes. A node that is not active
refuses requests; those are kept, and sent again to the one that says last that it is. While none does, all are asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from devit_contract.artefacts.keys import KeyPair
from devit_contract.errors import RefusedError, WireError
from devit_contract.wire.client_link import ClientLink
from devit_contract.wire.codec import Dtype, Kind, Message, pack
from devit_contract.wire.messages import Control, ControlReply, Refused, body, read_body
from devit_contract.wire.waiting import Waiter
from devit_contract.wire.words import Question

LOOK_NUMBER = 0
"""Of the question whether a node is active; requests have higher numbers."""
_LOOK_S = 0.1
"""How often all nodes are asked while none is known to be active."""


class NodeAddress(NamedTuple):
    """Where clients reach a node."""

    endpoint: str
    key: bytes | None
    """Its public key; ``None`` without encryption."""


class NodeLinks:
    """The links of one client, for one thread."""

    def __init__(
        self, nodes: Sequence[NodeAddress], keys: KeyPair | None, run_id: int, tell: Callable[[str], None]
    ) -> None:
        """Connect to all nodes in the background; ``run_id`` is the client's."""
        self.changes = 0
        """How often requests have to be sent again: another node is asked, or the same one over a new link."""
        self._waiter = Waiter()
        self._links = [ClientLink(node.endpoint, keys, node.key, tell, self._waiter) for node in nodes]
        self._made = [0] * len(nodes)  # links of each that were seen here
        self._current = 0
        self._active: int | None = None if len(nodes) > 1 else 0
        self._has_refused = False
        self._next_look_s = math.inf
        look = Control(Question.LEASE)
        self._look = pack(Message(Kind.CONTROL, Dtype.BODY, payload=body(look), run_id=run_id, frame_id=LOOK_NUMBER))
        self._run_id = run_id

    @property
    def is_refused(self) -> bool:
        """Whether all nodes refuse this client, so that none will answer."""
        return all(link.is_refused for link in self._links)

    @property
    def problem(self) -> str:
        """Why no node answers, in a few words; empty if one can be reached, as far as is known."""
        return self._links[self._current].problem or (
            "none of the nodes is active" if len(self._links) > 1 and self._active is None else ""
        )

    def close(self) -> None:
        """Close all links without waiting for unsent messages; a second call does nothing."""
        for link in self._links:
            link.close()

    def wait(self, timeout_s: float, wake: int | None) -> bool:
        """Wait for anything to happen; tell whether the descriptor ``wake`` became readable.

        Raises:
            RefusedError: All nodes refuse this client.
        """
        if wake is not None:
            self._waiter.add(wake)
        try:
            next_s = min(self._next_look_s, *(link.next_s for link in self._links))
            ready = self._waiter.wait(max(0.0, min(timeout_s, next_s - time.monotonic()) * 1000))
        finally:
            if wake is not None:
                self._waiter.remove(wake)
        for link in self._links:
            try:
                link.tend(ready)
            except RefusedError:
                if self.is_refused:
                    raise
        self._follow()
        return wake in ready

    def send(self, data: bytes) -> bool:
        """Send a message to the node that is asked, unless there is no link or it is full."""
        return self._links[self._current].send(data)

    def wait_for_room(self, wanted: bool) -> None:
        """Have :meth:`wait` end as soon as something can be sent, or not."""
        self._waiter.room_for = self._links[self._current].socket if wanted else None

    def receive(self) -> Iterator[Message]:
        """Take what :meth:`wait` has found, but for what nodes say of their being active.

        Raises:
            WireError: The bytes are no message.
        """
        if len(self._links) == 1:
            yield from self._links[0].receive()
            return
        for index, link in enumerate(self._links):
            for message in link.receive():
                if not self._takes(index, message):
                    yield message

    def _follow(self) -> None:
        """Note links that were made or lost, and choose whom to ask."""
        links = self._links
        for index, link in enumerate(links):
            if link.links != self._made[index]:
                self._made[index] = link.links
                if len(links) > 1:
                    link.send(self._look)
                if index == self._current:
                    self.changes += 1
        if len(links) == 1:
            return
        if self._active is not None and not links[self._active].is_linked:
            self._active = None
        if self._active is None:
            if not links[self._current].is_linked:
                linked = next((index for index, link in enumerate(links) if link.is_linked), self._current)
                self._ask(linked)
            self._look_around()

    def _look_around(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            for link in self._links:
                if link.is_linked:
                    link.send(self._look)
        if now_s >= self._next_look_s or self._next_look_s == math.inf:
            self._next_look_s = now_s + _LOOK_S

    def _takes(self, index: int, message: Message) -> bool:
        """Take what a node says of its being active; tell whether the message was about that."""
        if message.run_id != self._run_id:
            return False
        if message.kind is Kind.REFUSED:
            if not read_body(message, Refused).is_standby:
                return message.frame_id == LOOK_NUMBER
            self._is_active(index, False)
            return True
        if message.kind is not Kind.CONTROL or message.frame_id != LOOK_NUMBER:
            return False
        vote = read_body(message, ControlReply).vote
        if vote is None:
            raise WireError("body", "expected a vote, found another reply")
        self._is_active(index, vote.is_active)
        return True

    def _is_active(self, index: int, is_active: bool) -> None:
        if not is_active:
            self._has_refused |= index == self._current
            if self._active == index:
                self._active = None
            return
        self._active, self._next_look_s = index, math.inf
        if self._has_refused or index != self._current:
            self._has_refused = False
            self._current = index
            self.changes += 1

    def _ask(self, index: int) -> None:
        if index != self._current:
            self._current = index
            self.changes += 1
