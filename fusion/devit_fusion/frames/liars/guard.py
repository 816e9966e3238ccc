"""What the node does about suspects: it tells, or leaves them out as far as an answer can do without them."""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.head import FusionHead
from devit_contract.wire.status import DeviceStatus
from devit_contract.wire.words import DeviceState
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.frames.join import Frame
from devit_fusion.frames.liars.watch import Watch

_MOST_BEHIND, _BEHIND_NS = 16, 20_000_000
"""How many frames, and for how long, wait to be compared: no answer waits for that, and together they cost less."""


class Guard:
    """Guards the answers of one node."""

    def __init__(
        self,
        head: FusionHead,
        calibration: Calibration | None,
        fleet: Fleet,
        links: Mapping[int, Link],
        events: Events,
        clock: Clock,
        chance: random.Random,
    ) -> None:
        """Watch nothing where ``fleet.toml`` says so, or the calibration does not tell what is usual."""
        self._clock = clock
        self._names = {index: link.name for index, link in links.items()}
        self._watch: Watch | None = None
        if fleet.watch.liars != "off" and calibration is not None and calibration.usual is not None:
            self._watch = Watch(head, calibration.usual, self._names, events, chance)
        self._may_exclude = fleet.watch.liars == "exclude"
        self._min_devices = fleet.serving.min_devices
        self._links = links
        self.due_ns: int | None = None
        """When :meth:`tend` has something to do."""
        self._linked: dict[int, int] = {}  # by device: how often it had been accepted when it was last looked at

    def look(self, frame: Frame) -> float | None:
        """Give the novelty of the image of a frame that has ended, if that is known; its features are compared soon."""
        watch = self._watch
        if watch is None:
            return None
        features = frame.features | frame.aside
        for device in features:
            links = self._links[device].links
            if self._linked.setdefault(device, links) != links:
                self._catch_up(watch)
                self._linked[device] = links
                watch.forget(device)
        novelty = watch.look(features)
        if watch.frames_behind >= _MOST_BEHIND:
            self._catch_up(watch)
        elif watch.frames_behind and self.due_ns is None:
            self.due_ns = self._clock.now_ns + _BEHIND_NS
        self._exclude(watch)  # at each frame, as the other devices come and go
        return novelty

    def know(self, links: Mapping[int, Link]) -> None:
        """Know the names of devices whose submodels no device had before."""
        self._names |= {index: link.name for index, link in links.items() if index not in self._names}

    def seated(self, link: Link) -> None:
        """Judge a device anew: it serves now in the place of another one."""
        self._names[link.index] = link.name
        if self._watch is not None and link.index in self._linked:
            self._catch_up(self._watch)
            self._watch.forget(link.index)
            self._linked[link.index] = link.links

    def tend(self, now_ns: int) -> None:
        """Compare the features of the last frames when it is time."""
        if self._watch is not None and self.due_ns is not None and now_ns >= self.due_ns:
            self._catch_up(self._watch)

    def judged(self, status: DeviceStatus) -> DeviceStatus:
        """Add what speaks against a device."""
        if self._watch is None or status.is_spare:
            return status
        self._catch_up(self._watch)
        suspicion, is_suspect = self._watch.suspicion(status.submodel), status.submodel in self._watch.suspects
        return msgspec.structs.replace(status, suspicion=suspicion, is_suspect=is_suspect)

    def _catch_up(self, watch: Watch) -> None:
        self.due_ns = None
        watch.catch_up()
        self._exclude(watch)

    def _exclude(self, watch: Watch) -> None:
        for device, link in self._links.items() if self._may_exclude else ():
            if not link.is_excluded and device not in watch.suspects:
                continue
            others = [other for other in self._links.values() if other is not link]
            is_enough = sum(other.state is DeviceState.READY for other in others) >= self._min_devices
            link.is_excluded = device in watch.suspects and is_enough
