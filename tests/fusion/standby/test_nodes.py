"""A node's port for devices, to which another node of the fleet says by hand what it wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fusion.hand_made_devices import IMAGE, Device, Scene
from tests.support.cell import TINY
from tests.support.properties import examples

from devit_contract.artefacts.fleet import Fleet, load_fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError, ManifestError
from devit_contract.wire.codec import Dtype, Kind, Message, pack, unpack
from devit_contract.wire.messages import Control, ControlReply, Refused, Vote, body, read_body
from devit_contract.wire.words import Question
from devit_fusion.node import FusionNode

FLEET = """
schema = 2
[node]
endpoint = "tcp://127.0.0.1:0"
client_endpoint = "tcp://127.0.0.1:0"
[[standby]]
endpoint = "tcp://127.0.0.1:1"
client_endpoint = "tcp://127.0.0.1:2"
[[device]]
name = "jetson0"
submodel = 0
[[device]]
name = "jetson1"
submodel = 1
"""
NUMBER = count(1)
NUMBERS = st.integers(-(2**63), 2**63 - 1)
LEASES = st.builds(Control, st.just(Question.LEASE), st.sampled_from(("standby1", "x")), NUMBERS, lease_ms=NUMBERS)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    path = tmp_path_factory.mktemp("fleet") / "fleet.toml"
    path.write_text(FLEET)
    return load_fleet(path)


@pytest.fixture(scope="module")
def scene(fleet: Fleet) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack, Bundle(TINY), fleet, None)


@pytest.fixture(scope="module")
def other(scene: Scene) -> Device:
    return scene.device(0)


def asked(other: Device, control: Control) -> Message:
    number = next(NUMBER)
    message = Message(Kind.CONTROL, Dtype.BODY, payload=body(control), run_id=7, frame_id=number)
    other.socket.send(pack(message))
    while (reply := unpack(other.socket.recv())).frame_id != number:
        pass
    return reply


def vote(other: Device, lease_ms: int) -> Vote:
    found = read_body(asked(other, Control(Question.LEASE, "standby1", lease_ms=lease_ms)), ControlReply).vote
    assert found is not None
    return found


def test_another_node_is_granted_the_lease_of_one_that_is_not_active(other: Device) -> None:
    while (found := vote(other, 400)).holder != 7:  # not before it has run for the time of a lease
        assert found.holder == 0
    assert not found.is_active
    assert vote(other, 0).holder == 0


@pytest.mark.parametrize("control", [Control(Question.LEASE, "jetson0"), Control(Question.STATUS, "standby1")])
def test_nobody_else_is_and_nothing_else_is_answered(other: Device, control: Control) -> None:
    refused = read_body(asked(other, control), Refused)
    assert "clients connect to client_endpoint" in refused.text


@examples(2)
@given(st.one_of(st.binary(max_size=60), LEASES.map(msgspec.msgpack.encode)))
def test_whatever_a_peer_says_the_node_goes_on(other: Device, payload: bytes) -> None:
    message = Message(Kind.CONTROL, Dtype.BODY, payload=payload, run_id=9)
    other.socket.send(pack(message))
    assert vote(other, 0).run_id


def test_a_request_is_refused_in_words_that_an_older_client_shows_too(scene: Scene) -> None:
    with scene.client() as client, pytest.raises(InputError, match="not the active one of its fleet"):
        client.classify(IMAGE)


def test_a_node_without_keys_says_by_its_name_which_one_it_is(fleet: Fleet) -> None:
    with pytest.raises(InputError, match=r"expected the name of this node in fleet.toml, one of node, standby1"):
        FusionNode(Bundle(TINY), fleet, None, name="third")


def test_nodes_have_names_and_keys_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET.replace("[[standby]]", '[[standby]]\nname = "jetson0"'))
    with pytest.raises(ManifestError, match="name 'jetson0' is there twice"):
        load_fleet(path)
