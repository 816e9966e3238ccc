"""Requests that wait, that are in a hurry, or are not served, with devices that the test plays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tests.fusion.hand_made_devices import DEADLINE_S, IMAGE, Scene

from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.answer import SHED_TEXTS
from devit_contract.wire.client import Answer, Client
from devit_contract.wire.codec import Kind, State
from devit_contract.wire.words import DeviceState, ShedReason

Start = Callable[..., Scene]
FIRST = 0b01
"""The mask of the one device that tests play."""


@pytest.fixture
def start(tmp_path: Path, bundle: Bundle) -> Iterator[Start]:
    """Start a node without keys whose devices have a credit of 1; ``limits`` are lines of its only client."""
    with ExitStack() as stack:

        def make(serving: str = "", limits: str = "") -> Scene:
            (tmp_path / "fleet.toml").write_text(
                f"""schema = 2
                [node]
                endpoint = "tcp://127.0.0.1:0"
                client_endpoint = "tcp://127.0.0.1:0"
                [serving]
                deadline_ms = 20000
                credit = 1
                {serving}
                [[device]]
                name = "jetson0"
                submodel = 0
                [[device]]
                name = "jetson1"
                submodel = 1
                [[client]]
                name = "all"
                {limits}
                """
            )
            return Scene(stack, bundle, load_fleet(tmp_path / "fleet.toml"), None)

        yield make


def connected(scene: Scene) -> Client:
    """Connect a client, so that what it submits is sent at once."""
    client = scene.client()
    client.status()
    return client


def answers(client: Client, count: int) -> dict[int, Answer]:
    """Take so many answers, in the order in which they came."""
    found: dict[int, Answer] = {}
    end_s = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < end_s
        for number, answer in client.collect(1.0):
            assert isinstance(answer, Answer)
            found[number] = answer
    return found


def test_the_request_with_the_earliest_deadline_is_sent_first(start: Start) -> None:
    scene = start()
    device, client = scene.greeted(0), connected(scene)
    wanted_ms = (0.0, 0.0, 15_000.0, 10_000.0)
    for value, deadline_ms in enumerate(wanted_ms):
        client.submit(np.full_like(IMAGE, value), mask=FIRST, deadline_ms=deadline_ms)
    assert client.status().waiting_requests == 3
    seen = []
    for _ in wanted_ms:
        frame = device.hear(Kind.FRAME)
        seen.append(bytes(frame.payload)[0])
        device.socket.send(device.feature(frame))
    assert seen == [0, 3, 2, 1]
    assert {answer.state for answer in answers(client, 4).values()} == {State.PARTIAL}


def test_a_request_that_cannot_be_answered_in_time_is_not_sent_to_a_device(start: Start) -> None:
    scene = start()
    device, client = scene.greeted(0), connected(scene)
    client.submit(IMAGE, mask=FIRST)
    frame = device.hear(Kind.FRAME)
    hurried = client.submit(IMAGE, mask=FIRST, deadline_ms=20)
    ((number, answer),) = answers(client, 1).items()
    assert (number, answer.state, answer.shed, answer.asked) == (hurried, State.FAILED, ShedReason.DEADLINE, 0)
    assert answer.missing == {0: "overload", 1: "not asked"}
    assert answer.why == SHED_TEXTS[ShedReason.DEADLINE]
    device.socket.send(device.feature(frame))
    assert [each.shed for each in answers(client, 1).values()] == [""]
    status = client.status()
    assert (status.devices[0].sent, status.clients[0].shed) == (1, {ShedReason.DEADLINE: 1})


def test_a_clients_hurry_counts_against_no_device(start: Start) -> None:
    scene = start()
    device, client = scene.greeted(0), connected(scene)
    client.submit(IMAGE, mask=FIRST, deadline_ms=200)
    frame = device.hear(Kind.FRAME)
    assert 0 < frame.deadline_us <= 200_000
    (answer,) = answers(client, 1).values()
    assert (answer.state, answer.shed, answer.missing) == (State.FAILED, "", {0: "deadline", 1: "not asked"})
    assert client.status().devices[0].state is DeviceState.READY
    device.socket.send(device.feature(frame))
    client.submit(IMAGE, mask=FIRST)
    device.socket.send(device.feature(device.hear(Kind.FRAME)))
    assert [each.state for each in answers(client, 1).values()] == [State.PARTIAL]


def test_a_longer_deadline_than_the_fleets_is_the_fleets(start: Start) -> None:
    scene = start()
    device, client = scene.greeted(0), connected(scene)
    client.submit(IMAGE, mask=FIRST, deadline_ms=60_000)
    frame = device.hear(Kind.FRAME)
    assert 19_000_000 < frame.deadline_us <= 20_000_000
    device.socket.send(device.feature(frame))
    answers(client, 1)


def test_who_has_as_many_under_way_as_it_may_is_told_so_at_once(start: Start) -> None:
    scene = start(limits="max_in_flight = 2")
    device, client = scene.greeted(0), connected(scene)
    numbers = [client.submit(IMAGE, mask=FIRST) for _ in range(3)]
    ((number, answer),) = answers(client, 1).items()
    assert (number, answer.shed) == (numbers[2], ShedReason.MAX_IN_FLIGHT)
    for _ in range(2):
        device.socket.send(device.feature(device.hear(Kind.FRAME)))
    assert answers(client, 2).keys() == set(numbers[:2])
    status = client.status()
    (counted,) = status.clients
    assert (counted.shed, counted.max_in_flight, counted.waiting) == ({ShedReason.MAX_IN_FLIGHT: 1}, 2, 0)
    assert status.frames == {"failed": 1, "shed": 1, "partial": 2}
    assert status.events[0].text == (
        "a request was not served: more are under way than max_in_flight of this client in the node's fleet.toml (2); "
        "told once a minute"
    )


def test_a_full_queue_says_so_and_keeps_what_was_there_first(start: Start) -> None:
    scene = start("queue = 1")
    device, client = scene.greeted(0), connected(scene)
    numbers = [client.submit(IMAGE, mask=FIRST) for _ in range(3)]
    ((number, answer),) = answers(client, 1).items()
    assert (number, answer.shed) == (numbers[2], ShedReason.QUEUE)
    hurried = client.submit(IMAGE, mask=FIRST, deadline_ms=15_000)  # has less time, so the other one goes
    ((number, answer),) = answers(client, 1).items()
    assert (number, answer.shed) == (numbers[1], ShedReason.QUEUE)
    for _ in range(2):
        device.socket.send(device.feature(device.hear(Kind.FRAME)))
    assert answers(client, 2).keys() == {numbers[0], hurried}


def test_a_device_that_was_too_slow_for_a_request_is_tried_while_it_is_idle(start: Start) -> None:
    """Else it could never show that it is faster now."""
    scene = start()
    device, client = scene.greeted(0), connected(scene)
    client.submit(IMAGE, mask=FIRST)
    frame = device.hear(Kind.FRAME)
    client.wait(0.6)  # what it takes the device
    device.socket.send(device.feature(frame))
    answers(client, 1)
    client.submit(IMAGE, mask=FIRST, deadline_ms=500)
    device.socket.send(device.feature(device.hear(Kind.FRAME)))
    assert [each.state for each in answers(client, 1).values()] == [State.PARTIAL]
