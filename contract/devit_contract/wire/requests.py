"""What one client has asked: sent or not yet, answered or not, given up in time. No socket, no clock of its own."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from devit_contract.arrays import UInt8Array
from devit_contract.choices import ImageCoding, Policy
from devit_contract.errors import DevitError, InputError
from devit_contract.wire.answer import Answer
from devit_contract.wire.codec import MAX_IMAGE_MESSAGE_BYTES, Dtype, Kind, Message, RequestPolicy, array_payload
from devit_contract.wire.messages import ControlReply

Picture = UInt8Array | bytes | None
"""An image as the graph takes it, uint8 ``(H, W, C)``; the bytes of a picture file for the agents to decode; ``None``:
every agent takes the image of its own source."""

_MAX_IMAGE_BYTES = MAX_IMAGE_MESSAGE_BYTES - 1024


def image_request(
    picture: Picture,
    *,
    mask: int,
    run_id: int,
    number: int,
    policy: Policy | None = None,
    coding: ImageCoding = "raw",
    deadline_ms: float = 0.0,
) -> Message:
    """Ask for the class of one image; ``policy`` of ``None`` is the fleet's. A coded image that grew goes raw.

    ``deadline_ms`` is how long its answer may take at the node; 0, or more than the fleet's, is the fleet's.

    Raises:
        InputError: The image is too large for any node.
        WireError: Its type cannot be sent.
    """
    dims: tuple[int, ...] = ()
    dtype, payload = Dtype.NONE, memoryview(b"")
    if isinstance(picture, bytes):
        dtype, payload = Dtype.ENCODED, memoryview(picture)
    elif picture is not None:
        dtype, dims, payload = array_payload(picture)
        if coding != "raw" and dtype is Dtype.UINT8 and len(dims) == 3:
            from devit_contract.artefacts.preprocess import encode_image  # most clients need no Pillow

            content = encode_image(picture, coding)
            if content is not None and len(content) < len(payload):
                dtype, payload = Dtype.ENCODED, memoryview(content)
    if len(payload) > _MAX_IMAGE_BYTES:
        raise InputError(f"image: expected at most {_MAX_IMAGE_BYTES} bytes, found {len(payload)}")
    wanted = RequestPolicy.DEFAULT if policy is None else RequestPolicy[policy.upper()]
    return Message(
        Kind.REQUEST,
        dtype,
        dims,
        payload,
        mask=mask,
        run_id=run_id,
        frame_id=number,
        policy=wanted,
        deadline_us=round(deadline_ms * 1000),
    )


@dataclass
class Request:
    """A request without an answer."""

    data: bytes
    is_question: bool
    """Whether it asks for a reply rather than for the class of an image."""
    sent_s: float
    """On ``time.perf_counter``, for the latency."""
    end_s: float
    """On ``time.monotonic``: when it is given up."""


class Requests:
    """The requests of one client by number; each ends once: with an answer, with an error, or forgotten."""

    def __init__(self) -> None:
        """Start with none."""
        self.open: dict[int, Request] = {}  # by rising number, so also by rising end
        self.answers: dict[int, Answer | DevitError] = {}
        self.replies: dict[int, ControlReply | DevitError] = {}
        self.unsent: deque[int] = deque()

    def add(self, number: int, request: Request) -> None:
        """Take a request in, to be sent; ``number`` is higher than any before."""
        self.open[number] = request
        self.unsent.append(number)

    def flush(self, send: Callable[[bytes], bool]) -> bool:
        """Send what waits, until ``send`` takes no more; tell whether some is left."""
        while self.unsent:
            request = self.open.get(self.unsent[0])  # None: it was given up meanwhile
            if request is not None and not send(request.data):
                return True
            self.unsent.popleft()
        return False

    def send_again(self) -> None:
        """Send every open request on a new link: whatever was on its way on the old one, either way, is lost."""
        self.unsent = deque(self.open)

    def end(self, number: int, result: Answer | ControlReply | DevitError) -> None:
        """End an open request by its answer, its reply or an error."""
        is_question = self.open.pop(number).is_question
        if is_question and not isinstance(result, Answer):
            self.replies[number] = result
        elif not is_question and not isinstance(result, ControlReply):
            self.answers[number] = result

    def expire(self, now_s: float, error: DevitError) -> None:
        """End the requests whose time is over by an error."""
        while self.open:
            number, request = next(iter(self.open.items()))
            if request.end_s > now_s:
                return
            self.end(number, error)

    def next_end_s(self) -> float:
        """Tell when :meth:`expire` has something to do."""
        return next(iter(self.open.values())).end_s if self.open else math.inf

    def take_answers(self) -> list[tuple[int, Answer | DevitError]]:
        """Hand out what has been answered, and forget it."""
        taken, self.answers = self.answers, {}
        return list(taken.items())

    def forget(self, number: int) -> None:
        """Drop a request, and its result if there is one."""
        self.open.pop(number, None)
        self.answers.pop(number, None)
        self.replies.pop(number, None)
