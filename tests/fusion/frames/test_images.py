"""What clients are to send images as: by the fleet, by what devices read, and by what images take on the way."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import encode_image
from devit_contract.choices import ImageChoice, ImageCoding
from devit_contract.wire.codec import Dtype, Kind, Message
from devit_contract.wire.messages import DeviceTiming, Hello
from devit_fusion.devices.links import Link
from devit_fusion.devices.pace import Flight
from devit_fusion.frames.images import Images

SPEC = Preprocess(224, 224, "rgb", resize_to=256)
NEW = Hello("any", 0, 4, "0" * 64, "null", ("float32",), "0", image_codings=("jpeg", "lossless"))
OLD = msgspec.structs.replace(NEW, image_codings=())
MS = 1_000_000
Way = Callable[[int, ImageCoding], float]
"""From device and coding to milliseconds."""


class Cell:
    """Devices that take what a test says, frame after frame; the client obeys."""

    def __init__(self, choice: ImageChoice, *, devices: int = 2, spec: Preprocess = SPEC, hello: Hello = NEW) -> None:
        self.links = {f"jetson{index}": Link(index, f"jetson{index}", 2, 1000 * MS) for index in range(devices)}
        for link in self.links.values():
            link.connect(hello, 1, 1)
        self.images = Images(choice, spec, self.links)
        self.wanted: ImageCoding = "raw"
        self._now_ns = 0

    def serve(self, frames: int, way: Way, *, answers: bool = True) -> list[ImageCoding]:
        """Tell what each frame was sent as."""
        sent: list[ImageCoding] = []
        for _ in range(frames):
            sent.append(self.wanted)
            sent_ns = self._now_ns = self._now_ns + 1000 * MS
            for link in self.links.values() if answers or self.wanted == "raw" else ():
                took_ns = round(way(link.index, self.wanted) * MS) + 5 * MS
                timing = DeviceTiming(link.index, 0, 0, 0, 5000, took_ns // 1000)
                link.sent(1, Flight(sent_ns, sent_ns + 1000 * MS, coding=self.wanted))
                link.returned(1, sent_ns + took_ns, timing)
            self.wanted = self.images.wanted()
        return sent


def fast(_device: int, coding: ImageCoding) -> float:
    return 0.4 if coding == "raw" else 1.0


def slow(_device: int, coding: ImageCoding) -> float:
    return 12.0 if coding == "raw" else 2.0


def one_slow(device: int, coding: ImageCoding) -> float:
    return slow(device, coding) if device == 1 else fast(device, coding)


@pytest.mark.parametrize("choice", ["auto", "raw", "jpeg", "lossless"])
def test_small_images_are_never_coded(choice: ImageChoice) -> None:
    cell = Cell(choice, spec=Preprocess(73, 74, "rgb"))
    assert set(cell.serve(600, slow)) == {"raw"}
    assert (cell.images.choice, cell.images.now) == ("raw", "raw")


@pytest.mark.parametrize("choice", ["raw", "jpeg", "lossless"])
def test_what_the_fleet_says_is_wanted_from_the_first_answer_on(choice: ImageCoding) -> None:
    cell = Cell(choice)
    assert set(cell.serve(600, fast)[1:]) == {choice}
    assert cell.images.now == choice


@pytest.mark.parametrize("choice", ["auto", "jpeg", "lossless"])
def test_nothing_is_coded_while_a_linked_device_does_not_read_it(choice: ImageChoice) -> None:
    cell = Cell(choice)
    cell.links["jetson1"].connect(OLD, 2, 1)
    assert set(cell.serve(300, slow)) == {"raw"}
    cell.links["jetson1"].connect(NEW, 3, 1)
    assert cell.serve(300, slow)[-1] == ("jpeg" if choice == "auto" else choice)


@pytest.mark.parametrize(("way", "expected"), [(fast, "raw"), (slow, "jpeg"), (one_slow, "jpeg")])
def test_auto_takes_what_reaches_the_slowest_device_sooner_within_forty_frames(way: Way, expected: ImageCoding) -> None:
    cell = Cell("auto")
    cell.serve(40, way)
    sent = cell.serve(2000, way)
    assert cell.images.now == expected
    assert sum(coding != expected for coding in sent) <= 2000 // 200  # tried now and then, too rarely for a 99 %


def test_auto_follows_a_link_that_becomes_slow_and_fast_again() -> None:
    cell = Cell("auto")
    cell.serve(100, fast)
    assert cell.serve(20, slow)[-1] == "jpeg"
    cell.serve(2560, fast)
    assert (cell.images.now, cell.images.switches) == ("raw", 2)


@given(seed=st.integers(0, 999), between=st.floats(0.9, 1.1), spread=st.floats(0, 1))
def test_auto_does_not_flap_where_both_ways_take_about_as_long(seed: int, between: float, spread: float) -> None:
    """One frame in ten has a hiccup; the others vary by a tenth."""
    rng = np.random.default_rng(seed)

    def noisy(_device: int, coding: ImageCoding) -> float:
        usual = (1.0 if coding == "raw" else between) * (1 + spread * rng.uniform(-0.05, 0.05))
        return 50.0 if rng.random() < 0.1 * spread else usual

    cell = Cell("auto", devices=1)
    cell.serve(3000, noisy)
    assert cell.images.switches <= 4


def test_a_way_on_which_no_answer_comes_is_tried_rarely_and_never_taken() -> None:
    cell = Cell("auto")
    sent = cell.serve(2000, slow, answers=False)
    assert cell.images.now == "raw"
    assert 18 <= sum(coding == "jpeg" for coding in sent) <= 18 + 2000 // 256


def test_a_coded_image_is_decoded_once_for_a_device_that_does_not_read_it() -> None:
    cell = Cell("jpeg")
    image = np.random.default_rng(1).integers(0, 256, SPEC.shape, np.uint8)
    content = encode_image(image, "lossless")
    assert content is not None
    coded = Message(Kind.REQUEST, Dtype.ENCODED, SPEC.shape, content, frame_id=3)
    links = cell.links.values()
    assert cell.images.readable(coded, "lossless", links) is coded
    cell.links["jetson1"].connect(OLD, 2, 1)
    raw = cell.images.readable(coded, "lossless", links)
    assert (raw.dtype, raw.dims, raw.frame_id) == (Dtype.UINT8, SPEC.shape, 3)
    np.testing.assert_array_equal(raw.array(), image)
    damaged = msgspec.structs.replace(coded, payload=content[:-99])
    assert cell.images.readable(damaged, "lossless", links).is_file, "an old agent says of it that it cannot decode it"
    plain = Message(Kind.REQUEST, Dtype.UINT8, SPEC.shape, image.tobytes())
    assert cell.images.readable(plain, "raw", links) is plain
