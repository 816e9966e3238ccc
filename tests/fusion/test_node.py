"""A real node with real agents as processes, on real sockets, with faults made for real."""

from __future__ import annotations

import itertools
import os
import secrets
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from tests.support.cell import TINY, MakeCell, tiny_devices

import devit_contract.wire.client_link as client_link
from devit_contract.artefacts.keys import load_keys, new_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.artefacts.revoked import restore, revoke, revoked_path
from devit_contract.errors import (
    FrameFailedError,
    InputError,
    LinkError,
    NoAnswerError,
    QuestionFailedError,
    RefusedError,
)
from devit_contract.wire.client import Answer, Client
from devit_contract.wire.codec import Dtype, Kind, Message, State, array_payload, pack, unpack
from devit_contract.wire.messages import Control, ControlReply, Hello, body, read_body
from devit_contract.wire.sockets import connect_dealer, open_context
from devit_contract.wire.status import NodeStatus
from devit_contract.wire.words import Question
from devit_pipeline.local_cell import LocalCell

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[LocalCell]:
    """A healthy cell, for tests that leave it so."""
    with LocalCell(TINY, tmp_path_factory.mktemp("cell"), tiny_devices(), store=store) as running:
        yield running


@pytest.fixture(scope="module")
def open_cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCell]:
    """A cell in which the place of jetson1 is free, for tests that take it and leave it."""
    with LocalCell(TINY, tmp_path_factory.mktemp("open"), tiny_devices("null"), deadline_ms=1000) as running:
        running.kill("jetson1")
        yield running


def states(client: Client) -> dict[str, str]:
    return {device.name: device.state for device in client.status().devices}


def rejected(client: Client, name: str) -> dict[str, int]:
    (found,) = (device.rejected for device in client.status().devices if device.name == name)
    return found


def wait_until(client: Client, is_so: Callable[[NodeStatus], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not is_so(status := client.status()):
        assert time.monotonic() < end_s, status


def ask_until(client: Client, picture: np.ndarray, wanted: Callable[[Answer], bool]) -> Answer:  # type: ignore[type-arg]
    """Ask again and again until an answer is as wanted."""
    end_s = time.monotonic() + DEADLINE_S
    while True:
        answer = client.classify(picture)
        if wanted(answer):
            return answer
        assert time.monotonic() < end_s, answer


def collected(client: Client, number: int) -> Answer:
    """Wait for the answer to what was submitted under a number."""
    ((found, answer),) = client.collect(DEADLINE_S)
    assert found == number
    assert isinstance(answer, Answer)
    return answer


def test_answers_are_the_golden_logits(cell: LocalCell, bundle: Bundle) -> None:
    golden = bundle.golden()
    with cell.client() as client:
        answers = list(client.stream(golden["images"]))
    assert {answer.state for answer in answers} == {State.FULL}
    logits = np.array([answer.logits for answer in answers])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)


def test_a_subset_of_devices_can_be_asked(cell: LocalCell, bundle: Bundle) -> None:
    with cell.client() as client:
        answer = client.classify(bundle.golden()["images"][0], mask=0b10)
    assert (answer.state, answer.mask, answer.missing) == (State.PARTIAL, 0b10, {0: "not asked"})


def test_a_killed_agent_costs_no_answer_and_no_deadline(make_cell: MakeCell, bundle: Bundle) -> None:
    """Every frame is answered, partial with the right mask, no slower by the median, and none waits."""
    cell = make_cell(deadline_ms=20_000)
    pictures = itertools.islice(itertools.cycle(bundle.golden()["images"]), 1500)
    answers: list[Answer] = []
    with cell.client() as client:
        for answer in client.stream(pictures):
            answers.append(answer)
            if len(answers) == 500:
                cell.kill("jetson2")
    assert len(answers) == 1500
    kinds = Counter((answer.state, answer.mask) for answer in answers)
    assert set(kinds) == {(State.FULL, 0b11), (State.PARTIAL, 0b01)}
    assert kinds[State.PARTIAL, 0b01] >= 950
    assert {why for answer in answers[600:] for why in answer.missing.values()} == {"absent"}
    assert max(answer.latency_s for answer in answers) < 10
    latencies_s = [answer.latency_s for answer in answers]
    assert np.median(latencies_s[500:]) <= 2 * np.median(latencies_s[:500]) + 0.05  # other programs come and go


def test_a_killed_agent_that_starts_again_serves_again(make_cell: MakeCell, bundle: Bundle) -> None:
    cell = make_cell()
    picture = bundle.golden()["images"][0]
    with cell.client() as client:
        cell.kill("jetson1")
        ask_until(client, picture, lambda answer: answer.mask == 0b10)
        cell.start_agents(["jetson1"])
        assert client.classify(picture).state is State.FULL


def test_a_hung_agent_costs_one_deadline_and_then_none_and_serves_again_when_it_wakes(
    make_cell: MakeCell, bundle: Bundle
) -> None:
    cell = make_cell(deadline_ms=2000, credit=1)
    picture = bundle.golden()["images"][0]
    with cell.client() as client:
        assert client.classify(picture).state is State.FULL
        os.kill(cell.pid("jetson1"), signal.SIGSTOP)
        try:
            first, second = client.classify(picture), client.classify(picture)
            assert (first.state, first.missing) == (State.PARTIAL, {0: "deadline"})
            assert first.latency_s >= 1.99
            assert second.missing in ({0: "stalled"}, {0: "absent"})
            assert second.latency_s < 1.8
        finally:
            os.kill(cell.pid("jetson1"), signal.SIGCONT)
        ask_until(client, picture, lambda answer: answer.state is State.FULL)


def test_agents_come_back_to_a_node_that_was_restarted(make_cell: MakeCell, bundle: Bundle) -> None:
    cell = make_cell()
    cell.kill("node")
    cell.start_node()
    with cell.client() as client:
        ask_until(client, bundle.golden()["images"][0], lambda answer: answer.state is State.FULL)


def test_fewer_features_than_min_devices_are_a_failed_frame_without_logits(make_cell: MakeCell, bundle: Bundle) -> None:
    cell = make_cell(min_devices=2)
    picture = bundle.golden()["images"][0]
    with cell.client() as client:
        cell.kill("jetson1")
        answer = ask_until(client, picture, lambda answer: answer.mask == 0b10)
    assert (answer.state, answer.logits) == (State.FAILED, None)
    with pytest.raises(FrameFailedError, match="jetson1: absent"):
        answer.probabilities()


def test_requests_beyond_the_queue_are_refused_at_once_and_none_is_lost(make_cell: MakeCell, bundle: Bundle) -> None:
    cell = make_cell(engine="paced:20", queue=8, credit=1)
    pictures = [bundle.golden()["images"][0]] * 60
    with cell.client() as client:
        answers = list(client.stream(pictures, in_flight=60))
    counted = Counter(answer.state for answer in answers)
    assert counted.total() == 60
    assert counted[State.FAILED] > 0
    assert counted[State.FULL] >= 9
    shed = [answer for answer in answers if answer.state is State.FAILED]
    assert {why for answer in shed for why in answer.missing.values()} == {"overload"}


def test_requests_whose_time_is_over_when_the_node_gets_to_them_are_answered_all_the_same(
    make_cell: MakeCell, bundle: Bundle
) -> None:
    cell = make_cell(deadline_ms=1000, credit=1)
    picture = bundle.golden()["images"][0]
    stopped = [cell.pid(name) for name in ("jetson1", "jetson2", "node")]
    with cell.client() as client:
        assert client.classify(picture).state is State.FULL
        for pid in stopped[:2]:
            os.kill(pid, signal.SIGSTOP)
        numbers = [client.submit(picture) for _ in range(10)]
        assert client.status().waiting_requests == 9  # one is with the agents
        os.kill(stopped[2], signal.SIGSTOP)
        assert client.collect(1.1) == []
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        answers = {}
        end_s = time.monotonic() + DEADLINE_S
        while len(answers) < 10:
            assert time.monotonic() < end_s
            answers.update(client.collect(1.0))
        late = [answers[number] for number in numbers[1:]]
        assert all(isinstance(answer, Answer) and answer.state is State.FAILED for answer in late)
        assert {why for answer in late for why in answer.missing.values()} <= {"overload", "stalled"}  # type: ignore[union-attr]
        ask_until(client, picture, lambda answer: answer.state is State.FULL)


def test_an_image_of_the_wrong_shape_is_refused_in_one_line(cell: LocalCell) -> None:
    with cell.client() as client:
        with pytest.raises(InputError, match=r"expected uint8 \(6, 8, 1\) or a picture file, found uint8 \(5, 5, 1\)"):
            client.classify(np.zeros((5, 5, 1), np.uint8))
        assert client.classify(np.zeros((6, 8, 1), np.uint8)).state is State.FULL


def test_a_picture_file_that_no_agent_can_decode_is_a_failed_frame_that_says_so(cell: LocalCell) -> None:
    with cell.client() as client:
        answer = client.classify(b"no picture")
    assert (answer.state, answer.missing) == (State.FAILED, {0: "decode", 1: "decode"})


def test_an_unknown_device_is_named_with_those_that_are_known(cell: LocalCell) -> None:
    with (
        cell.client() as client,
        pytest.raises(QuestionFailedError, match="expected one of jetson1, jetson2"),
    ):
        client.describe("jetson9")


def test_a_client_whose_key_is_not_listed_is_refused(
    cell: LocalCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the third handshake of many; the first is enough here, as each costs seconds."""
    monkeypatch.setattr(client_link, "_FAILURES_TO_REFUSE", 1)
    stranger = new_keys(tmp_path / "stranger", "stranger")
    with (
        Client.of_fleet(cell.fleet, stranger, timeout_s=10) as client,
        pytest.raises(RefusedError, match="the handshake failed"),
    ):
        client.status()


class LyingAgent:
    """A device with a valid key that speaks the wire by hand."""

    def __init__(self, cell: LocalCell, bundle: Bundle, name: str = "jetson1", *, key_of: str = "jetson1") -> None:
        self._opened = open_context()
        node = cell.fleet.node
        self.boot_id = secrets.randbits(64)
        self.run_id = 0
        self.socket, self.monitor = connect_dealer(
            self._opened.__enter__(),
            node.endpoint,
            keys=load_keys(cell.folder / "keys" / f"{key_of}.key_secret"),
            node_key=node.public_key.encode(),
            max_bytes=1 << 20,
            events=zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED,
        )
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        self.socket.setsockopt(zmq.SNDTIMEO, 20_000)
        digest = bundle.manifest.file("submodel", device=0, variant="fp32").sha256
        self.hello = Hello(name, 0, bundle.manifest.submodels[0].output_dim, digest, "lies", ("float32",), "0")

    def greet(self) -> Message:
        self.send(Message(Kind.HELLO, Dtype.BODY, payload=body(self.hello), engine_revision=7, boot_id=self.boot_id))
        answer = self.receive(Kind.WELCOME, Kind.REFUSED)
        self.run_id = answer.run_id
        return answer

    def send(self, message: Message) -> None:
        self.socket.send(pack(message))

    def receive(self, *kinds: Kind) -> Message:
        while True:
            message = unpack(self.socket.recv())
            if message.kind in kinds:
                return message

    def feature(self, frame: Message, feature: np.ndarray, **changes: object) -> Message:  # type: ignore[type-arg]
        dtype, dims, payload = array_payload(feature)
        message = Message(
            Kind.FEATURE, dtype, dims, bytes(payload), 0, 7, run_id=self.run_id, frame_id=frame.frame_id,
            boot_id=self.boot_id, dispatch_ns=frame.dispatch_ns,
        )  # fmt: skip
        return msgspec.structs.replace(message, **changes)  # type: ignore[arg-type]

    def close(self) -> None:
        self._opened.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"engine_revision": 8}, "engine"),
        ({"run_id": 12345}, "run"),
        ({"boot_id": 12345}, "boot"),
        ({"dims": (3, 2)}, "shape"),
        ({"kind": Kind.ANSWER}, "kind"),
    ],
)
def test_a_feature_that_lies_is_counted_and_never_used(
    open_cell: LocalCell, bundle: Bundle, lie: dict[str, object], reason: str
) -> None:
    liar = LyingAgent(open_cell, bundle)
    try:
        assert liar.greet().kind is Kind.WELCOME
        with open_cell.client() as client:
            before = rejected(client, "jetson1")
            number = client.submit(np.zeros((6, 8, 1), np.uint8))
            frame = liar.receive(Kind.FRAME)
            liar.send(liar.feature(frame, np.ones(6, np.float32), **lie))
            answer = collected(client, number)
            assert (answer.state, answer.mask) == (State.PARTIAL, 0b10)
            assert rejected(client, "jetson1") == before | {reason: before.get(reason, 0) + 1}
    finally:
        liar.close()


def test_a_feature_that_is_no_number_is_counted_and_never_used(open_cell: LocalCell, bundle: Bundle) -> None:
    liar = LyingAgent(open_cell, bundle)
    try:
        liar.greet()
        with open_cell.client() as client:
            client.status()  # connected, so that nothing has to be waited for
            number = client.submit(np.zeros((6, 8, 1), np.uint8))
            liar.send(liar.feature(liar.receive(Kind.FRAME), np.full(6, np.nan, np.float32)))
            assert collected(client, number).missing == {0: "nonfinite"}
    finally:
        liar.close()


def test_a_device_under_anothers_name_is_refused_by_its_key(open_cell: LocalCell, bundle: Bundle) -> None:
    """jetson2's key opens the door, but not as jetson1: else one device could answer for another."""
    liar = LyingAgent(open_cell, bundle, "jetson1", key_of="jetson2")
    try:
        refusal = liar.greet()
        assert refusal.kind is Kind.REFUSED
        assert b"whose key this is, found jetson1" in bytes(refusal.payload)
        with open_cell.client() as client:
            assert states(client)["jetson1"] == "absent"
    finally:
        liar.close()


def test_a_device_with_another_bundle_is_refused_with_both_digests(open_cell: LocalCell, bundle: Bundle) -> None:
    liar = LyingAgent(open_cell, bundle)
    try:
        liar.hello = msgspec.structs.replace(liar.hello, model_sha256="f" * 64)
        refusal = liar.greet()
        assert refusal.kind is Kind.REFUSED
        assert b"found graph ffffffffffff" in bytes(refusal.payload)
    finally:
        liar.close()


def test_rubbish_from_a_device_or_a_client_stops_nothing(make_cell: MakeCell, bundle: Bundle) -> None:
    cell = make_cell(engine="null")
    liar = LyingAgent(cell, bundle, "jetson2", key_of="jetson2")
    generator = np.random.default_rng(0)
    try:
        for size in (0, 1, 95, 96, 500):
            liar.socket.send(generator.bytes(size))
        liar.socket.send_multipart([b"two", b"parts"])
        with cell.client() as client:
            client.status()
            client._link._links[0].socket.send(b"rubbish")
            assert client.classify(np.zeros((6, 8, 1), np.uint8)).mask & 0b01
    finally:
        liar.close()


def test_a_flood_of_questions_costs_one_description_of_the_node_a_turn(cell: LocalCell) -> None:
    question = Message(Kind.CONTROL, Dtype.BODY, payload=body(Control(Question.STATUS)))
    with cell.client() as client:
        client.status()
        socket = client._link._links[0].socket
        os.kill(cell.pid("node"), signal.SIGSTOP)
        try:
            for number in range(64):
                socket.send(pack(msgspec.structs.replace(question, frame_id=number)))
        finally:
            os.kill(cell.pid("node"), signal.SIGCONT)
        socket.setsockopt(zmq.RCVTIMEO, round(1000 * DEADLINE_S))
        uptimes = set()
        for number in range(64):
            answer = unpack(socket.recv())
            assert answer.frame_id == number
            reply = read_body(answer, ControlReply)
            assert reply.status is not None
            uptimes.add(reply.status.uptime_s)
    assert len(uptimes) <= 16


def test_a_sampler_ends_when_whoever_asked_for_it_has_gone(make_cell: MakeCell) -> None:
    """A profiler that was killed tells no agent to stop: the node does."""
    cell = make_cell(engine="null", tegrastats=(sys.executable, "-m", "devit_profiling.simulator.program"))
    agent = cell.pid("jetson1")
    with cell.client() as client:
        client.start_sampling("jetson1", 100)
        (sampler,) = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        pidfd = os.pidfd_open(int(sampler))
        try:
            while not client.take_telemetry():
                client.wait(0.1)
            client.close()
            ended, _, _ = select.select([pidfd], [], [], DEADLINE_S)
        finally:
            os.close(pidfd)
    assert ended


def test_a_revoked_device_is_cut_off_while_it_serves_and_let_in_again_when_that_is_undone(
    make_cell: MakeCell, bundle: Bundle
) -> None:
    cell = make_cell(engine="null")
    picture = bundle.golden()["images"][0]
    path = revoked_path(cell.fleet_path)
    key = cell.fleet.find_device("jetson1").public_key.encode()
    with cell.client() as client:
        assert client.classify(picture).state is State.FULL
        revoke(path, key, "jetson1")
        answers = [ask_until(client, picture, lambda answer: answer.mask == 0b10)]
        refused = client.status().refused_handshakes
        end_s = time.monotonic() + DEADLINE_S
        while client.status().refused_handshakes == refused:  # it knocks, and stays outside
            assert time.monotonic() < end_s
            answers.append(client.classify(picture))
        assert {answer.mask for answer in answers} == {0b10}
        assert any(event.text == "its key was revoked" for event in client.status().events)
        restore(path, key)
        ask_until(client, picture, lambda answer: answer.state is State.FULL)


def test_a_revoked_key_loses_every_connection_whatever_it_calls_itself(make_cell: MakeCell, bundle: Bundle) -> None:
    """One is refused under another's name, one has shaken hands and says nothing, one serves."""
    cell = make_cell(engine="null")
    liars = [LyingAgent(cell, bundle, "jetson1", key_of="jetson2") for _ in range(2)]
    try:
        assert liars[0].greet().kind is Kind.REFUSED
        for liar in liars:
            assert liar.monitor.socket.poll(round(1000 * DEADLINE_S))
            assert [event.kind for event in liar.monitor.read()] == [zmq.EVENT_HANDSHAKE_SUCCEEDED]
        revoke(revoked_path(cell.fleet_path), cell.fleet.find_device("jetson2").public_key.encode(), "jetson2")
        for liar in liars:
            assert liar.monitor.socket.poll(round(1000 * DEADLINE_S))
            assert [event.kind for event in liar.monitor.read()] == [zmq.EVENT_DISCONNECTED]
        with cell.client() as client:
            assert client.classify(bundle.golden()["images"][0]).mask == 0b01
    finally:
        for liar in liars:
            liar.close()


def test_a_revoked_client_is_cut_off_though_it_only_listens(make_cell: MakeCell, bundle: Bundle) -> None:
    cell = make_cell(engine="null")
    path = revoked_path(cell.fleet_path)
    with cell.client(timeout_s=3) as client:
        assert client.classify(bundle.golden()["images"][0]).state is State.FULL
        revoke(path, cell.fleet.client[0].public_key.encode(), "client")
        end_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < end_s:
            try:
                client.status()
            except LinkError:
                return
    pytest.fail("it is still let in")


def test_a_node_does_not_start_on_a_damaged_list_of_revoked_keys(make_cell: MakeCell) -> None:
    cell = make_cell(engine="null")
    cell.kill("node")
    revoked_path(cell.fleet_path).write_text("nonsense\n")
    with pytest.raises(NoAnswerError, match="revoked_keys"):
        cell.start_node()


def test_requests_are_answered_once_each_though_the_node_is_killed_meanwhile(
    make_cell: MakeCell, bundle: Bundle
) -> None:
    cell = make_cell(engine="paced:5", queue=1000)
    picture = bundle.golden()["images"][0]
    with cell.client() as client:
        client.status()
        numbers = {client.submit(picture) for _ in range(200)}
        answered = [number for number, _ in client.collect(DEADLINE_S)]
        cell.kill("node")
        cell.start_node()
        end_s = time.monotonic() + DEADLINE_S
        while len(answered) < 200:
            assert time.monotonic() < end_s
            for number, answer in client.collect(1.0):
                assert isinstance(answer, Answer)
                answered.append(number)
    assert sorted(answered) == sorted(numbers)


def test_a_client_that_asks_all_it_can_takes_nothing_from_one_that_asks_now_and_then(
    make_cell: MakeCell, bundle: Bundle
) -> None:
    """Together they ask for more than the devices can do; none of these is blamed for it."""
    cell = make_cell(engine="paced:20", deadline_ms=300, credit=4)
    picture = bundle.golden()["images"][0]
    is_over = threading.Event()
    bulk_states: Counter[State] = Counter()

    def pictures() -> Iterator[np.ndarray]:  # type: ignore[type-arg]
        while not is_over.is_set():
            yield picture

    def ask_all() -> None:
        with cell.client() as bulk:
            for answer in bulk.stream(pictures(), in_flight=64):
                bulk_states[answer.state] += 1

    asking = threading.Thread(target=ask_all, daemon=True)
    with cell.client() as camera:
        camera.status()
        asking.start()
        wait_until(camera, lambda status: status.waiting_requests > 20)
        answers = [camera.classify(picture)]
        for _ in range(15):
            camera.wait(0.05)
            answers.append(camera.classify(picture))
        is_over.set()
        asking.join(DEADLINE_S)
        status = camera.status()
    assert {answer.state for answer in answers} == {State.FULL}
    assert bulk_states[State.FULL] > 20
    assert [event.text for event in status.events if "suspended" in event.text] == []
    (client,) = status.clients
    assert client.name == "client"
    assert client.frames["full"] == bulk_states[State.FULL] + len(answers)
