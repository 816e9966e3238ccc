"""Spares: who serves, who takes over, and what becomes of the frames, with devices that the test plays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.fusion.hand_made_devices import DEADLINE_S, Asked, Device, Scene

from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.service.journal import Log
from devit_contract.wire.client import Client
from devit_contract.wire.codec import Kind, Message, Reason, State
from devit_contract.wire.messages import Hello
from devit_contract.wire.status import NodeStatus
from devit_fusion.events import Events
from devit_fusion.links import Link
from devit_fusion.roster.seats import STEADY_NS, Seats

FLEET = """
schema = 2
[node]
endpoint = "tcp://127.0.0.1:0"
client_endpoint = "tcp://127.0.0.1:0"
[serving]
deadline_ms = 10000
[[device]]
name = "jetson0"
submodel = 0
[[device]]
name = "jetson1"
submodel = 1
[[device]]
name = "spare"
submodel = 1
"""


class Cell:
    """A node whose submodel 1 has a spare, and a client."""

    def __init__(self, stack: ExitStack, bundle: Bundle, path: Path) -> None:
        path.write_text(FLEET)
        self.scene = Scene(stack, bundle, load_fleet(path), None)
        self.client = self.scene.client()
        self.zero, self.one = self.scene.greeted(0), self.scene.greeted(1)
        self.spare = self.scene.greeted(1, agent=b"spare")

    def until(self, is_so: Callable[[NodeStatus], bool]) -> NodeStatus:
        return until(self.client, is_so)

    def pending(self) -> tuple[Asked, Message]:
        """Ask for an image that submodel 0 has answered, and jetson1 has."""
        asked = Asked(self.scene.client())
        self.zero.socket.send(self.zero.feature(self.zero.hear(Kind.FRAME)))
        return asked, self.one.hear(Kind.FRAME)


def until(client: Client, is_so: Callable[[NodeStatus], bool]) -> NodeStatus:
    end_s = time.monotonic() + DEADLINE_S
    while not is_so(found := client.status()):
        assert time.monotonic() < end_s, found
        client.wait(0.02)
    return found


def serving(found: NodeStatus, submodel: int = 1) -> str:
    (name,) = (each.name for each in found.devices if each.submodel == submodel and not each.is_spare)
    return name


@pytest.fixture
def cell(bundle: Bundle, tmp_path: Path) -> Iterator[Cell]:
    with ExitStack() as stack:
        yield Cell(stack, bundle, tmp_path / "fleet.toml")


def test_the_first_serves_and_the_spare_is_shown_as_one(cell: Cell) -> None:
    found = cell.client.status()
    assert [(each.name, each.state, each.is_spare) for each in found.devices] == [
        ("jetson0", "ready", False),
        ("jetson1", "ready", False),
        ("spare", "ready", True),
    ]
    asked, frame = cell.pending()
    cell.one.socket.send(cell.one.feature(frame))
    assert asked.answer().state is State.FULL
    assert [each.sent for each in cell.client.status().devices] == [1, 1, 0]


def answer(device: Device) -> None:
    device.socket.send(device.feature(device.hear(Kind.FRAME)))


def test_the_frame_of_a_lost_device_goes_to_the_spare(cell: Cell) -> None:
    asked, frame = cell.pending()
    cell.one.close()
    again = cell.spare.hear(Kind.FRAME)
    assert (again.frame_id, bytes(again.payload)) == (frame.frame_id, bytes(frame.payload))
    cell.spare.socket.send(cell.spare.feature(again))
    assert asked.answer().state is State.FULL
    found = cell.client.status()
    assert serving(found) == "spare"
    assert "serves submodel 1 now: jetson1 is absent" in {event.text for event in found.events}


def test_a_device_that_leaves_answers_what_it_has_and_the_spare_what_comes(cell: Cell) -> None:
    asked, frame = cell.pending()
    cell.one.leave()
    cell.until(lambda found: serving(found) == "spare")
    later = Asked(cell.scene.client())
    answer(cell.zero)
    answer(cell.spare)
    assert later.answer().state is State.FULL
    cell.one.socket.send(cell.one.feature(frame))
    assert asked.answer().state is State.FULL


def test_a_device_that_returns_is_a_spare_and_what_it_says_of_old_frames_is_not_used(cell: Cell) -> None:
    asked, frame = cell.pending()
    cell.one.close()
    again = cell.spare.hear(Kind.FRAME)
    back = cell.scene.greeted(1)
    assert serving(cell.client.status()) == "spare"
    back.skip(frame, Reason.EXPIRED)
    back.leave()
    cell.until(lambda found: found.devices[2].state == "leaving")
    cell.spare.socket.send(cell.spare.feature(again))
    assert asked.answer().state is State.FULL


def hello(name: str) -> Hello:
    return Hello(name, 1, 4, "0" * 64, "by hand", ("float32",), "0")


class Bench:
    """Seats without a node: two devices of one submodel, and a clock that the test moves."""

    def __init__(self) -> None:
        self.links = {name: Link(1, name, 2, 1_000_000) for name in ("first", "second")}
        self.seats = Seats(self.links, Events(Log("test")))
        self.now_ns = STEADY_NS
        self.settle()

    def settle(self, after_ns: int = 0) -> str:
        self.now_ns += after_ns
        self.seats.settle(self.now_ns)
        return self.seats.serving[1].name

    def connect(self, name: str) -> str:
        self.links[name].connect(hello(name), 1, 1)
        self.links[name].last_seen_ns = self.now_ns
        return self.settle()


def test_the_first_has_its_seat_back_once_it_has_been_ready_for_ten_seconds() -> None:
    bench = Bench()
    assert bench.connect("second") == "second"
    bench.links["second"].frames = 1
    assert bench.connect("first") == "second"
    assert bench.settle(STEADY_NS - 1) == "second"
    bench.links["first"].disconnect()
    assert bench.settle(1) == "second"
    assert bench.connect("first") == "second"
    assert bench.settle(STEADY_NS - 1) == "second"
    assert bench.settle(1) == "first"


def test_at_the_start_the_first_has_its_seat_at_once() -> None:
    bench = Bench()
    assert bench.connect("second") == "second"
    assert bench.connect("first") == "first"


def test_a_device_that_was_too_slow_rests_and_serves_again_only_if_no_other_can() -> None:
    bench = Bench()
    bench.connect("first")
    bench.connect("second")
    first, second = bench.links["first"], bench.links["second"]
    first.pace.is_too_slow = True
    assert bench.settle() == "second"
    second.frames = 1
    first.last_seen_ns = bench.now_ns + STEADY_NS
    assert bench.settle(STEADY_NS) == "second"
    assert first.state == "ready"  # it has rested
    first.last_seen_ns = bench.now_ns + STEADY_NS
    assert bench.settle(STEADY_NS) == "second"
    second.disconnect()
    assert bench.settle() == "first"
    bench.connect("second")
    assert bench.settle(STEADY_NS) == "second"  # the other one is at fault until it connects anew
    bench.connect("first")
    assert bench.settle(STEADY_NS) == "first"
