"""The client against a running cell, and against what is none."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from PIL import Image

from devit_contract.client import Client
from devit_contract.errors import InputError, LinkError, WireError
from devit_contract.keys import KeyPair
from devit_contract.wire import MAX_IMAGE_MESSAGE_BYTES, State
from devit_pipeline.local_cell import LocalCell

IMAGE = np.zeros((6, 8, 1), np.uint8)


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
    with pytest.raises(LinkError, match=r"found a failed frame \(device 0: decode, device 1: decode\)"):
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
    with pytest.raises(LinkError, match="device 'jetson9': expected one of jetson1, jetson2"):
        client.mark("jetson9")
    with pytest.raises(LinkError, match="jetson1: expected a power sensor, found none"):
        client.start_sampling("jetson1", 100)


def test_where_nobody_listens_the_client_says_so_in_its_time(tmp_path: Path) -> None:
    start_s = time.monotonic()
    with Client("tcp://127.0.0.1:1", timeout_s=0.3) as client:
        with pytest.raises(LinkError, match=r"tcp://127\.0\.0\.1:1: expected an answer within 0\.3 s, found none"):
            client.status()
        with pytest.raises(LinkError, match="check that fusion-node runs there"):
            client.classify(IMAGE)
    assert 0.6 <= time.monotonic() - start_s < 5


@pytest.mark.parametrize("wrong", ["client key", "node key", "no key"])
def test_a_wrong_key_is_said_long_before_the_time_is_over(cell: LocalCell, wrong: str) -> None:
    stranger = KeyPair(*zmq.curve_keypair())
    node_key = cell.fleet.node[0].public_key.encode()
    keys: dict[str, tuple[KeyPair | None, bytes | None]] = {
        "client key": (stranger, node_key),
        "node key": (cell.client_keys, stranger.public),
        "no key": (None, None),
    }
    own, expected = keys[wrong]
    start_s = time.monotonic()
    with (
        Client(cell.fleet.node[0].client_endpoint, keys=own, node_key=expected, timeout_s=60) as client,
        pytest.raises(LinkError, match="expected the node to accept this client, found that the handshake failed"),
    ):
        client.status()
    assert time.monotonic() - start_s < 20


def test_a_fleet_with_keys_needs_one(cell: LocalCell) -> None:
    with pytest.raises(InputError, match="expected a client key, found none: give one with --key"):
        Client.of_fleet(cell.fleet, None)


def test_a_client_may_be_closed_twice(cell: LocalCell) -> None:
    client = cell.client()
    client.close()
    client.close()
