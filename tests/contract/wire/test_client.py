"""The client against a running cell, and against what is none."""

from __future__ import annotations

import io
import socket as plain_socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import zmq
from PIL import Image

from devit_contract.artefacts.keys import KeyPair
from devit_contract.errors import (
    FrameFailedError,
    InputError,
    NoAnswerError,
    QuestionFailedError,
    RefusedError,
    WireError,
)
from devit_contract.wire.client import Client
from devit_contract.wire.codec import MAX_IMAGE_MESSAGE_BYTES, Dtype, Kind, Message, State, pack, unpack
from devit_contract.wire.messages import Refused, body
from devit_contract.wire.sockets import CLIENTS, Socket, bind_router, open_context
from devit_pipeline.local_cell import LocalCell

IMAGE = np.zeros((6, 8, 1), np.uint8)
DEADLINE_S = 20.0
GREETING_WITH_KEYS = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\x01" + bytes(31)
"""ZMTP 3.1, https://rfc.zeromq.org/spec/37: what a node that wants keys says first."""


@pytest.fixture
def client(cell: LocalCell) -> Iterator[Client]:
    with cell.client() as opened:
        yield opened


def test_an_answer_tells_its_state_its_devices_and_what_each_cost(client: Client) -> None:
    answer = client.classify(IMAGE)
    assert (answer.state, answer.mask, answer.missing) == (State.FULL, 0b11, {})
    assert answer.logits is not None
    assert answer.logits.shape == (4,)
    np.testing.assert_allclose(answer.probabilities().sum(), 1.0, rtol=1e-5)
    assert sorted(timing.device for timing in answer.devices) == [0, 1]
    for timing in answer.devices:
        parts_us = timing.network_us + timing.queue_us + timing.decode_us + timing.inference_us
        assert 0 <= timing.arrival_us - parts_us <= 4  # each part is cut to whole microseconds
        assert timing.arrival_us <= answer.collect_us + 1
    assert (answer.wait_us + answer.collect_us + answer.fuse_us) / 1e6 <= answer.latency_s


def test_a_picture_file_is_decoded_by_the_devices(client: Client) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(file, "JPEG")
    answer = client.classify(file.getvalue())
    assert answer.state is State.FULL
    assert all(timing.decode_us > 0 for timing in answer.devices)


def test_a_damaged_picture_file_is_a_failed_frame_and_no_answer_is_made_of_it(client: Client) -> None:
    answer = client.classify(b"no picture")
    assert (answer.state, answer.mask, answer.logits) == (State.FAILED, 0, None)
    with pytest.raises(FrameFailedError, match=r"this frame failed \(jetson1: decode, jetson2: decode\)"):
        answer.probabilities()


def test_answers_come_in_the_order_of_the_images_whatever_is_asked(client: Client) -> None:
    pictures = [b"no picture" if number % 3 == 0 else IMAGE for number in range(30)]
    states = [answer.state for answer in client.stream(pictures, in_flight=8)]
    assert states == [State.FAILED if number % 3 == 0 else State.FULL for number in range(30)]


def test_no_more_images_are_in_flight_than_asked_for(client: Client) -> None:
    drawn = 0

    def pictures() -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
        nonlocal drawn
        for _ in range(12):
            drawn += 1
            yield IMAGE

    for answered, _ in enumerate(client.stream(pictures(), in_flight=3)):
        assert drawn <= answered + 3
    assert drawn == 12


def test_answers_to_a_stream_that_is_left_early_are_nobodys(client: Client) -> None:
    stream = client.stream([IMAGE] * 8, in_flight=8)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    last = client.submit(IMAGE)
    found: list[int] = []
    while last not in found:
        taken = client.collect(DEADLINE_S)
        assert taken, "no answer in time"
        found += [number for number, _ in taken]
    assert found == [last]


def test_a_stream_that_ends_by_a_refusal_leaves_no_answers_either(client: Client) -> None:
    with pytest.raises(InputError, match="expected uint8"):
        list(client.stream([np.zeros((8, 6, 1), np.uint8), IMAGE, IMAGE], in_flight=3))
    last = client.submit(IMAGE)
    assert [number for number, _ in client.collect(DEADLINE_S)] == [last]


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.zeros((8, 6, 1), np.uint8), r"expected uint8 \(6, 8, 1\) or a picture file, found uint8 \(8, 6, 1\)"),
        (np.zeros((6, 8), np.uint8), r"found uint8 \(6, 8\)"),
        (np.zeros((6, 8, 1), np.float32), r"found float32 \(6, 8, 1\)"),
        (bytes(MAX_IMAGE_MESSAGE_BYTES), "expected at most 4193280 bytes, found 4194304"),
    ],
)
def test_an_image_of_another_shape_or_size_is_refused_and_the_next_one_answered(
    client: Client, picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | bytes, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        client.classify(picture)
    assert client.classify(IMAGE).state is State.FULL


def test_numbers_that_do_not_travel_are_refused_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(WireError, match="found float64 3d"):
        client.classify(np.zeros((6, 8, 1)))  # type: ignore[arg-type]


def test_a_device_that_no_bundle_has_cannot_be_asked(client: Client) -> None:
    before = client.status().refused_requests.get("mask", 0)
    with pytest.raises(InputError, match="mask: expected devices 0 to 1, found 0b100"):
        client.classify(IMAGE, mask=0b100)
    assert client.status().refused_requests["mask"] == before + 1
    assert client.classify(IMAGE, mask=0b10).missing == {0: "not asked"}


def test_a_device_describes_itself_and_counts_its_work(client: Client) -> None:
    assert client.describe("jetson1").engine == "null engine"
    before = client.mark("jetson1")
    client.classify(IMAGE)
    after = client.mark("jetson1")
    assert after.inferences == before.inferences + 1
    assert after.monotonic_ns > before.monotonic_ns
    assert after.busy_ns > before.busy_ns
    with pytest.raises(QuestionFailedError, match="device 'jetson9': expected one of jetson1, jetson2"):
        client.mark("jetson9")
    with pytest.raises(QuestionFailedError, match="jetson1: expected a power sensor, found none"):
        client.start_sampling("jetson1", 100)


def test_where_nobody_listens_the_client_says_so_in_its_time(tmp_path: Path) -> None:
    start_s = time.monotonic()
    with Client("tcp://127.0.0.1:1", timeout_s=0.3) as client:
        with pytest.raises(NoAnswerError, match=r"tcp://127\.0\.0\.1:1: no answer within 0\.3 s"):
            client.status()
        with pytest.raises(NoAnswerError, match="check that fusion-node runs there"):
            client.classify(IMAGE)
    assert 0.6 <= time.monotonic() - start_s < 5


@pytest.mark.parametrize("wrong", ["client key", "node key", "no key"])
def test_a_wrong_key_is_said_long_before_the_time_is_over(cell: LocalCell, wrong: str) -> None:
    stranger = KeyPair(*zmq.curve_keypair())
    node_key = cell.fleet.node.public_key.encode()
    keys: dict[str, tuple[KeyPair | None, bytes | None]] = {
        "client key": (stranger, node_key),
        "node key": (cell.client_keys, stranger.public),
        "no key": (None, None),
    }
    own, expected = keys[wrong]
    advice = "give its fleet.toml and a client's key" if own is None else "check the client's entry"
    start_s = time.monotonic()
    with (
        Client(cell.fleet.node.client_endpoint, keys=own, node_key=expected, timeout_s=60) as client,
        pytest.raises(RefusedError, match=f"the node does not accept this client, the handshake failed: .*{advice}"),
    ):
        client.status()
    assert time.monotonic() - start_s < 20


def refuse_next_link(listener: plain_socket.socket) -> None:
    """Say what a node with keys says, to a client without, until that closes the connection for good."""
    listener.settimeout(DEADLINE_S)
    link, _ = listener.accept()
    with link:
        link.settimeout(DEADLINE_S)
        link.sendall(GREETING_WITH_KEYS)
        with suppress(ConnectionResetError):
            while link.recv(1000):
                pass


def test_a_question_that_was_refused_with_the_link_does_not_come_back() -> None:
    """Whoever collects answers would meet a number that was never theirs, when its time is over."""
    with (
        plain_socket.create_server(("127.0.0.1", 0)) as listener,
        Client(f"tcp://127.0.0.1:{listener.getsockname()[1]}", timeout_s=1.5) as client,
    ):
        refuse_next_link(listener)
        with pytest.raises(RefusedError, match="the handshake failed"):
            client.status()
        assert client.is_refused
        number = client.submit(IMAGE)
        assert [found for found, _ in client.collect(DEADLINE_S)] == [number]


@contextmanager
def plain_node(endpoint: str) -> Iterator[tuple[Socket, str]]:
    """The client port of a node without keys, with nothing behind it."""
    with open_context() as context:
        yield bind_router(context, endpoint, CLIENTS, None)[:2]


def refuse_next_request(router: Socket) -> None:
    assert router.poll(DEADLINE_S * 1000)
    route, data = router.recv_multipart()
    asked = unpack(data)
    refusal = Message(
        Kind.REFUSED, Dtype.BODY, payload=body(Refused("heard")), run_id=asked.run_id, frame_id=asked.frame_id
    )
    router.send_multipart([route, pack(refusal)])


def test_a_link_that_was_refused_outright_comes_back_by_itself() -> None:
    """A node without keys is started with them for a while, after which libzmq would never connect again."""
    with plain_node("tcp://127.0.0.1:0") as (router, endpoint):
        client = Client(endpoint, timeout_s=DEADLINE_S)
        number = client.submit(IMAGE)
        end_s = time.monotonic() + DEADLINE_S
        while not router.poll(0):
            assert client.collect(0.01) == []
            assert time.monotonic() < end_s
    with client:
        host, _, port = endpoint.removeprefix("tcp://").partition(":")
        with plain_socket.create_server((host, int(port))) as listener:
            refuse_next_link(listener)
        with plain_node(endpoint) as (router, _), ThreadPoolExecutor(1) as pool:
            heard = pool.submit(refuse_next_request, router)
            found = client.collect(DEADLINE_S)  # one call: its wait must not outlast the pause
            heard.result(DEADLINE_S)
        assert [(each, str(error)) for each, error in found] == [(number, "heard")]


def test_a_fleet_with_keys_needs_one(cell: LocalCell) -> None:
    with pytest.raises(InputError, match="expected a client key, found none: give one with --key"):
        Client.of_fleet(cell.fleet, None)


IDLE = """
import socket, threading
from devit_contract.wire import sockets
from devit_contract.wire.client import Client

sockets._RECONNECT_MS = sockets._RECONNECT_MAX_MS = 1
is_full = threading.Event()

def accept_and_close():  # until libzmq waits for the room of 2,000 events that nobody reads
    listener.settimeout(3)
    try:
        while True:
            listener.accept()[0].close()
    except TimeoutError:
        is_full.set()

with socket.create_server(("127.0.0.1", 0)) as listener:
    threading.Thread(target=accept_and_close, daemon=True).start()
    client = Client(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    assert is_full.wait(40)
    client.close()
print("closed")
"""


@pytest.mark.system
def test_an_idle_client_can_be_closed_after_thousands_of_failed_connections() -> None:
    """As to a proxy with nothing behind it; in a process of its own, since whoever waits for libzmq keeps the GIL."""
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


def test_a_client_may_be_closed_twice(cell: LocalCell) -> None:
    client = cell.client()
    client.close()
    client.close()
    assert all(link.socket.closed for link in client._link._links)
