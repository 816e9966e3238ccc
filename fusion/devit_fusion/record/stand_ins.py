"""What stands around the scheduler in a replay: a clock that is set, and ports with nothing behind them."""

from __future__ import annotations

from typing import Protocol

from devit_contract.artefacts.head import Fusion
from devit_contract.service.journal import Log, Priority
from devit_contract.wire.codec import Copies, Message
from devit_contract.wire.sockets import Sent
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.ports.clients import Request


class Sender(Protocol):
    """Says what becomes of a frame that is sent to a device."""

    def send(self, link: Link) -> Sent:
        """Send the present frame."""


class SetClock(Clock):
    """Stands still unless the replay goes on."""

    def tick(self) -> int:
        """Stay."""
        return self.now_ns

    def read_ns(self) -> int:
        """Measure nothing."""
        return self.now_ns


class WholeFusion(Fusion):
    """Computes the head of a subset when it is needed: no frame waits for one, as time would pass meanwhile."""

    def prepare(self, mask: int) -> bool:
        """Compute it now."""
        if self._find(mask) is None:
            self._keep(mask)
        return True


class Silent(Log):
    """Says nothing: what is told again was told then."""

    def log(self, priority: Priority, text: str, **fields: str) -> None:
        """Say nothing."""


class Ports:
    """Both ports of the node: nothing is on the other side."""

    def __init__(self, sender: Sender, *, has_own_views: bool) -> None:
        """Ask a replay what becomes of frames; ``has_own_views`` is as for the node's port for clients."""
        self._sender, self.has_own_views = sender, has_own_views

    def send_frame(self, link: Link, copies: Copies) -> Sent:
        """Have the replay say what the device says."""
        return self._sender.send(link)

    def withdraw(self, link: Link, frame_id: int) -> None:
        """Say that a frame is not needed any more: the device says what it said."""

    def suspect(self) -> None:
        """Have links probed: the recording says which ones are lost."""

    def answer(self, request: Request, answer: Message) -> bool:
        """Send an answer: the witness has it."""
        return True

    def refuse(self, request: Request, fault: str, text: str) -> None:
        """Refuse a request, as it was."""
