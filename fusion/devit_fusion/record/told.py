"""An answer as a recording tells it."""

from __future__ import annotations

from devit_contract.wire.codec import Message, State
from devit_contract.wire.messages import AnswerBody
from devit_fusion.frames.join import Frame
from devit_fusion.ports.clients import Request
from devit_fusion.record.records import Answered

_NAMES = {state: state.name.lower() for state in State}


def told_answer(
    at_ns: int, request: Request, frame: Frame, answer: Message, content: AnswerBody, spent_ns: int
) -> Answered:
    """Tell of an answer, given at a time; fusing it took ``spent_ns``."""
    return Answered(
        at_ns=at_ns,
        client=request.name,
        run_id=answer.run_id,
        number=answer.frame_id,
        frame_id=frame.frame_id,
        state=_NAMES[answer.state],
        mask=answer.mask,
        asked=content.asked,
        logits=content.logits,
        missing=content.missing,
        wait_us=content.wait_us,
        collect_us=content.collect_us,
        fuse_us=content.fuse_us,
        spent_ns=spent_ns,
        score=content.score,
        threshold=content.threshold,
        novelty=content.novelty,
    )
