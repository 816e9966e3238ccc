"""Images coded for the network: exactly the same ones if lossless, near ones as JPEG, an error if damaged."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import decode_coded, encode_image
from devit_contract.choices import ImageCoding
from devit_contract.errors import InputError

LARGEST, LARGEST_WEBP = 4096, 16383
"""Sides of an image that a graph may take, and of a WebP picture."""
SIDES = st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 28, 224]) | st.integers(1, 40)


def spec_of(image: UInt8Array) -> Preprocess:
    height, width, channels = image.shape
    # Whatever a picture file would be scaled to: a coded image has its shape already.
    return Preprocess(height, width, "gray" if channels == 1 else "rgb", resize_to=max(height, width) + 5)


def drawn(shape: tuple[int, int, int], seed: int, levels: int) -> UInt8Array:
    return np.random.default_rng(seed).integers(256 - levels, 256, shape, np.uint8)


@given(
    shape=st.tuples(SIDES, SIDES, st.sampled_from([1, 3])),
    seed=st.integers(0, 99),
    levels=st.sampled_from([1, 2, 17, 256]),
)
def test_a_lossless_image_comes_back_as_it_was(shape: tuple[int, int, int], seed: int, levels: int) -> None:
    image = drawn(shape, seed, levels)
    content = encode_image(image, "lossless")
    assert content is not None
    np.testing.assert_array_equal(decode_coded(content, spec_of(image), "image"), image)


@pytest.mark.parametrize("shape", [(1, LARGEST, 3), (LARGEST, 1, 1), (2, LARGEST, 1)])
def test_the_longest_lossless_image_comes_back_as_it_was(shape: tuple[int, int, int]) -> None:
    image = drawn(shape, 1, 256)
    content = encode_image(image, "lossless")
    assert content is not None
    np.testing.assert_array_equal(decode_coded(content, spec_of(image), "image"), image)


@pytest.mark.parametrize("shape", [(1, LARGEST_WEBP + 1, 3), (LARGEST_WEBP + 1, 1, 1), (4, 4, 2), (4, 4, 4)])
def test_a_shape_that_no_file_holds_is_not_coded(shape: tuple[int, int, int]) -> None:
    assert encode_image(np.zeros(shape, np.uint8), "lossless") is None
    assert encode_image(np.zeros(shape, np.uint8), "jpeg") is None


@given(shape=st.tuples(SIDES, SIDES, st.sampled_from([1, 3])), level=st.integers(0, 255))
def test_a_jpeg_of_one_colour_comes_back_within_two_levels(shape: tuple[int, int, int], level: int) -> None:
    image = np.full(shape, level, np.uint8)
    content = encode_image(image, "jpeg")
    assert content is not None
    assert np.abs(decode_coded(content, spec_of(image), "image").astype(int) - level).max() <= 2


@pytest.mark.parametrize("coding", ["jpeg", "lossless"])
def test_a_transposed_view_is_coded_as_it_looks(coding: ImageCoding) -> None:
    image = np.indices((30, 40), np.uint8).sum(axis=0, dtype=np.uint8)[..., np.newaxis].transpose(1, 0, 2)
    content, plain = encode_image(image, coding), encode_image(np.ascontiguousarray(image), coding)
    assert content == plain


@given(coding=st.sampled_from(["jpeg", "lossless"]), place=st.floats(0, 1), value=st.none() | st.integers(0, 255))
def test_a_damaged_image_has_the_right_shape_or_is_an_error(
    coding: ImageCoding, place: float, value: int | None
) -> None:
    """Cut where ``value`` is ``None``, else changed there."""
    image = drawn((20, 30, 3), 3, 256)
    content = bytearray(encode_image(image, coding) or b"")
    at = int(place * (len(content) - 1))
    content[at:] = b"" if value is None else bytes([value]) + content[at + 1 :]
    with suppress(InputError):
        found = decode_coded(bytes(content), spec_of(image), "frame")
        assert (found.shape, found.dtype) == (image.shape, np.uint8)
