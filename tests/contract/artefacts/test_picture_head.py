"""What a picture costs to decode, by the decoder's own word: what it makes of the same bytes."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from devit_contract.artefacts.picture_head import check_coded, check_picture
from devit_contract.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpeg": {"format": "JPEG"},
    "progressive jpeg": {"format": "JPEG", "progressive": True},
    "gif": {"format": "GIF"},
    "bmp": {"format": "BMP"},
    "lossy webp": {"format": "WEBP"},
    "lossless webp": {"format": "WEBP", "lossless": True},
    "webp with exif": {"format": "WEBP", "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"},
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def picture(size: tuple[int, int], **options: Any) -> bytes:  # noqa: ANN401 - passed on to Pillow
    file = io.BytesIO()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(file, **options)
    return file.getvalue()


def check(content: bytes, max_pixels: int, resize_to: int = 0) -> None:
    check_picture(memoryview(content), max_pixels, resize_to)


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_the_pixels_of_a_picture_are_counted_without_decoding_it(options: dict[str, Any]) -> None:
    content = picture((40, 30), **options)
    check(content, 1200)
    with pytest.raises(
        InputError, match="expected at most 1199 pixels, before and after resizing, found 40 x 30: make"
    ):
        check(content, 1199)


def test_a_coded_image_is_known_by_its_kind() -> None:
    for options, coding in (({"format": "JPEG"}, "jpeg"), ({"format": "WEBP", "lossless": True}, "lossless")):
        assert check_coded(memoryview(picture((40, 30), **options)), 40, 30) == coding


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found another file"),
        (picture((40, 30), format="PNG"), "found another file"),
        (picture((40, 30), format="JPEG", progressive=True), "found another file"),
        (picture((40, 30), format="WEBP"), "found another file"),
        (picture((40, 30), **FORMATS["webp with exif"]), "found another file"),
        (picture((30, 40), format="JPEG") + bytes(3601), "expected fewer bytes"),
        (picture((40, 31), format="JPEG"), "expected at most 1200 pixels"),
        (picture((40, 29), format="WEBP", lossless=True), "expected 40 x 30 pixels, found fewer"),
        (picture((40, 30), format="WEBP", lossless=True)[:24], "found one that ends before its pixels"),
    ],
    ids=["nothing", "png", "progressive", "lossy webp", "extended webp", "too many bytes", "larger", "smaller", "cut"],
)
def test_a_coded_image_that_costs_more_than_its_pixels_is_refused(content: bytes, said: str) -> None:
    """Devices are judged by the time that they take for images, so no client may make them take longer."""
    with pytest.raises(InputError, match=said):
        check_coded(memoryview(content), 40, 30)


def test_a_narrow_picture_counts_as_what_it_becomes() -> None:
    content = picture((10, 1000), format="PNG")
    check(content, 10_000)
    check(content, 5_017_600, resize_to=224)
    with pytest.raises(InputError, match="found 10 x 1000"):
        check(content, 5_017_599, resize_to=224)


def test_a_head_in_an_odd_place_counts_too() -> None:
    """A decoder takes the last size before the pixels, and enlarges a GIF to its first image."""
    whole = picture((40, 30), format="PNG")
    size = struct.pack(">IIBBBBB", 8000, 8000, 8, 0, 0, 0, 0)
    gif = bytearray(picture((40, 30), format="GIF"))
    place = gif.index(b"\x2c\0\0\0\0\x28\0\x1e\0")
    gif[place + 5 : place + 9] = struct.pack("<HH", 8000, 8000)
    frame = b"\x08" + struct.pack(">HH", 8000, 8000) + b"\x01\x01\x11\0"
    jpeg = picture((40, 30), format="JPEG")
    for content in (
        PNG + chunk(b"tEXt", b"a\0b") + chunk(b"IHDR", size) + whole[8:],
        whole[:33] + chunk(b"IHDR", size) + whole[33:],
        bytes(gif),
        jpeg[:2] + segment(0xC0, frame) + jpeg[2:],
    ):
        with pytest.raises(InputError, match="found 8000 x 8000"):
            check(content, 1200)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (PNG + chunk(b"tEXt", b"a\0b") * 300_000, "2048 chunks"),
        (picture((40, 30), format="PNG")[:33] + chunk(b"IDAT", b"") * 300_000, "2048 chunks"),
        (b"\xff\xd8" + segment(0xFE, b"") * 1_000_000, "2048 segments"),
        (b"\xff\xd8\xff\xfe\0\2" + bytes(4_000_000), "2048 segments"),
        (b"\xff\xd8\xff" + b"\xff\xda\0\2" * 1_000_000, "64 scans"),
        (b"GIF89a\1\0\1\0\0\0\0\x21\xfe" + b"\1a" * 2_000_000, "2048 blocks"),
    ],
    ids=["small chunks", "split pixels", "segments", "between segments", "scans", "blocks"],
)
def test_a_picture_of_a_million_parts_is_refused_at_once(content: bytes, parts: str) -> None:
    start_s = time.thread_time()
    with pytest.raises(InputError, match=f"expected at most {parts}, found more"):
        check(content, 1 << 40)
    assert time.thread_time() - start_s < 0.020


def test_a_bmp_with_compression_is_refused() -> None:
    """Pillow decodes it by a loop in Python, which takes thirty times as long."""
    content = bytearray(picture((40, 30), format="BMP"))
    content[30:34] = struct.pack("<I", 1)
    with pytest.raises(InputError, match="expected a BMP without compression"):
        check(bytes(content), 1200)


@pytest.mark.parametrize("content", [b"", b"no picture", b"II*\0", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_picture_is_left_to_who_decodes_it(content: bytes) -> None:
    check(content, 0)


@given(name=st.sampled_from(sorted(FORMATS)), changes=st.lists(st.tuples(st.integers(0, 80), st.binary(max_size=6))))
def test_nothing_but_a_refusal_comes_of_damage(name: str, changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(picture((8, 6), **FORMATS[name]))
    for place, data in changes:
        content[place : place + len(data)] = data
    for damaged in (content, content[:30], content[:20]):
        try:
            check(bytes(damaged), 10_000)
        except InputError as err:
            assert str(err).startswith("picture: expected ")  # noqa: PT017 - it may also pass
