"""The agent's end of the link against the node's real port, and against one that the test speaks by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from unittest.mock import Mock

import msgspec
import pytest
from tests.edge_agent.hand_made_node import RUN_ID, HandMadeNode

from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import RefusedError
from devit_contract.service.journal import Log
from devit_contract.wire.codec import Dtype, Kind, Message
from devit_contract.wire.messages import Hello, Refused, body
from devit_contract.wire.sockets import open_context
from devit_edge_agent.config import load_agent_config
from devit_edge_agent.uplink import Uplink
from devit_fusion.clock import Clock
from devit_fusion.devices.links import Link
from devit_fusion.events import Events
from devit_fusion.ports.devices import DeviceHandler, DevicePort

DEADLINE_S = 20


@pytest.fixture
def hello(bundle: Bundle) -> Hello:
    digest = bundle.manifest.file("submodel", device=0, variant="fp32").sha256
    return Hello("jetson1", 0, 6, digest, "by hand", ("float32",), "0")


def opened(node: HandMadeNode, hello: Hello, endpoint: str = "") -> Uplink:
    node.endpoint = endpoint or node.endpoint
    return Uplink(load_agent_config(node.configure()), None, Log("edge-agent"), hello, revision=1)


@pytest.fixture
def uplink(node: HandMadeNode, hello: Hello) -> Iterator[Uplink]:
    made = opened(node, hello)
    yield made
    made.close()


def introduction(node: HandMadeNode, uplink: Uplink) -> Message:
    """Turn the agent's side until the first HELLO is out, and take it."""
    end_s = time.monotonic() + DEADLINE_S
    while not uplink.is_introducing:
        uplink.watch(has_events=uplink.monitor.socket.poll(100) > 0)
        assert time.monotonic() < end_s
    return node.receive(Kind.HELLO)


def heard(uplink: Uplink) -> list[Message]:
    """Wait for what the node says next, and take it."""
    assert uplink.socket.poll(DEADLINE_S * 1000)
    return list(uplink.receive())


def test_another_engine_is_introduced_at_once(node: HandMadeNode, uplink: Uplink, hello: Hello) -> None:
    """The loop may wait for 200 ms before it looks after the link again; accepted already, or not yet."""
    introduction(node, uplink)
    uplink.introduce(hello, 2)
    assert node.receive(Kind.HELLO).engine_revision == 2
    node.accept(Message(Kind.HELLO, engine_revision=2))
    heard(uplink)
    uplink.introduce(hello, 3)
    assert uplink.is_introducing
    assert node.receive(Kind.HELLO).engine_revision == 3


def test_a_late_welcome_is_not_taken_for_the_engine_introduced_since(
    node: HandMadeNode, uplink: Uplink, hello: Hello, capsys: pytest.CaptureFixture[str]
) -> None:
    first = introduction(node, uplink)
    uplink.introduce(hello, 2)
    second = node.receive(Kind.HELLO)
    node.accept(first)
    assert heard(uplink) == []
    assert (uplink.is_introducing, uplink.run_id) == (True, None)
    assert "WELCOME of engine 00000001, expected 00000002" in capsys.readouterr().err
    node.accept(second)
    assert [message.kind for message in heard(uplink)] == [Kind.WELCOME]
    assert (uplink.is_introducing, uplink.run_id) == (False, RUN_ID)


def test_a_late_refusal_is_not_taken_for_the_engine_introduced_since(
    node: HandMadeNode, uplink: Uplink, hello: Hello
) -> None:
    """It comes twice where the first HELLO was repeated; the agent has gone back to its old engine by then."""
    introduction(node, uplink)
    uplink.introduce(hello, 2)
    node.receive(Kind.HELLO)
    late = Message(Kind.REFUSED, Dtype.BODY, payload=body(Refused("not that engine")), engine_revision=1)
    node.send(late)
    assert heard(uplink) == []
    assert uplink.is_introducing
    node.send(msgspec.structs.replace(late, engine_revision=2))
    with pytest.raises(RefusedError, match="not that engine"):
        heard(uplink)


def test_the_node_accepts_engine_after_engine_and_knows_a_new_link_from_a_new_process(
    node: HandMadeNode, bundle: Bundle, hello: Hello
) -> None:
    link = Link(0, "jetson1", 2, DEADLINE_S * 10**9)
    with open_context() as context:
        port = DevicePort(
            context,
            "tcp://127.0.0.1:0",
            None,
            links={"jetson1": link},
            manifest=bundle.manifest,
            plausible_norms=(1e3, 1e3),
            run_id=RUN_ID,
            events=Events(Log("fusion-node")),
            clock=Clock(),
        )

        def accepted(uplink: Uplink) -> str:
            """Turn both sides until the node has taken the device, and the device knows; how the node took it."""
            node_side = Mock(spec=DeviceHandler)
            end_s = time.monotonic() + DEADLINE_S
            while not node_side.mock_calls or uplink.is_introducing:
                port.socket.poll(20)
                port.receive(node_side)
                uplink.watch(has_events=uplink.monitor.socket.poll(0) > 0)
                list(uplink.receive())
                assert time.monotonic() < end_s
            assert uplink.run_id == RUN_ID
            name, _, options = node_side.mock_calls[0]
            return "restarted" if options.get("is_restarted") else str(name)

        uplink = opened(node, hello, port.endpoint)
        try:
            assert accepted(uplink) == "restarted"
            uplink.introduce(hello, 2)
            assert accepted(uplink) == "engine_changed"
            assert link.engine_revision == 2
            port.cut(link)
            uplink.socket.disconnect(port.endpoint)
            uplink.socket.connect(port.endpoint)
            assert accepted(uplink) == "connected"
        finally:
            uplink.close()
        link.last_seen_ns = None  # so that the node needs no two seconds to take the old process for dead
        uplink = opened(node, hello, port.endpoint)
        try:
            assert accepted(uplink) == "restarted"
        finally:
            uplink.close()
