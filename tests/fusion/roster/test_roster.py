"""A node takes what has changed in its fleet file: whom it lets in, whom it shuts out, and what it leaves as it is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fusion.hand_made_devices import DEADLINE_S, Asked, Scene

from devit_contract.artefacts.fleet import Device
from devit_contract.artefacts.keys import new_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Client
from devit_contract.wire.codec import Kind, State
from devit_contract.wire.status import FleetStatus, NodeStatus
from devit_fusion.roster.fleet_file import add_device, remove_device, replace_device
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
"""


class Cell:
    """A node that watches its file, and a client."""

    def __init__(self, stack: ExitStack, bundle: Bundle, path: Path) -> None:
        self.path = path
        path.write_text(FLEET)
        watched = WatchedFleet(path)
        self.scene = Scene(stack, bundle, watched.fleet, None, watched=watched)
        self.client = self.scene.client()

    def taken(self, *, now: bool = True) -> NodeStatus:
        """Wait until the node has read the file as it is; ``now`` has it read at once."""
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if now:
            self.scene.reload.set()
        return until(self.client, lambda found: told(found).sha256 == digest and not self.scene.reload.is_set())


def until(client: Client, is_so: Callable[[NodeStatus], bool]) -> NodeStatus:
    end_s = time.monotonic() + DEADLINE_S
    while not is_so(found := client.status()):
        assert time.monotonic() < end_s, found
        client.wait(0.02)
    return found


def told(found: NodeStatus) -> FleetStatus:
    assert found.fleet is not None
    return found.fleet


def events(found: NodeStatus) -> list[str]:
    return [f"{event.device}: {event.text}" for event in found.events]


@pytest.fixture
def cell(bundle: Bundle, tmp_path: Path) -> Iterator[Cell]:
    with ExitStack() as stack:
        yield Cell(stack, bundle, tmp_path / "fleet.toml")


def test_a_changed_file_is_taken_by_itself(cell: Cell) -> None:
    add_device(cell.path, Device("spare", 1))
    found = cell.taken(now=False)
    assert [(each.name, each.is_spare) for each in found.devices] == [
        ("jetson0", False),
        ("jetson1", False),
        ("spare", True),
    ]
    assert events(found)[0] == "spare: added in fleet.toml"
    cell.scene.greeted(1, agent=b"spare")


def test_a_removed_devices_link_ends_at_once_and_its_frame_ends_without_it(cell: Cell) -> None:
    zero, one = cell.scene.greeted(0), cell.scene.greeted(1)
    asked = Asked(cell.scene.client())
    zero.socket.send(zero.feature(zero.hear(Kind.FRAME)))
    one.hear(Kind.FRAME)
    remove_device(cell.path, "jetson1")
    found = cell.taken()
    answer = asked.answer()
    assert (answer.state, answer.missing) == (State.PARTIAL, {1: "absent"})
    assert [each.name for each in found.devices] == ["jetson0"]
    assert found.without_device == (1,)
    assert "jetson1: removed in fleet.toml" in events(found)
    assert one.monitor.socket.poll(1000 * DEADLINE_S)  # the disconnect
    assert found.devices[0].links == 1  # the other one's link has not been touched


def test_a_partial_cell_gets_its_missing_device_while_it_runs(cell: Cell) -> None:
    cell.scene.greeted(0)
    remove_device(cell.path, "jetson1")
    cell.taken()
    add_device(cell.path, Device("other", 1))
    cell.taken()
    other = cell.scene.greeted(1, agent=b"other")
    asked = Asked(cell.scene.client(), mask=0b10)
    other.socket.send(other.feature(other.hear(Kind.FRAME)))
    assert asked.answer().mask == 0b10


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"jetson1"', '"jetson0"', "name 'jetson0' is there twice"),
        ("submodel = 1", "submodel = 7", "device jetson1: expected a submodel from 0 to 1"),
        ("[node]", "[node", "not a TOML file"),
    ],
)
def test_a_broken_file_keeps_the_fleet_with_one_event(cell: Cell, old: str, new: str, said: str) -> None:
    device = cell.scene.greeted(0)
    cell.path.write_text(FLEET.replace(old, new))
    cell.taken()
    cell.path.write_text(FLEET.replace(old, new) + "\n")
    found = cell.taken()
    assert said in told(found).problem
    assert sum("the fleet stays as it is" in event for event in events(found)) == 1
    assert [each.name for each in found.devices] == ["jetson0", "jetson1"]
    asked = Asked(cell.scene.client(), mask=1)
    device.socket.send(device.feature(device.hear(Kind.FRAME)))
    assert asked.answer().mask == 1
    cell.path.write_text(FLEET)
    assert told(cell.taken()).problem == ""


def test_a_file_that_is_gone_keeps_the_fleet(cell: Cell) -> None:
    cell.path.unlink()
    found = until(cell.client, lambda found: told(found).problem != "")
    assert "cannot be read" in told(found).problem
    assert len(found.devices) == 2


def test_what_is_not_applied_is_told_until_it_is_as_it_was(cell: Cell) -> None:
    cell.path.write_text(FLEET.replace("10000", "20") + '[[device]]\nname = "spare"\nsubmodel = 1\n')
    found = cell.taken()
    assert told(found).needs_restart == ("[serving]",)
    assert found.deadline_ms == 10000
    assert len(found.devices) == 3  # which is applied
    assert ": [serving] in fleet.toml changed: restart fusion-node to apply it" in events(found)
    cell.path.write_text(FLEET)
    assert told(cell.taken()).needs_restart == ()


def test_a_device_with_another_key_takes_the_place_and_the_old_key_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    keys = {name: new_keys(tmp_path / "keys", name) for name in ("node", "old", "new", "desk")}
    path = tmp_path / "fleet.toml"
    path.write_text(
        FLEET.replace("[serving]", f'public_key = "{keys["node"].public.decode()}"\n[serving]')
        .replace("submodel = 0", f'submodel = 0\npublic_key = "{keys["old"].public.decode()}"')
        .partition('[[device]]\nname = "jetson1"')[0]
        + f'[[client]]\nname = "desk"\npublic_key = "{keys["desk"].public.decode()}"\n'
    )
    node_key = keys["node"].public
    watched = WatchedFleet(path)
    with ExitStack() as stack:
        scene = Scene(stack, bundle, watched.fleet, keys["node"], watched=watched)
        client = scene.client(keys["desk"])
        old = scene.greeted(0, keys=keys["old"], node_key=node_key)
        replace_device(path, "jetson0", Device("jetson0", 0, keys["new"].public.decode()))
        scene.reload.set()
        found = until(client, lambda found: found.devices[0].state == "absent")
        assert "jetson0: replaced in fleet.toml" in events(found)
        refused = found.refused_handshakes
        scene.greeted(0, keys=keys["new"], node_key=node_key)
        found = until(client, lambda found: found.refused_handshakes > refused)  # the old one comes again
        assert [(each.name, each.state) for each in found.devices] == [("jetson0", "ready")]
        old.close()


@pytest.fixture(scope="module")
def lasting(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    with ExitStack() as stack:
        cell = Cell(stack, bundle, tmp_path_factory.mktemp("lasting") / "fleet.toml")
        cell.scene.greeted(0)
        yield cell


NAMES = ("jetson1", "east", "west")
steps = st.lists(st.tuples(st.sampled_from(["add", "remove", "replace"]), st.sampled_from(NAMES), st.integers(0, 2)))


@given(steps)
def test_after_any_edits_the_node_has_the_fleet_of_the_file(lasting: Cell, steps: list[tuple[str, str, int]]) -> None:
    """Of a submodel that the bundle does not have, nothing is taken; and whoever has not changed keeps its link."""
    lasting.path.write_text(FLEET)
    lasting.taken()
    fleet = {"jetson0": 0, "jetson1": 1}
    for what, name, submodel in steps:
        if what == "add" and name not in fleet:
            add_device(lasting.path, Device(name, submodel))
            fleet[name] = submodel
        elif what == "remove" and name in fleet:
            remove_device(lasting.path, name)
            del fleet[name]
        elif what == "replace" and name in fleet:
            replace_device(lasting.path, name, Device(name, submodel))
            fleet[name] = submodel
    found = lasting.taken()
    if 2 in fleet.values():
        assert "expected a submodel from 0 to 1" in told(found).problem
        fleet = {"jetson0": 0, "jetson1": 1}
    else:
        assert told(found).problem == ""
    assert {each.name: each.submodel for each in found.devices} == fleet
    assert set(found.without_device) == {0, 1} - set(fleet.values())
    assert {each.name for each in found.devices if not each.is_spare and each.links} == {"jetson0"}
    assert [each.links for each in found.devices if each.name == "jetson0"] == [1]
