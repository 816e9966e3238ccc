"""Views and scenes for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from devit_contract.arrays import UInt8Array
from devit_contract.views import View


@st.composite
def views(draw: st.DrawFn) -> tuple[View, int, int]:
    """A window of any place and size within an image of any size, turned by any angle."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    turn = draw(st.sampled_from([0.0, 90.0, -180.0]) | st.floats(-180, 180))
    window = View(top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left)), turn)
    return window, height, width


def noise(count: int, height: int, width: int, colours: int = 1) -> UInt8Array:
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width, colours), dtype=np.uint8)
