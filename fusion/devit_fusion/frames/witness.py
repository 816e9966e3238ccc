"""Who is told what becomes of frames: a recording, or its replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from devit_contract.wire.codec import Message
from devit_contract.wire.messages import AnswerBody
from devit_contract.wire.sockets import Sent
from devit_fusion.devices.links import Link
from devit_fusion.frames.join import Frame
from devit_fusion.ports.clients import Request


class Witness(Protocol):
    """Is told as it happens, in the same thread."""

    def dispatched(self, request: Request, frame: Frame, devices: Sequence[int]) -> None:
        """See a frame that is about to be sent to these devices; again for each later stage."""

    def not_sent(self, link: Link, frame: Frame, sent: Sent) -> None:
        """See that one of them could not be sent it."""

    def answered(self, request: Request, frame: Frame, answer: Message, content: AnswerBody, spent_ns: int) -> int:
        """See an answer, and give the time that fusing it is to count for: a replay gives what was recorded."""
