"""The view that one device has of a scene, made of one image of the whole scene.

In real life each device has its own camera. Training, evaluation and the accuracy check simulate that: a view is a
window of the image, turned around its middle, and enlarged to the image's size. What lies outside the image is black.

Each pixel of a view is the weighted mean of four pixels of the image (bilinear interpolation), in whole numbers alone,
so that NumPy on a device and torch on a workstation make the same view, bit by bit. The corners of a window that is not
turned are the corners of its view.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Int64Array, UInt8Array

STEPS = 256
"""Places between two pixels; the weights of a view's pixel sum up to its square."""


class Taps(NamedTuple):
    """Of which pixels of the image each pixel of the view is made."""

    places: Int64Array
    """Shape ``(4, H, W)``: numbers of pixels, row by row; H W stands for black."""
    weights: npt.NDArray[np.int32]
    """Shape ``(4, H, W)``."""


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A window of the scene's image, in pixels, and how it is turned."""

    top: int
    left: int
    height: int
    width: int
    turn_degrees: float = 0.0
    """How far the camera is turned clockwise: what it sees is turned the other way."""

    def __post_init__(self) -> None:
        """Refuse a window without pixels."""
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise ValueError(f"view: expected a window of at least one pixel within the image, found {self}")
        if not math.isfinite(self.turn_degrees):
            raise ValueError(f"view: expected turn_degrees to be a number, found {self.turn_degrees}")

    def taps(self, height: int, width: int) -> Taps:
        """Find the pixels of a view of an image of this size; a ValueError says that the window is not inside."""
        if self.top + self.height > height or self.left + self.width > width:
            raise ValueError(f"view: expected a window within an image of {height} x {width} pixels, found {self}")
        turn = math.radians(self.turn_degrees)
        down = np.linspace(-0.5, 0.5, height)[:, np.newaxis] * (self.height - 1)  # (H, 1), from the window's middle
        right = np.linspace(-0.5, 0.5, width) * (self.width - 1)  # (W,)
        rows = self.top + (self.height - 1) / 2 + down * math.cos(turn) + right * math.sin(turn)  # (H, W)
        columns = self.left + (self.width - 1) / 2 - down * math.sin(turn) + right * math.cos(turn)
        row, row_part = np.divmod(np.rint(rows * STEPS).astype(np.int64), STEPS)
        column, column_part = np.divmod(np.rint(columns * STEPS).astype(np.int64), STEPS)
        places, weights = np.empty((4, height, width), np.int64), np.empty((4, height, width), np.int32)
        for tap, (below, beside) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            y, x = row + below, column + beside
            is_inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            places[tap] = np.where(is_inside, y * width + x, height * width)
            share = row_part if below else STEPS - row_part
            weights[tap] = share * (column_part if beside else STEPS - column_part)
        return Taps(places, weights)

    def of(self, images: UInt8Array) -> UInt8Array:
        """Give the view of each image, both ``(n, H, W, C)``."""
        height, width, channels = images.shape[1:]
        places, weights = self.taps(height, width)
        views = np.empty(images.shape, np.uint8)
        for image, view in zip(images, views, strict=True):  # one by one: four numbers a pixel are much for many images
            pixels = np.concatenate([image.reshape(-1, channels), np.zeros((1, channels), np.uint8)])  # (H W + 1, C)
            total = (pixels[places] * weights[..., np.newaxis]).sum(axis=0)
            view[...] = (total + STEPS**2 // 2) // STEPS**2
        return views


def spread(devices: int, height: int, width: int, *, share: float, turn_degrees: float) -> tuple[View, ...]:
    """Spread the windows of several devices evenly over a scene, in rows and columns, so that they cover it.

    A window has ``share`` of the scene's height where there are several rows, and of its width where there are several
    columns. The first device is turned by ``-turn_degrees``, the last one by ``turn_degrees``, those between evenly.

    Raises:
        ValueError: The windows would leave gaps.

    >>> [(view.top, view.left, view.height, view.width) for view in spread(2, 8, 8, share=0.75, turn_degrees=0.0)]
    [(0, 0, 8, 6), (0, 2, 8, 6)]
    """
    rows = next(count for count in range(math.isqrt(devices), 0, -1) if devices % count == 0)
    columns = devices // rows
    tall, wide = (side if count == 1 else math.ceil(side * share) for count, side in ((rows, height), (columns, width)))
    if rows * tall < height or columns * wide < width:
        raise ValueError(f"share: expected at least {1 / columns:.3g}, so that {devices} windows leave no gap")
    middle = (devices - 1) / 2
    return tuple(
        View(
            top=_place(device // columns, rows, height - tall),
            left=_place(device % columns, columns, width - wide),
            height=tall,
            width=wide,
            turn_degrees=turn_degrees * (device - middle) / middle if middle else 0.0,
        )
        for device in range(devices)
    )


def _place(number: int, count: int, room: int) -> int:
    return round(number * room / (count - 1)) if count > 1 else 0
