"""What clients are to send images as: raw, or coded once by the client for all devices. No clock of its own.

The same image goes to every device, through the node's one uplink and its encryption. What that takes is measured, not
modelled: from its dispatch until the engine begins, and of a coded one the decoder's time again for the client's
encoder. A frame waits for its slowest device, so the slowest decides. Both ways are tried at first, and later now and
then the one that is not in use, so that a link that has become faster or slower is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.choices import ImageChoice, ImageCoding
from devit_contract.errors import InputError
from devit_contract.wire.codec import Message, array_payload
from devit_fusion.devices.links import Link
from devit_fusion.devices.pace import IMAGES_KEPT, LEAST_BYTES

_TRIES = 2 * IMAGES_KEPT
"""Answers that ask for the other way at first: some of it may come back with another one."""
_TRIED_EVERY = 256
"""Answers until the other way is tried again with one frame: too few to show in a 99th percentile."""
_GAIN = 1.25
"""How much sooner images must come the other way, so that noise changes nothing."""
_OTHER: dict[ImageCoding, ImageCoding] = {"raw": "jpeg", "jpeg": "raw"}


class Images:
    """The choice of one node."""

    def __init__(self, choice: ImageChoice, spec: Preprocess, links: Mapping[str, Link]) -> None:
        """Choose for all these devices."""
        is_small = math.prod(spec.shape) < LEAST_BYTES
        self.choice: ImageChoice = "raw" if is_small else choice
        self.switches = 0
        """How often ``auto`` has changed its mind."""
        self._spec = spec
        self._links = links.values()
        self._now: ImageCoding = "raw" if self.choice == "auto" else self.choice
        self._tries_left, self._answers = _TRIES, 0

    def wanted(self) -> ImageCoding:
        """Tell what a client is to send its next images as; to be called for each answer."""
        if self.choice == "raw":
            return "raw"
        linked = [link for link in self._links if link.hello is not None]
        coding = "jpeg" if self.choice == "auto" else self._now
        if not all(_reads(link, coding) for link in linked):
            return "raw"
        return self._tried(linked) if self.choice == "auto" else coding

    @property
    def now(self) -> ImageCoding:
        """What clients send them as, but for those that are tried."""
        return self._now

    def readable(self, picture: Message, coding: ImageCoding, devices: Iterable[Link]) -> Message:
        """Decode a coded image that one of these devices does not read: it connected after the client had been told."""
        if all(_reads(link, coding) for link in devices):
            return picture
        from devit_contract.artefacts.preprocess import decode_coded  # most nodes need no Pillow

        try:
            dtype, dims, payload = array_payload(decode_coded(picture.payload, self._spec, "image"))
        except InputError:  # let all say what such a device says of any damaged file
            return msgspec.structs.replace(picture, dims=())
        return msgspec.structs.replace(picture, dtype=dtype, dims=dims, payload=payload)

    def _tried(self, linked: list[Link]) -> ImageCoding:
        now, other = self._now, _OTHER[self._now]
        trips = [(link.pace.trips.middle_us(now), link.pace.trips.middle_us(other)) for link in linked]
        known = [(ours, theirs) for ours, theirs in trips if ours is not None and theirs is not None]
        slowest_us, others_us = (max(column) for column in zip(*known, strict=True)) if known else (0, 0)
        if others_us * _GAIN < slowest_us:
            self._now, self.switches = other, self.switches + 1
            self._tries_left = self._answers = 0
            for link in linked:
                link.pace.trips.forget(other)  # what comes from now on is to show it
            return other
        self._answers += 1
        if self._answers >= _TRIED_EVERY:
            self._answers, self._tries_left = 0, 1
        is_measured = any(ours is not None for ours, _ in trips)
        if not is_measured or not self._tries_left:
            return now
        self._tries_left -= 1
        return other


def _reads(link: Link, coding: ImageCoding) -> bool:
    return coding == "raw" or link.hello is None or coding in link.hello.image_codings
