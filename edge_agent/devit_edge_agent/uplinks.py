"""The agent's links to all nodes of its fleet, and its lease: which of them it works for.

With one node there is no lease, and the agent works for it. With several, each link is kept warm (introduced, accepted,
pinged), and only the frames of the node that holds the lease are worked on, see :mod:`devit_contract.wire.lease`.
"""

from __future__ import annotations

import time

from devit_contract.artefacts.keys import KeyPair
from devit_contract.choices import FeatureDtype
from devit_contract.errors import WireError
from devit_contract.service.journal import Log
from devit_contract.wire.codec import Dtype, Kind, Message
from devit_contract.wire.lease import LONGEST_MS, LOOK_NS, Granter
from devit_contract.wire.messages import Control, ControlReply, Hello, Vote, body, read_body
from devit_contract.wire.waiting import Waiter
from devit_contract.wire.words import Question
from devit_edge_agent.config import AgentConfig
from devit_edge_agent.uplink import Uplink


class Uplinks:
    """All links of one agent, for one thread."""

    def __init__(
        self, config: AgentConfig, keys: KeyPair | None, log: Log, hello: Hello, revision: int, *, started_ns: int
    ) -> None:
        """Connect in the background; ``started_ns`` is when this process started, or later."""
        first = Uplink(config, keys, log, hello, revision)
        self.boot_id = first.boot_id
        self.all = (
            first,
            *(Uplink(config, keys, log, hello, revision, node=node, boot_id=self.boot_id) for node in config.standby),
        )
        self._has_several = len(self.all) > 1
        self._lease = Granter(started_ns)
        self.watched: list[tuple[Uplink, int]] = []
        """All links, each with the descriptor by which a waiter tells of messages."""

    def wait_with(self, waiter: Waiter) -> None:
        """Have a waiter wait for all links."""
        for uplink in self.all:
            self.watched.append((uplink, waiter.add_socket(uplink.socket)))
            waiter.add(uplink.monitor.descriptor)

    def runs(self) -> list[int]:
        """Tell the runs of all nodes that have accepted this device."""
        return [uplink.run_id for uplink in self.all if uplink.run_id is not None]

    def of_run(self, run_id: int) -> Uplink | None:
        """Find the link to a run of a node; ``None`` if it has ended."""
        return next((uplink for uplink in self.all if uplink.run_id == run_id), None)

    def works_for(self, run_id: int, now_ns: int) -> bool:
        """Tell whether a frame of a node is to be worked on."""
        return not self._has_several or self._lease.holder(now_ns) == run_id

    def decides(self, uplink: Uplink) -> bool:
        """Tell whether it is this node that takes or refuses another engine: the one worked for, or any if none is."""
        if not self._has_several:
            return True
        holder = self.of_run(self._lease.holder(time.monotonic_ns()))
        return holder is None or holder is uplink

    @property
    def is_introducing(self) -> bool:
        """Whether the node worked for has not answered an introduction: it must know the engine before a feature."""
        return any(uplink.is_introducing and self.decides(uplink) for uplink in self.all)

    def vote(self, asked: Message) -> bool:
        """Answer a node that asks for the lease; tell whether it did."""
        try:
            control = read_body(asked, Control)
        except WireError:  # a question of a newer node
            return False
        if control.question is not Question.LEASE:
            return False
        now_ns = time.monotonic_ns()
        lease_ns = max(LOOK_NS, min(control.lease_ms, LONGEST_MS) * 1_000_000)
        vote = Vote(self._lease.ask(asked.run_id, asked.frame_id, lease_ns, now_ns))
        reply = body(ControlReply(vote=vote))
        run_id, number = asked.run_id, asked.frame_id
        self.send(
            Message(Kind.CONTROL, Dtype.BODY, payload=reply, run_id=run_id, frame_id=number, boot_id=self.boot_id)
        )
        return True

    def feature_dtype(self, run_id: int) -> FeatureDtype:
        """Tell what the node of a run wants features as."""
        uplink = self.of_run(run_id)
        return "float32" if uplink is None else uplink.feature_dtype

    def introduce(self, hello: Hello, revision: int) -> None:
        """Introduce another engine to all nodes."""
        for uplink in self.all:
            uplink.introduce(hello, revision)

    def send(self, message: Message) -> None:
        """Send to the node of the message's run, without waiting, as :meth:`Uplink.send` does."""
        uplink = self.of_run(message.run_id)
        if uplink is not None:
            uplink.send(message)

    def close(self) -> None:
        """Close all links; the last messages still go out."""
        for uplink in self.all:
            uplink.close()
