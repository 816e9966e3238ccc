"""One moment for all devices of a frame, though some are asked later: those keep the image of that moment until then.

Only devices with views of their own are triggered in stages. The first trigger of a frame goes to all that may be
asked; its mask names those that are to work on it now. A later one says how old the moment is.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from devit_contract.artefacts.head import mask_of
from devit_contract.wire.codec import Message
from devit_fusion.frames.join import Frame


def in_stages(trigger: Message, frame: Frame, asked: Sequence[int]) -> tuple[Message, Sequence[int]]:
    """Mark a trigger that asks some devices of a frame now; give those beside them that are to keep their image."""
    age_us = (trigger.dispatch_ns - frame.dispatch_ns) // 1000
    if trigger.dispatch_ns != frame.dispatch_ns:
        return msgspec.structs.replace(trigger, capture_age_us=max(1, age_us)), ()
    keeping = sorted(frame.course.unasked) if frame.course is not None else []
    return msgspec.structs.replace(trigger, mask=mask_of(list(asked))), keeping
