"""Images that clients code as the node says: from the first answer on, as devices read them, and checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
import numpy as np
import pytest
from benchmarks.network.bundles import write_null_bundle
from tests.fusion.hand_made_devices import DEADLINE_S, Device, Scene

from devit_contract.artefacts import fleet as files
from devit_contract.artefacts.manifest import Bundle, Preprocess
from devit_contract.artefacts.preprocess import decode_coded, encode_image
from devit_contract.choices import ImageChoice, ImageCoding
from devit_contract.wire.client import Client
from devit_contract.wire.codec import Dtype, Kind, Message, pack
from devit_contract.wire.messages import Refused, read_body

SHAPE = (128, 128, 1)
"""The smallest gray image that is coded."""
SPEC = Preprocess(128, 128, "gray")
IMAGE = np.indices(SHAPE[:2], np.uint8).sum(axis=0, dtype=np.uint8)[..., np.newaxis]  # (128, 128) -> (128, 128, 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("images") / "bundle"
    write_null_bundle(folder, (4, 4), 3, SHAPE)
    return Bundle(folder)


@pytest.fixture
def start(bundle: Bundle) -> Iterator[Callable[[ImageChoice], Scene]]:
    with ExitStack() as stack:

        def begin(images: ImageChoice) -> Scene:
            devices = tuple(files.Device(f"jetson{index}", index) for index in range(2))
            node = files.Node("tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
            serving = files.Serving(deadline_ms=20_000, startup_grace_ms=0, images=images)
            return Scene(stack, bundle, files.Fleet(2, node, devices, serving), None)

        yield begin


def device(scene: Scene, submodel: int, *, reads: tuple[str, ...] = ("jpeg", "lossless")) -> Device:
    found = scene.device(submodel)
    found.hello = msgspec.structs.replace(found.hello, image_codings=reads)
    found.greet()
    return found


def frames(client: Client, *devices: Device) -> list[Message]:
    """Ask for one image, answer it, and tell what each device was sent."""
    number = client.submit(IMAGE)
    client.collect(0.0)  # sends it
    heard = [each.hear(Kind.FRAME) for each in devices]
    for each, frame in zip(devices, heard, strict=True):
        each.socket.send(each.feature(frame))
    assert [found for found, _ in client.collect(DEADLINE_S)] == [number]
    return heard


@pytest.mark.parametrize("coding", ["jpeg", "lossless"])
def test_a_client_codes_its_images_from_the_second_on_and_all_devices_get_the_same_file(
    start: Callable[[ImageChoice], Scene], coding: ImageCoding
) -> None:
    """The answer to the first has told it."""
    scene = start(coding)
    both, client = [device(scene, index) for index in range(2)], scene.client()
    client.status()
    client._images = "raw"  # as of one that has not asked
    assert [frame.dtype for frame in frames(client, *both)] == [Dtype.UINT8] * 2
    coded = frames(client, *both)
    content = encode_image(IMAGE, coding)
    assert [(frame.dtype, frame.dims, bytes(frame.payload)) for frame in coded] == [(Dtype.ENCODED, SHAPE, content)] * 2
    found = decode_coded(coded[0].payload, SPEC, "frame")
    assert np.array_equal(found, IMAGE) is (coding == "lossless")
    status = client.status()
    assert (status.images, status.image_choice) == (coding, coding)
    assert [set(each.image_us) for each in status.devices] == [{"raw", coding}] * 2


def test_a_client_that_has_asked_for_the_status_codes_its_first_image(start: Callable[[ImageChoice], Scene]) -> None:
    scene = start("jpeg")
    both, client = [device(scene, index) for index in range(2)], scene.client()
    client.status()
    assert [frame.dtype for frame in frames(client, *both)] == [Dtype.ENCODED] * 2


def test_devices_that_read_no_coded_images_get_them_raw(start: Callable[[ImageChoice], Scene]) -> None:
    """One that comes when the client codes already gets what the node decodes, until the client knows."""
    scene = start("lossless")
    new, client = device(scene, 0), scene.client()
    client.status()
    old = device(scene, 1, reads=())
    for frame in frames(client, new, old):
        assert (frame.dtype, frame.dims, bytes(frame.payload)) == (Dtype.UINT8, SHAPE, IMAGE.tobytes())
    assert client._images == "raw"
    assert client.status().images == "lossless"


def test_an_older_clients_raw_images_are_served_as_ever(
    start: Callable[[ImageChoice], Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = start("jpeg")
    both, client = [device(scene, index) for index in range(2)], scene.client()
    monkeypatch.setattr(client, "_send_images_as", lambda wanted: None)  # it does not know the field
    client.status()
    for _ in range(2):
        assert [frame.dtype for frame in frames(client, *both)] == [Dtype.UINT8] * 2


@pytest.mark.parametrize(
    ("dims", "content", "said"),
    [
        (
            (128, 127, 1),
            encode_image(IMAGE, "jpeg"),
            "image: expected uint8 (128, 128, 1) or a picture file, found enc",
        ),
        (SHAPE, b"no picture", "image: expected a JPEG of one scan or a lossless WebP, found another file: send it"),
        (SHAPE, encode_image(IMAGE[:-1], "lossless"), "image: expected 128 x 128 pixels, found fewer: send it raw"),
    ],
    ids=["shape", "file", "smaller"],
)
def test_a_coded_image_that_devices_could_not_use_is_refused(
    start: Callable[[ImageChoice], Scene], dims: tuple[int, ...], content: bytes, said: str
) -> None:
    client = start("jpeg").device(0, to_clients_port=True)
    client.socket.send(pack(Message(Kind.REQUEST, Dtype.ENCODED, dims, content, run_id=1, frame_id=1)))
    assert read_body(client.hear(Kind.REFUSED), Refused).text.startswith(said)
