"""Spares: who serves, who takes over, and what becomes of the frames, with devices that the test plays."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fusion import hand_made_devices
from tests.fusion.hand_made_devices import DEADLINE_S, Asked, Scene
from tests.fusion.test_policies import CALIBRATION, SHIPPED, Golden, write_fleet
from tests.support.properties import examples

from devit_contract.artefacts.fleet import Device, load_fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.service.journal import Log
from devit_contract.wire.client import Answer, Client
from devit_contract.wire.codec import Kind, Message, Reason, State
from devit_contract.wire.messages import DeviceTiming, Hello
from devit_contract.wire.status import NodeStatus
from devit_contract.wire.words import DeviceState
from devit_fusion.devices.links import Link
from devit_fusion.devices.pace import Flight
from devit_fusion.events import Events
from devit_fusion.ports.seats import HANG_NS, STEADY_NS, Seats
from devit_fusion.roster.fleet_file import add_device, remove_device
from devit_fusion.roster.watched import WatchedFleet

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


def play(device: hand_made_devices.Device) -> None:
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
    play(cell.zero)
    play(cell.spare)
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


def test_a_partial_cell_keeps_the_promise_of_certain_answers_and_asks_who_comes(tmp_path: Path) -> None:
    """Two devices of four submodels from the start; another comes while the node runs."""
    shipped = Bundle(SHIPPED)
    golden, path = Golden(shipped), write_fleet(tmp_path, 'policy = "certain"\ndeadline_ms = 20000', "audit = 0")
    for name in ("jetson1", "jetson3"):
        remove_device(path, name)
    watched = WatchedFleet(path)
    clear = golden.image(certain=[0b0001], uncertain=[])
    unclear = golden.image(uncertain=[0b0001, 0b0100, 0b0101, 0b0111, 0b0011, 0b0010, 0b0110])
    with ExitStack() as stack:
        scene = Scene(stack, shipped, watched.fleet, None, calibration=CALIBRATION, watched=watched)
        devices = {index: scene.greeted(index) for index in (0, 2)}
        client = scene.client()
        assert client.status().without_device == (1, 3)

        def ask(number: int, *order: int) -> Answer:
            asked = Asked(scene.client(), picture=np.zeros((28, 28, 1), np.uint8))
            for index in order:
                frame = devices[index].hear(Kind.FRAME)
                devices[index].socket.send(devices[index].feature(frame, golden.feature(number, index)))
            return asked.answer()

        answer = ask(clear, 0)
        assert (answer.state, answer.asked) == (State.CERTAIN, 0b0001)
        answer = ask(unclear, 2, 0)
        assert (answer.state, answer.mask, answer.missing) == (State.PARTIAL, 0b0101, {1: "absent", 3: "absent"})
        add_device(path, Device("jetson1", 1))
        until(client, lambda found: found.without_device == (3,))
        devices[1] = scene.greeted(1)
        answer = ask(unclear, 1, 2, 0)
        assert (answer.state, answer.mask, answer.missing) == (State.PARTIAL, 0b0111, {3: "absent"})


def hello(name: str) -> Hello:
    return Hello(name, 1, 4, "0" * 64, "by hand", ("float32",), "0")


class Bench:
    """Seats without a node: two devices of one submodel, and a clock that the test moves."""

    def __init__(self, deadline_ns: int = 1_000_000) -> None:
        self.links = {name: Link(1, name, 2, deadline_ns) for name in ("first", "second")}
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


def test_a_device_hangs_long_before_a_far_deadline_if_its_frames_took_less() -> None:
    bench = Bench(deadline_ns=60_000_000_000)
    bench.connect("first")
    bench.connect("second")
    first = bench.links["first"]
    first.sent(1, Flight(bench.now_ns, bench.now_ns + 60_000_000_000))
    assert bench.settle(HANG_NS + 1) == "first"  # nothing is known of how long its frames take
    first.returned(1, bench.now_ns, DeviceTiming(1, 0, 0, 0, 250_000, 300_000, 0))
    first.sent(2, Flight(bench.now_ns, bench.now_ns + 60_000_000_000))
    assert bench.settle(HANG_NS + 1) == "first"  # they take as long
    for number in range(2, 40):
        first.returned(number, bench.now_ns, DeviceTiming(1, 0, 0, 0, 1_000, 2_000, 0))
        bench.now_ns += 2_000_000
        first.sent(number + 1, Flight(bench.now_ns, bench.now_ns + 60_000_000_000))
    assert bench.settle(HANG_NS) == "first"
    (change,) = bench.seats.settle(bench.now_ns + 1)
    assert (change.before.name, change.now.name, change.is_lost) == ("first", "second", True)
    assert change.takes(40, bench.now_ns + 50_000_000_000, bench.now_ns, is_file=False)
    assert not change.takes(40, bench.now_ns, bench.now_ns, is_file=False)  # too late


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


moves = st.lists(
    st.tuples(
        st.sampled_from(["connect", "disconnect", "slow", "leave", "remove", "add"]),
        st.sampled_from(["first", "second", "third"]),
        st.sampled_from([0, 1_000_000, STEADY_NS]),
    ),
    max_size=30,
)


@given(moves)
@examples(3)
def test_a_seat_is_never_empty_while_a_device_is_ready_and_changes_once(moves: list[tuple[str, str, int]]) -> None:
    bench = Bench()
    for what, name, after_ns in moves:
        link = bench.links.get(name)
        bench.now_ns += after_ns
        if link is None and what == "add":
            bench.links[name] = Link(1, name, 2, 1_000_000)
        elif link is None:
            continue
        elif what == "connect":
            link.connect(hello(name), 1, 1)
        elif what == "disconnect":
            link.disconnect()
        elif what == "remove" and len(bench.links) > 1:
            del bench.links[name]
            link.disconnect()
        elif link.hello is not None:
            link.pace.is_too_slow |= what == "slow"
            link.is_leaving |= what == "leave"
        for each in bench.links.values():
            each.last_seen_ns = bench.now_ns
            each.frames += 1
        bench.seats.refill()
        bench.seats.settle(bench.now_ns)
        serving = bench.seats.serving[1]
        assert bench.links[serving.name] is serving
        is_any_ready = any(each.state is DeviceState.READY for each in bench.links.values())
        assert (serving.state is DeviceState.READY) == is_any_ready
        assert bench.seats.settle(bench.now_ns) == []
        assert {each.name for each in bench.seats.status(bench.now_ns, Counter()) if not each.is_spare} == {
            serving.name
        }
