"""The messages by which a frame reaches its devices.

Devices with views of their own keep one moment for a frame, though some are asked later. Its first trigger goes to all
that may be asked; the mask names those that are to work on it now, and the others keep their image of that moment. A
later trigger says how old the moment is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from devit_contract.artefacts.head import mask_of
from devit_contract.wire.codec import Copies, Dtype, Kind, Message
from devit_contract.wire.sockets import Sent
from devit_fusion.devices.links import Link
from devit_fusion.devices.pace import File, Flight
from devit_fusion.frames.images import Images
from devit_fusion.frames.join import Frame
from devit_fusion.ports.clients import Request
from devit_fusion.ports.devices import DevicePort

_YES, _TRIGGER = Sent.YES, Kind.TRIGGER
"""As plain names: the enum class costs a look-up in its metaclass at each use."""


class Sending:
    """Sends the frames of one node's run."""

    def __init__(
        self, links: Mapping[int, Link], devices: DevicePort, images: Images, run_id: int, deadline_ns: int
    ) -> None:
        """Join the parts; ``links`` is by device index, ``deadline_ns`` what a request has by default."""
        self._links, self._devices, self._images = links, devices, images
        self._run_id, self._deadline_ns = run_id, deadline_ns

    def send(self, request: Request, frame: Frame, asked: Sequence[int], flight: Flight) -> Iterator[tuple[Link, Sent]]:
        """Send a frame to devices by index; yield each that it could not be sent to, and why."""
        picture = request.picture
        if picture.dtype is Dtype.ENCODED and request.coding is not None:
            picture = self._images.readable(picture, request.coding, [self._links[index] for index in asked])
        message = Message(
            Kind.TRIGGER if picture.dtype is Dtype.NONE else Kind.FRAME,
            picture.dtype,
            picture.dims,
            picture.payload,
            run_id=self._run_id,
            frame_id=frame.frame_id,
            dispatch_ns=flight.sent_ns,
            deadline_us=max(1, (flight.deadline_ns - flight.sent_ns) // 1000),
        )
        keeping: Sequence[int] = ()
        if message.kind is _TRIGGER and request.policy == "certain":
            message, keeping = in_stages(message, frame, asked)
        copies = Copies(message)
        for index in keeping:
            self._devices.send_frame(self._links[index], copies)
        if flight.deadline_ns < request.arrival_ns + self._deadline_ns:  # a client's hurry says nothing of a device
            flight = flight._replace(deadline_ns=request.arrival_ns + self._deadline_ns)
        if request.coding is not None:
            flight = flight._replace(coding=request.coding)
        elif picture.is_file:
            flight = flight._replace(file=File(request.name, request.pixels))
        for index in asked:
            link = self._links[index]
            sent = self._devices.send_frame(link, copies)
            if sent is _YES:
                link.sent(frame.frame_id, flight)
            else:
                yield link, sent


def in_stages(trigger: Message, frame: Frame, asked: Sequence[int]) -> tuple[Message, Sequence[int]]:
    """Mark a trigger that asks some devices of a frame now; give those beside them that are to keep their image."""
    age_us = (trigger.dispatch_ns - frame.dispatch_ns) // 1000
    if trigger.dispatch_ns != frame.dispatch_ns:
        return msgspec.structs.replace(trigger, capture_age_us=max(1, age_us)), ()
    keeping = sorted(frame.course.unasked) if frame.course is not None else []
    return msgspec.structs.replace(trigger, mask=mask_of(list(asked))), keeping


def drop_payload(request: Request) -> None:
    """Let a picture go that was sent to all devices: the answer needs its numbers alone."""
    request.picture = msgspec.structs.replace(request.picture, payload=b"")
