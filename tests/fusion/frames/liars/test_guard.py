"""When the guard compares what it has looked at, and whom it leaves out; no sockets."""

from __future__ import annotations

from random import Random

import pytest
from tests.fusion.frames.liars.test_watch import DEVICES, World

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import FLEET_SCHEMA, Fleet, Node, Serving, Watch
from devit_contract.wire.messages import Hello
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.frames.join import Frame
from devit_fusion.frames.liars.guard import Guard

HELLO = Hello("", 0, 8, "", "", ("float32",), "")


class Guarded:
    """A world's devices at a node that excludes liars."""

    def __init__(self) -> None:
        self.world = World()
        self.links = {index: Link(index, f"jetson{index}", 2, 10**9, hello=HELLO) for index in range(DEVICES)}
        fleet = Fleet(FLEET_SCHEMA, Node("", ""), (), serving=Serving(min_devices=1), watch=Watch("exclude"))
        calibration = Calibration(100, {}, usual=self.world.usual)
        self.guard = Guard(self.world.head, calibration, fleet, self.links, self.world.events, Clock(), Random())

    def end(self, *devices: int, lying: int | None = None) -> None:
        """End a frame in which some devices spoke; those that are excluded were only probed."""
        said = {device: feature[0] for device, feature in self.world.see(1).items() if device in devices}
        if lying is not None:
            said[lying] = self.world.see(1)[lying][0]
        frame = Frame(1, 15, 0, 1, set(), {}, set())
        for device, feature in said.items():
            (frame.aside if self.links[device].is_excluded else frame.features)[device] = feature
        self.guard.look(frame)


@pytest.fixture
def node() -> Guarded:
    return Guarded()


def test_frames_of_one_device_do_not_put_off_the_comparison_of_others(node: Guarded) -> None:
    node.end(0, 1)
    due_ns = node.guard.due_ns
    assert due_ns is not None
    for _ in range(5):
        node.end(2)
    assert node.guard.due_ns == due_ns
    node.guard.tend(due_ns)
    assert node.guard.due_ns is None


def test_a_liar_is_left_out_within_the_frames_that_are_compared_at_once(node: Guarded) -> None:
    while not node.links[1].is_excluded:
        node.end(0, 1, 2, 3, lying=1)
    assert [link.is_excluded for link in node.links.values()] == [False, True, False, False]


def test_an_excluded_device_is_used_again_as_soon_as_all_others_are_gone(node: Guarded) -> None:
    while not node.links[1].is_excluded:
        node.end(0, 1, 2, 3, lying=1)
    for index in (0, 2, 3):
        node.links[index].hello = None
    node.end(1)
    assert not node.links[1].is_excluded
