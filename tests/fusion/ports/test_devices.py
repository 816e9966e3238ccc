"""The node against devices that the test speaks by hand, message by message, over real sockets."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import zmq
from tests.fusion.hand_made_devices import DEADLINE_S, IMAGE, Asked, Device, Scene
from tests.support.starvation import within

from devit_contract.arrays import Float32Array, Float64Array
from devit_contract.artefacts import head as head_module
from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.head import Fusion, FusionHead, SubsetHead
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import InputError, QuestionFailedError
from devit_contract.machine import OverCurrentEvents
from devit_contract.wire.client import Answer, Client
from devit_contract.wire.codec import Dtype, Kind, Message, Reason, State, array_payload, pack, unpack
from devit_contract.wire.messages import (
    Control,
    ControlReply,
    Description,
    PowerLine,
    Refused,
    Telemetry,
    Welcome,
    body,
    read_body,
)
from devit_contract.wire.status import DeviceStatus, HeadStatus
from devit_contract.wire.words import Question


def png(width: int, height: int) -> bytes:
    """Make the beginning of a picture file."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII5xI", 13, b"IHDR", width, height, 0)


MEGAPIXEL = png(1000, 1000)


def trial_of(device: Device, client: Client) -> Message:
    """Ask without being waited for until the device is tried, and give what it was sent."""
    end_s = time.monotonic() + DEADLINE_S
    while True:
        assert client.classify(IMAGE, mask=0b01).missing[0] == "suspended"
        with suppress(zmq.Again):
            while (message := unpack(device.socket.recv(zmq.NOBLOCK))).kind is not Kind.FRAME:
                pass
            return message
        assert time.monotonic() < end_s


Start = Callable[..., Scene]


@pytest.fixture
def start(tmp_path: Path, bundle: Bundle) -> Iterator[Start]:
    """Start a node on loopback; ``serving`` is that table of the fleet file."""
    with ExitStack() as stack:

        def make(
            serving: str = "deadline_ms = 20000",
            keys: dict[str, KeyPair] | None = None,
            head: FusionHead | None = None,
        ) -> Scene:
            def key(name: str) -> str:
                return f'public_key = "{keys[name].public.decode()}"' if keys is not None else ""

            (tmp_path / "fleet.toml").write_text(
                f"""schema = 2
                [node]
                endpoint = "tcp://127.0.0.1:0"
                client_endpoint = "tcp://127.0.0.1:0"
                {key("node")}
                [serving]
                {serving}
                [[device]]
                name = "jetson0"
                submodel = 0
                {key("jetson0")}
                [[device]]
                name = "jetson1"
                submodel = 1
                {key("jetson1")}
                """
                + "".join(
                    f'[[client]]\nname = "{name}"\n{key(name)}\n' for name in keys or () if name.startswith("desk")
                )
            )
            own = keys["node"] if keys is not None else None
            return Scene(stack, bundle, load_fleet(tmp_path / "fleet.toml"), own, head)

        yield make


def status_of(client: Client, name: str) -> DeviceStatus:
    return next(device for device in client.status().devices if device.name == name)


def wait_for(client: Client, name: str, is_so: Callable[[DeviceStatus], bool]) -> DeviceStatus:
    end_s = time.monotonic() + DEADLINE_S
    while not is_so(status := status_of(client, name)):
        assert time.monotonic() < end_s, status
    return status


def test_a_device_is_welcomed_with_its_credit(start: Start) -> None:
    scene = start("credit = 3")
    assert read_body(scene.device(0).greet(), Welcome) == Welcome(3, "float32")
    assert status_of(scene.client(), "jetson0").state == "ready"


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"submodel": 1}, Reason.NAME, "expected submodel 0 as in fleet.toml, found jetson0 with submodel 1"),
        ({"name": "jetson1"}, Reason.NAME, "found jetson1 with submodel 0"),
        ({"model_sha256": "f" * 64}, Reason.BUNDLE, "found graph ffffffffffff"),
        ({"feature_dim": 5}, Reason.BUNDLE, "features of 6"),
        ({"feature_dtypes": ("int4",)}, Reason.BUNDLE, "float32 features"),
    ],
)
def test_a_device_that_does_not_fit_is_refused_with_the_reason(
    start: Start, change: dict[str, object], reason: Reason, said: str
) -> None:
    scene = start()
    device = scene.device(0)
    device.hello = msgspec.structs.replace(device.hello, **change)
    refusal = device.greet()
    assert (refusal.kind, refusal.reason) == (Kind.REFUSED, reason)
    assert said in read_body(refusal, Refused).text
    assert status_of(scene.client(), "jetson0").state == "absent"


def test_a_stranger_is_refused(start: Start) -> None:
    scene = start()
    device = scene.device(0)
    device.hello = msgspec.structs.replace(device.hello, name="jetson9")
    refusal = device.greet()
    assert (refusal.kind, refusal.reason) == (Kind.REFUSED, Reason.NAME)
    assert scene.client().status().unknown_peers == 1


def test_a_message_of_two_parts_is_refused_and_its_feature_not_used(start: Start) -> None:
    scene = start()
    device, client, desk = scene.greeted(0), scene.client(), scene.client()
    asked = Asked(client, mask=0b01)
    frame = device.hear(Kind.FRAME)
    device.socket.send_multipart([device.feature(frame), b"more"])
    wait_for(desk, "jetson0", lambda status: status.rejected == {"frames": 1})
    device.skip(frame, Reason.ENGINE)
    answer = asked.answer()
    assert (answer.state, answer.missing[0]) == (State.FAILED, "engine")


def test_a_body_nested_without_end_is_counted_and_stops_nothing(start: Start) -> None:
    """It is deeper than Python's recursion limit, and sits in a field that nobody reads."""
    scene = start()
    device, client = scene.greeted(0), scene.client()
    endless = b"\x91" * 50_000 + b"\xc0"
    device.say(Kind.HELLO, b"\x81\xa1x" + endless)
    device.say(Kind.CONTROL, b"\x81\xa1x" + endless)
    assert wait_for(client, "jetson0", lambda status: status.rejected.get("body", 0) == 2).state == "ready"


def test_a_feature_before_hello_is_counted_and_not_used(start: Start) -> None:
    scene = start()
    device = scene.device(0)
    device.socket.send(device.feature(Message(Kind.FRAME, frame_id=1)))
    client = scene.client()
    end_s = time.monotonic() + DEADLINE_S
    while client.status().unknown_peers < 1:  # without keys, nobody knows whose it is
        assert time.monotonic() < end_s
    assert client.classify(IMAGE).missing == {0: "absent", 1: "absent"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full(6, np.nan, np.float32), "nonfinite"),
        (np.full(6, -np.inf, np.float32), "nonfinite"),
        (np.full(6, 1e15, np.float32), "implausible"),
        (np.full(6, -1e3, np.float32), "implausible"),
        (np.ones(5, np.float32), "shape"),
        (np.ones((1, 6), np.float32), "shape"),
        (np.ones(6, np.float16), "shape"),
    ],
)
def test_a_feature_that_is_unusable_ends_the_wait_for_it(
    start: Start, values: npt.NDArray[np.float32], reason: str
) -> None:
    scene = start()
    devices, client = [scene.greeted(0), scene.greeted(1)], scene.client()
    asked = Asked(client)
    with within(5):
        devices[0].socket.send(devices[0].feature(devices[0].hear(Kind.FRAME), values))
        devices[1].socket.send(devices[1].feature(devices[1].hear(Kind.FRAME)))
        answer = asked.answer()
    assert (answer.state, answer.mask, answer.missing) == (State.PARTIAL, 0b10, {0: reason})
    assert status_of(client, "jetson0").rejected == {reason: 1}
    told = [event.text for event in client.status().events if event.device == "jetson0"]
    assert f"sent a feature that is not used: {reason}" in told


def test_the_first_feature_counts_and_a_second_one_for_the_same_frame_does_not(start: Start, bundle: Bundle) -> None:
    scene = start()
    devices, client = [scene.greeted(0), scene.greeted(1)], scene.client()
    asked = Asked(client)
    frames = [device.hear(Kind.FRAME) for device in devices]
    devices[0].socket.send(devices[0].feature(frames[0], np.full(6, 2.0, np.float32)))
    devices[0].socket.send(devices[0].feature(frames[0], np.full(6, 9.0, np.float32)))
    # Its own question comes behind both, so both are taken in when this is heard of.
    devices[0].say(Kind.HELLO, b"\xc1")
    wait_for(scene.client(), "jetson0", lambda status: "body" in status.rejected)
    devices[1].socket.send(devices[1].feature(frames[1], np.full(4, 3.0, np.float32)))
    answer = asked.answer()
    golden = bundle.golden()  # the head, read off the golden set: logits = features @ weight + bias
    joined = np.hstack([golden["features.0"], golden["features.1"], np.ones((len(golden["images"]), 1))])
    weights, *_ = np.linalg.lstsq(joined.astype(np.float64), golden["logits"].astype(np.float64), rcond=None)
    expected = np.array([2.0] * 6 + [3.0] * 4 + [1.0]) @ weights
    assert answer.state is State.FULL
    assert answer.logits is not None
    np.testing.assert_allclose(answer.logits, expected, atol=1e-2)


def test_a_stalled_device_is_not_waited_for_until_its_late_answer_has_come(start: Start) -> None:
    scene = start("deadline_ms = 600\ncredit = 1")
    device, client = scene.greeted(0), scene.client()
    first = client.classify(IMAGE, mask=0b01)
    assert (first.state, first.missing[0]) == (State.FAILED, "deadline")
    with within(0.5):
        assert client.classify(IMAGE, mask=0b01).missing[0] == "stalled"
    device.socket.send(device.feature(device.hear(Kind.FRAME)))
    status = wait_for(client, "jetson0", lambda status: status.state == "ready")
    assert (status.late, status.answered, status.in_flight) == (1, 0, 0)
    assert status.missing == {"deadline": 1, "stalled": 1}


def test_a_device_that_introduces_itself_again_owes_nothing_and_is_asked_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that was restarted while its old link was silent: what the old one had in hand will not come."""
    monkeypatch.setattr("devit_fusion.ports.devices._ALIVE_NS", 0)
    scene = start("deadline_ms = 20000\ncredit = 1")
    old, client = scene.greeted(0), scene.client()
    asked = Asked(client, mask=0b01)
    frame = old.hear(Kind.FRAME)
    with within(5):
        new = scene.greeted(0)
        assert asked.answer().missing[0] == "restarted"
        again = Asked(client, mask=0b01)
        second = new.hear(Kind.FRAME)
        assert second.frame_id == frame.frame_id + 1
        new.socket.send(new.feature(second))
        assert again.answer().mask == 0b01


def test_a_second_agent_under_the_name_of_one_that_is_alive_is_refused_and_the_first_goes_on_serving(
    start: Start,
) -> None:
    scene = start()
    first, client = scene.greeted(0), scene.client()
    asked = Asked(client, mask=0b01)
    frame = first.hear(Kind.FRAME)
    refusal = scene.device(0).greet()
    assert (refusal.kind, refusal.reason) == (Kind.REFUSED, Reason.NAME)
    assert "another agent of that name is alive" in read_body(refusal, Refused).text
    first.socket.send(first.feature(frame))
    assert asked.answer().mask == 0b01
    assert status_of(client, "jetson0").links == 1
    assert first.monitor.read() == []


def test_a_device_that_shuts_down_is_asked_nothing_new_and_what_it_has_is_still_used(start: Start) -> None:
    scene = start()
    device, client = scene.greeted(0), scene.client()
    asked = Asked(client, mask=0b01)
    frame = device.hear(Kind.FRAME)
    device.leave()
    device.hear(Kind.LEAVE)
    device.socket.send(device.feature(frame))
    assert asked.answer().mask == 0b01
    assert client.classify(IMAGE, mask=0b01).missing[0] == "leaving"


def test_a_device_that_misses_three_deadlines_is_suspended_and_tried_until_it_is_in_time(start: Start) -> None:
    scene = start("deadline_ms = 400\ncredit = 1")
    device, client = scene.greeted(0), scene.client()
    for _ in range(3):
        assert client.classify(IMAGE, mask=0b01).missing[0] == "deadline"
        device.socket.send(device.feature(device.hear(Kind.FRAME)))  # late
        wait_for(client, "jetson0", lambda status: status.in_flight == 0)
    with within(0.35):
        assert client.classify(IMAGE, mask=0b01).missing[0] == "suspended"
    assert client.status().devices[0].late == 3
    trial = trial_of(device, client)
    device.socket.send(device.feature(trial))
    wait_for(client, "jetson0", lambda status: status.state == "ready")
    texts = [event.text for event in client.status().events if event.device == "jetson0"]
    assert texts[0].startswith("recovered")
    assert texts[1].startswith("suspended")
    asked = Asked(client, mask=0b01)
    device.socket.send(device.feature(device.hear(Kind.FRAME)))
    assert asked.answer().mask == 0b01


def test_a_device_that_says_nothing_for_long_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody holds its route and keeps still, or its loop hangs: it has to notice, and connect again."""
    scene = start()
    device, client = scene.greeted(0), scene.client()
    device.monitor.socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
    with monkeypatch.context() as patch:  # on a busy machine a WELCOME may be under way for longer
        patch.setattr("devit_fusion.ports.devices._SILENCE_NS", 300_000_000)
        device.monitor.socket.recv_multipart()
        wait_for(client, "jetson0", lambda status: status.state == "absent")
    assert device.greet().kind is Kind.WELCOME


def test_features_travel_as_float16_where_the_fleet_says_so(start: Start) -> None:
    scene = start('feature_dtype = "float16"')
    device, client = scene.device(0), scene.client()
    assert device.greet().kind is Kind.REFUSED  # it offers float32 alone
    device.hello = msgspec.structs.replace(device.hello, feature_dtypes=("float32", "float16"))
    welcome = device.greet()
    assert read_body(welcome, Welcome).feature_dtype == "float16"
    asked = Asked(client, mask=0b01)
    device.socket.send(device.feature(device.hear(Kind.FRAME), np.ones(device.dim, np.float16)))  # type: ignore[arg-type]
    assert asked.answer().mask == 0b01


def test_a_frame_does_not_wait_for_devices_whose_links_are_cut(start: Start) -> None:
    """Both leave one after the other, so the second is found while the first is still being looked for."""
    scene = start()
    devices, client = [scene.greeted(0), scene.greeted(1)], scene.client()
    asked = Asked(client)
    for device in devices:
        device.hear(Kind.FRAME)
    with within(5):
        for device in devices:
            device.close()
        answer = asked.answer()
    assert (answer.state, answer.missing) == (State.FAILED, {0: "absent", 1: "absent"})


@pytest.fixture
def keys() -> dict[str, KeyPair]:
    names = ("node", "jetson0", "jetson1", "desk", "desk2")
    return {name: KeyPair(*zmq.curve_keypair()) for name in names}


def test_a_key_under_another_devices_name_is_refused_and_named_and_touches_no_link(
    start: Start, keys: dict[str, KeyPair]
) -> None:
    """Neither by the routing id that it gives itself, which no key goes with, nor by what its HELLO says."""
    scene = start(keys=keys)
    client, node_key = scene.client(keys["desk"]), keys["node"].public
    real = scene.greeted(0, keys=keys["jetson0"], node_key=node_key, name=b"jetson0")
    asked = Asked(client, mask=0b01)
    frame = real.hear(Kind.FRAME)
    silent = scene.device(0, keys=keys["jetson1"], node_key=node_key, name=b"jetson0")
    refusal = scene.device(0, keys=keys["jetson1"], node_key=node_key).greet()
    assert (refusal.kind, refusal.reason) == (Kind.REFUSED, Reason.NAME)
    told = "expected jetson1, whose key this is, found jetson0: correct name or secret_key in agent.toml"
    assert read_body(refusal, Refused).text == told
    real.socket.send(real.feature(frame))
    assert asked.answer().mask == 0b01
    again = Asked(client, mask=0b01)
    real.socket.send(real.feature(real.hear(Kind.FRAME)))
    assert again.answer().mask == 0b01
    status = client.status()
    assert [(device.links, device.rejected) for device in status.devices] == [(1, {}), (0, {"hello": 1})]
    assert ("jetson1", f"refused: {told}") in [(event.device, event.text) for event in status.events]
    assert real.monitor.read() == []
    silent.close()


def test_a_key_has_two_connections_and_one_more_is_shut_at_its_first_word(
    start: Start, keys: dict[str, KeyPair]
) -> None:
    scene = start(keys=keys)
    client, node_key = scene.client(keys["desk"]), keys["node"].public
    real = scene.greeted(0, keys=keys["jetson0"], node_key=node_key)
    for number in range(3):
        more = scene.device(0, keys=keys["jetson0"], node_key=node_key)
        if number == 0:
            assert more.greet().kind is Kind.REFUSED
        else:
            more.say(Kind.HELLO, body(more.hello))
            assert more.monitor.socket.poll(int(DEADLINE_S * 1000))
            more.close()
    asked = Asked(client, mask=0b01)
    real.socket.send(real.feature(real.hear(Kind.FRAME)))
    assert asked.answer().mask == 0b01
    status = client.status()
    assert status.devices[0].links == 1
    text = "3 connections with its key: expected 2 at most"
    assert ("jetson0", text) in [(event.device, event.text) for event in status.events]


def test_a_client_with_too_many_connections_is_told_so_and_served_again_when_it_has_ended_some(
    start: Start, keys: dict[str, KeyPair]
) -> None:
    scene = start(keys=keys)
    clients = [scene.client(keys["desk"]) for _ in range(17)]
    for client in clients[:16]:
        client.status()
    with pytest.raises(InputError, match="desk: expected at most 16 connections with one key, found more: end some"):
        clients[16].status()
    assert scene.client(keys["desk2"]).status().events[0].device == "desk"
    clients[0].close()
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        with suppress(InputError):
            clients[16].status()
            return
    pytest.fail("it is still refused")


def test_requests_of_two_clients_are_told_apart_though_run_and_number_are_the_same(
    start: Start, keys: dict[str, KeyPair]
) -> None:
    scene = start(keys=keys)
    clients = [scene.client(keys[name]) for name in ("desk", "desk2")]
    for client in clients:
        client.status()
        client._run_id = 1
    device = scene.greeted(0, keys=keys["jetson0"], node_key=keys["node"].public)
    asked, frames = [], []
    for client in clients:
        asked.append(Asked(client, mask=0b01))
        frames.append(device.hear(Kind.FRAME))
    for number, frame in enumerate(frames):
        device.socket.send(device.feature(frame, np.full(device.dim, float(number), np.float32)))
    first, second = (one.answer().logits for one in asked)
    assert first is not None
    assert second is not None
    assert np.abs(first - second).max() > 0.1


def test_a_question_that_no_agent_answers_is_refused_at_once(start: Start) -> None:
    """``ping`` is the node's own and has no reply: it must not fill the table of open questions."""
    scene = start()
    scene.greeted(0)
    client = scene.client()
    for _ in range(300):
        with pytest.raises(QuestionFailedError, match="question 'ping': only the node asks it"):
            client._ask(Control(Question.PING, "jetson0"))
        with pytest.raises(InputError, match="Invalid enum value 'sing'"):
            client._ask(Control("sing", "jetson0"))  # type: ignore[arg-type]


def test_a_question_that_an_agent_leaves_open_is_ended_with_the_agents_name(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own time is longer, and would blame the node."""
    monkeypatch.setattr("devit_fusion.questions._PATIENCE_NS", 100_000_000)
    scene = start()
    scene.greeted(0)
    with within(5), pytest.raises(QuestionFailedError, match="jetson0: its agent is connected but does not reply"):
        scene.client().describe("jetson0")


def test_whoever_is_at_the_other_port_is_told_at_once(start: Start) -> None:
    scene = start()
    with within(5), Client(scene.node.endpoint, timeout_s=DEADLINE_S) as client:
        for ask in (client.status, lambda: client.classify(None)):
            with pytest.raises(InputError, match="this is the port of devices: clients connect to client_endpoint"):
                ask()
    refused = read_body(scene.device(0, to_clients_port=True).greet(), Refused)
    assert refused.text == "this is the port of clients: devices connect to endpoint in fleet.toml"


def test_control_codes_in_a_devices_text_do_not_reach_the_client(start: Start) -> None:
    scene = start()
    device, client = scene.greeted(0), scene.client()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.describe, "jetson0")
        question = device.hear(Kind.CONTROL)
        hostile = Description("\x1b[2Jboard", "R36\x9b1m", "engine\n", "", 1, clocks=("\u202ecpu",))
        device.say(Kind.CONTROL, body(ControlReply(description=hostile)), frame_id=question.frame_id)
        shown = asked.result(DEADLINE_S)
    assert shown == Description("\\x1b[2Jboard", "R36\\x9b1m", "engine\\n", "", 1, clocks=("\\u202ecpu",))


def test_a_question_to_a_device_that_leaves_is_answered_with_an_error(start: Start) -> None:
    scene = start()
    device, client = scene.greeted(0), scene.client()

    def leave() -> None:
        device.hear(Kind.CONTROL)
        device.close()

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    with within(5), pytest.raises(QuestionFailedError, match="jetson0: absent"):
        client.mark("jetson0")
    leaving.join(DEADLINE_S)


def test_samples_that_nobody_listens_to_are_stopped_at_the_source(start: Start) -> None:
    scene = start()
    device, client, other = scene.greeted(0), scene.client(), scene.client()
    starter = threading.Thread(target=client.start_sampling, args=("jetson0", 100), daemon=True)
    starter.start()
    question = device.hear(Kind.CONTROL)
    assert read_body(question, Control) == Control(Question.SAMPLE_START, "jetson0", 100)
    device.say(Kind.CONTROL, body(ControlReply()), frame_id=question.frame_id)
    starter.join(DEADLINE_S)
    lines = Telemetry("jetson0", (PowerLine(5, "RAM 1/2MB"),))
    device.say(Kind.TELEMETRY, body(lines))
    end_s = time.monotonic() + DEADLINE_S
    while not (taken := client.take_telemetry()):
        assert time.monotonic() < end_s
    assert (taken, other.take_telemetry()) == ([lines], [])
    client.close()
    device.socket.setsockopt(zmq.RCVTIMEO, 50)
    while time.monotonic() < end_s:
        device.say(Kind.TELEMETRY, body(lines))
        try:
            told = device.hear(Kind.CONTROL)
        except zmq.Again:
            continue
        assert read_body(told, Control).question is Question.SAMPLE_STOP
        return
    pytest.fail("the device was not told to stop")


def test_whoever_samples_a_device_first_is_told_when_another_does_and_cannot_end_it(start: Start) -> None:
    scene = start()
    device, first, second = scene.greeted(0), scene.client(), scene.client()
    for client in (first, second):
        starter = threading.Thread(target=client.start_sampling, args=("jetson0", 100), daemon=True)
        starter.start()
        device.say(Kind.CONTROL, body(ControlReply()), frame_id=device.hear(Kind.CONTROL).frame_id)
        starter.join(DEADLINE_S)
    end_s = time.monotonic() + DEADLINE_S
    while not (told := first.take_telemetry()):
        assert time.monotonic() < end_s
    assert told[0].ended == "jetson0: another client samples it now"
    first.stop_sampling("jetson0")  # answered by the node alone
    lines = Telemetry("jetson0", (PowerLine(5, "RAM 1/2MB"),))
    device.say(Kind.TELEMETRY, body(lines))
    while not (taken := second.take_telemetry()):
        assert time.monotonic() < end_s
    assert taken == [lines]


def test_too_many_requests_are_refused_at_once_and_every_one_is_answered(start: Start) -> None:
    """Two are with the device, two wait, four are too many."""
    scene = start("deadline_ms = 20000\ncredit = 2\nqueue = 2")
    device, client = scene.greeted(0), scene.client()
    answers: list[Answer] = []

    def ask() -> None:
        answers.extend(client.stream([IMAGE] * 8, in_flight=8, mask=0b01))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    held = [device.hear(Kind.FRAME) for _ in range(2)]
    other = scene.client()
    end_s = time.monotonic() + DEADLINE_S
    while other.status().frames.get("failed", 0) < 4:
        assert time.monotonic() < end_s
    for frame in held:
        device.socket.send(device.feature(frame))
    for _ in range(2):
        device.socket.send(device.feature(device.hear(Kind.FRAME)))
    asking.join(DEADLINE_S)
    assert [answer.state for answer in answers] == [State.PARTIAL] * 4 + [State.FAILED] * 4
    assert {answer.missing[0] for answer in answers[4:]} == {"overload"}


def test_clients_that_talk_rubbish_are_refused_and_stop_nothing(start: Start) -> None:
    scene = start()
    client = scene.client()
    for data in (
        b"",
        b"rubbish",
        pack(Message(Kind.HELLO)),
        pack(
            Message(Kind.CONTROL, Dtype.BODY, payload=b"\x82\xa8question\xa6status\xa1x" + b"\x91" * 50_000 + b"\xc0")
        ),
        pack(Message(Kind.REQUEST, Dtype.FLOAT32, (2,), bytes(8))),
        pack(Message(Kind.REQUEST, *array_payload(IMAGE), mask=0b100)),
    ):
        client._link._links[0].socket.send(data)
        assert unpack(client._link._links[0].socket.recv()).kind is Kind.REFUSED
    client._link._links[0].socket.send_multipart([pack(Message(Kind.REQUEST, *array_payload(IMAGE))), b"more"])
    assert unpack(client._link._links[0].socket.recv()).reason is Reason.REQUEST
    assert client.status().frames == {}


def test_requests_that_meet_a_node_just_started_wait_for_its_devices(start: Start) -> None:
    """As long as they waited for those, their deadline does not count."""
    scene = start("deadline_ms = 500\nstartup_grace_ms = 20000")
    client = scene.client()
    client.status()
    asked = Asked(client)
    first = scene.greeted(0)
    first.socket.setsockopt(zmq.RCVTIMEO, 600)
    with pytest.raises(zmq.Again):
        first.hear(Kind.FRAME)
    first.socket.setsockopt(zmq.RCVTIMEO, round(1000 * DEADLINE_S))
    second = scene.greeted(1)
    for device in (first, second):
        device.socket.send(device.feature(device.hear(Kind.FRAME)))
    answer = asked.answer()
    assert answer.state is State.FULL
    assert answer.wait_us >= 600_000


def test_requests_wait_for_no_device_that_they_do_not_ask_and_for_none_that_was_there_once(start: Start) -> None:
    scene = start("deadline_ms = 20000\nstartup_grace_ms = 20000")
    first, client = scene.greeted(0), scene.client()
    with within(5.0):
        asked = Asked(client, mask=0b01)
        first.socket.send(first.feature(first.hear(Kind.FRAME)))
        assert asked.answer().state is State.PARTIAL
        scene.greeted(1).close()
        wait_for(client, "jetson1", lambda status: status.state == "absent")
        asked = Asked(client)
        first.socket.send(first.feature(first.hear(Kind.FRAME)))
        assert asked.answer().missing == {1: "absent"}


def test_a_device_that_does_not_come_is_waited_for_once_and_no_longer_than_the_fleet_file_says(start: Start) -> None:
    scene = start("deadline_ms = 20000\nstartup_grace_ms = 300")
    client = scene.client()
    with within(5.0):
        answers = [client.classify(IMAGE) for _ in range(2)]
    assert [answer.missing for answer in answers] == [{0: "absent", 1: "absent"}] * 2
    assert answers[0].wait_us <= 2_000_000
    assert answers[1].wait_us < 300_000


def test_a_device_whose_every_second_feature_is_late_is_suspended(start: Start) -> None:
    scene = start("deadline_ms = 200\ncredit = 1")
    device, client = scene.greeted(0), scene.client()
    for turn in range(20):
        asked = Asked(client, mask=0b01)
        frame = device.hear(Kind.FRAME)
        if turn % 2:
            assert asked.answer().missing[0] == "deadline"
        device.socket.send(device.feature(frame))
        asked.answer()
        if wait_for(client, "jetson0", lambda status: status.in_flight == 0).state == "suspended":
            break
    assert turn <= 7
    text = client.status().events[0].text
    assert text == "suspended: too many of its last frames took it more than 180 ms"


def test_only_the_nodes_own_clock_says_how_long_a_device_took(start: Start) -> None:
    scene = start()
    device, client = scene.greeted(0), scene.client()
    most = 2**32 - 1
    with within(5):
        for dispatch_ns in (0, 2**64 - 1):
            asked = Asked(client, mask=0b01)
            feature = unpack(device.feature(device.hear(Kind.FRAME)))
            lie = {"dispatch_ns": dispatch_ns, "queue_us": most, "decode_us": most, "inference_us": most}
            device.socket.send(pack(msgspec.structs.replace(feature, **lie)))
            (timing,) = asked.answer().devices
            assert 0 < timing.arrival_us <= 5_000_000
            assert max(timing.queue_us, timing.decode_us, timing.inference_us) <= timing.arrival_us
        status = status_of(client, "jetson0")
    for histogram in (status.round_trip, status.inference, status.queue):
        assert histogram is not None
        assert sum(histogram.counts) == 2
        assert 0 < histogram.sum_s < 5


def test_an_answer_that_is_not_finite_has_failed_and_says_why(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle with such numbers is refused at start, so the fault is put into the head of a subset itself."""
    fuse = Fusion.logits

    def broken(fusion: Fusion, features: Mapping[int, Float32Array]) -> Float32Array:
        return fuse(fusion, features) * np.float32(1 if len(features) == 2 else np.nan)

    monkeypatch.setattr(Fusion, "logits", broken)
    scene = start()
    devices, client = [scene.greeted(0), scene.greeted(1)], scene.client()
    asked = Asked(client)
    for device in devices:
        device.socket.send(device.feature(device.hear(Kind.FRAME)))
    assert asked.answer().state is State.FULL
    asked = Asked(client, mask=0b01)
    devices[0].socket.send(devices[0].feature(devices[0].hear(Kind.FRAME)))
    answer = asked.answer()
    assert (answer.state, answer.mask, answer.logits) == (State.FAILED, 0, None)
    assert answer.missing == {0: "fusion", 1: "not asked"}
    assert "an answer was not finite" in client.status().events[0].text


def test_a_picture_too_large_to_decode_in_time_is_refused_before_a_device_sees_it(start: Start) -> None:
    scene = start("deadline_ms = 20000\nmax_pixels = 1000000")
    device, client = scene.greeted(0), scene.client()
    head = png(8000, 8000)
    with pytest.raises(
        InputError, match="expected at most 1000000 pixels, before and after resizing, found 8000 x 8000"
    ):
        client.classify(head, mask=0b01)
    with pytest.raises(InputError, match="expected at most 1000000 bytes, one a pixel, found 1000001: send it as JPEG"):
        client.classify(bytes(1_000_001), mask=0b01)
    status = client.status()
    assert (status.refused_requests, status.devices[0].sent) == ({"picture": 2}, 0)
    asked = Asked(client, mask=0b01)
    device.socket.send(device.feature(device.hear(Kind.FRAME)))
    assert asked.answer().mask == 0b01


def test_a_file_is_refused_where_the_last_one_of_its_client_took_too_long_to_decode(start: Start) -> None:
    scene = start("deadline_ms = 60")
    device, client = scene.greeted(0), scene.client()
    asked = Asked(client, mask=0b01, picture=MEGAPIXEL)
    frame = device.hear(Kind.FRAME)
    assert asked.answer().missing[0] == "deadline"
    feature = msgspec.structs.replace(
        unpack(device.feature(frame)), decode_us=2**32 - 1
    )  # as long as it can have taken
    device.socket.send(pack(feature))
    assert wait_for(client, "jetson0", lambda status: status.in_flight == 0).state == "ready"
    with pytest.raises(InputError, match="that devices decode in a third of the deadline, 20 ms, found one that takes"):
        client.classify(MEGAPIXEL, mask=0b01)
    assert client.classify(IMAGE, mask=0b10).missing == {0: "not asked", 1: "absent"}


def test_a_flood_of_questions_reaches_a_device_some_at_a_time(start: Start) -> None:
    scene = start()
    device, client = scene.greeted(0), scene.client()
    client.status()
    question = Message(Kind.CONTROL, Dtype.BODY, payload=body(Control(Question.DESCRIBE, "jetson0")))
    for number in range(1, 101):
        client._link._links[0].socket.send(pack(msgspec.structs.replace(question, frame_id=number)))
    for _ in range(92):
        reply = read_body(unpack(client._link._links[0].socket.recv()), ControlReply)
        assert reply.error == "jetson0: 8 questions of this client wait there: wait for their replies"
    for _ in range(8):
        device.say(Kind.CONTROL, body(ControlReply()), frame_id=device.hear(Kind.CONTROL).frame_id)
        assert read_body(unpack(client._link._links[0].socket.recv()), ControlReply).error == ""
    asked = Asked(client, mask=0b01)
    frame = device.hear(Kind.FRAME, Kind.CONTROL)
    assert frame.kind is Kind.FRAME  # no other question came before it
    device.socket.send(device.feature(frame))
    assert asked.answer().mask == 0b01


@pytest.fixture
def slow_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let the head of jetson0 alone take until the event is set."""
    may_end, compute = threading.Event(), FusionHead.subset

    def slow(head: FusionHead, mask: int, inverse: Float64Array | None = None) -> SubsetHead:
        if mask == 0b01:
            assert may_end.wait(DEADLINE_S)
        return compute(head, mask, inverse)

    monkeypatch.setattr(head_module, "_QUICK_MACS", -1)
    monkeypatch.setattr(head_module, "_MAX_INVERTED", 0)  # no head but the full one is there at start
    monkeypatch.setattr(FusionHead, "subset", slow)
    yield may_end
    may_end.set()


def test_frames_of_an_unusual_subset_wait_for_its_head_and_hold_no_other_up(
    start: Start, slow_head: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devit_fusion.frames.answers._HEAD_NS", round(DEADLINE_S * 1e9))
    scene = start()
    devices, client, other = [scene.greeted(0), scene.greeted(1)], scene.client(), scene.client()
    unusual = Asked(client, mask=0b01)
    devices[0].socket.send(devices[0].feature(devices[0].hear(Kind.FRAME)))
    asked = Asked(other)
    for device in devices:
        device.socket.send(device.feature(device.hear(Kind.FRAME)))
    assert asked.answer().state is State.FULL
    assert other.status().heads == HeadStatus(waiting=1)
    slow_head.set()
    answer = unusual.answer()
    assert (answer.state, answer.mask) == (State.PARTIAL, 0b01)
    assert answer.fuse_us > 0
    heads = other.status().heads
    assert (heads.kept, heads.kept_bytes > 0, heads.computed, heads.waiting) == (1, True, 1, 0)


def test_a_frame_whose_head_does_not_come_in_time_has_failed_and_says_why(
    start: Start, slow_head: threading.Event
) -> None:
    scene = start()
    device, client = scene.greeted(0), scene.client()
    asked = Asked(client, mask=0b01)
    device.socket.send(device.feature(device.hear(Kind.FRAME)))
    answer = asked.answer()
    assert (answer.state, answer.missing) == (State.FAILED, {0: "fusion", 1: "not asked"})
    assert client.status().events[0].text == "the head of a subset of devices was not computed in time: ask again"


def test_the_status_has_the_over_current_events_that_a_device_told_last(start: Start) -> None:
    """With the reply to a ping. Replies to other questions say nothing of them; a new link begins with nothing."""
    scene = start()
    device, client = scene.device(0), scene.client()
    device.greet()
    assert status_of(client, "jetson0").over_current is None
    told = OverCurrentEvents(1, 0, 37)
    for reply in (ControlReply(over_current=told), ControlReply()):
        device.say(Kind.CONTROL, body(reply))
    end_s = time.monotonic() + DEADLINE_S
    while status_of(client, "jetson0").over_current != told:
        assert time.monotonic() < end_s
    device.boot_id += 1
    device.greet()
    assert status_of(client, "jetson0").over_current is None
