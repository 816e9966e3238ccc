"""Views of one scene: the pixels of an independent reference, and together all of the scene."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples
from tests.support.scenes import noise, views

from devit_contract.arrays import UInt8Array
from devit_contract.views import View, spread


def sampled(image: UInt8Array, view: View, row: int, column: int) -> float:
    """Compute one pixel of a view from the definition, in real numbers: rotate, then interpolate twice."""
    height, width = image.shape
    turn = complex(math.cos(math.radians(view.turn_degrees)), math.sin(math.radians(view.turn_degrees)))
    right = (column / (width - 1) - 0.5) * (view.width - 1) if width > 1 else -0.5 * (view.width - 1)
    down = (row / (height - 1) - 0.5) * (view.height - 1) if height > 1 else -0.5 * (view.height - 1)
    place = complex(right, down) * turn  # y counts downwards, so this is clockwise
    x, y = view.left + (view.width - 1) / 2 + place.real, view.top + (view.height - 1) / 2 + place.imag

    def pixel(at_y: int, at_x: int) -> float:
        return float(image[at_y, at_x]) if 0 <= at_y < height and 0 <= at_x < width else 0.0

    below, beside = math.floor(y), math.floor(x)
    upper, lower = (
        pixel(line, beside) * (beside + 1 - x) + pixel(line, beside + 1) * (x - beside) for line in (below, below + 1)
    )
    return upper * (below + 1 - y) + lower * (y - below)


@given(views())
@examples(3)
def test_every_pixel_is_that_of_the_definition(case: tuple[View, int, int]) -> None:
    """Within a level for the rounding, and what 1/512 of a pixel to either side changes between black and white."""
    view, height, width = case
    (image,) = noise(1, height, width)
    found = view.of(image[np.newaxis])[0, :, :, 0]
    expected = [[sampled(image[:, :, 0], view, row, column) for column in range(width)] for row in range(height)]
    np.testing.assert_allclose(found, expected, atol=0.5 + 2 * 255 / 500)


@given(st.integers(1, 10), st.integers(4, 20), st.integers(4, 20), st.floats(0.5, 1.0))
@examples(3)
def test_windows_that_are_not_turned_leave_no_pixel_of_the_scene_out(
    devices: int, height: int, width: int, share: float
) -> None:
    windows = spread(devices, height, width, share=share, turn_degrees=0.0)
    used = np.zeros(height * width + 1, np.bool_)
    for window in windows:
        places, weights = window.taps(height, width)
        np.testing.assert_array_equal(weights.sum(axis=0), 65536)
        used[places[weights > 0]] = True
    assert used[:-1].all()
    assert not used[-1]  # nothing is black


@given(views())
@examples(3)
def test_the_corners_of_a_window_are_the_corners_of_its_view(case: tuple[View, int, int]) -> None:
    view, height, width = case
    straight = View(view.top, view.left, view.height, view.width)
    if height == 1 or width == 1:
        return  # such a view has no two corners
    (image,) = noise(1, height, width)
    (seen,) = straight.of(image[np.newaxis])
    bottom, right = view.top + view.height - 1, view.left + view.width - 1
    assert seen[[0, 0, -1, -1], [0, -1, 0, -1], 0].tolist() == [
        image[view.top, view.left, 0],
        image[view.top, right, 0],
        image[bottom, view.left, 0],
        image[bottom, right, 0],
    ]


def test_whole_turns_are_exact() -> None:
    images = noise(2, 9, 9, 3)
    whole = (0, 0, 9, 9)
    np.testing.assert_array_equal(View(*whole).of(images), images)
    np.testing.assert_array_equal(View(*whole, 90.0).of(images), np.rot90(images, 1, (1, 2)))  # clockwise camera
    np.testing.assert_array_equal(View(*whole, -90.0).of(images), np.rot90(images, -1, (1, 2)))
    np.testing.assert_array_equal(View(*whole, 180.0).of(images), images[:, ::-1, ::-1])


def test_four_devices_stand_in_the_corners_and_turn_evenly() -> None:
    windows = spread(4, 28, 28, share=0.7, turn_degrees=9.0)
    assert [(window.top, window.left) for window in windows] == [(0, 0), (0, 8), (8, 0), (8, 8)]
    assert [window.turn_degrees for window in windows] == [-9.0, -3.0, 3.0, 9.0]
    assert {(window.height, window.width) for window in windows} == {(20, 20)}


def test_windows_that_leave_gaps_are_refused() -> None:
    assert len(spread(4, 28, 28, share=0.5, turn_degrees=0.0)) == 4
    with pytest.raises(ValueError, match=r"share: expected at least 0\.5, so that 4 windows leave no gap"):
        spread(4, 28, 28, share=0.45, turn_degrees=0.0)
    with pytest.raises(ValueError, match=r"share: expected at least 0\.333"):
        spread(3, 28, 28, share=0.3, turn_degrees=0.0)


def test_a_window_beyond_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="within an image of 8 x 8 pixels"):
        View(4, 0, 5, 8).taps(8, 8)
    with pytest.raises(ValueError, match="at least one pixel"):
        View(0, 0, 0, 8)
