"""From a picture file to the uint8 input of the graph: one implementation for training, client and agent."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from devit_contract.errors import InputError
from devit_contract.manifest import Preprocess

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_MODES = {"gray": "L", "rgb": "RGB"}
_DAMAGE = (
    # What Pillow raises for damaged files; one that escapes would end an edge agent.
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
"""Formats that may come from strangers: Pillow knows more, and starts Ghostscript for one of them (EPS)."""


def load_image(path: Path, spec: Preprocess) -> npt.NDArray[np.uint8]:
    """Read a picture file as the graph wants it, uint8 ``(H, W, C)``.

    Raises:
        InputError: The file is missing, is no picture, is damaged or too large.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: expected a picture file, found none of the kind")
        content = path.read_bytes()
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err.strerror}") from err
    return decode_image(content, spec, str(path))


def decode_image(content: bytes | memoryview, spec: Preprocess, where: str) -> npt.NDArray[np.uint8]:
    """Decode a picture file in memory, uint8 ``(H, W, C)``; ``where`` names it in errors.

    Raises:
        InputError: It is no picture, is damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes: our own limit is lower; of damage: what matters is an error
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            scaled = _size_before_crop(image, spec)  # thousands of times larger for a picture one pixel wide
            for width, height in (image.size, scaled):
                if width * height > MAX_PIXELS:
                    raise InputError(f"{where}: expected at most {MAX_PIXELS} pixels, found {width} x {height}")
            return _fit(image.convert(_MODES[spec.colour]), scaled, spec)
    except _DAMAGE as err:
        reason = "no picture format that is known" if isinstance(err, UnidentifiedImageError) else str(err)
        raise InputError(f"{where}: expected a picture such as PNG or JPEG, found {reason}") from err


def check_image(image: npt.NDArray[np.uint8], spec: Preprocess) -> None:
    """Check an image that is ready for the graph.

    Raises:
        InputError: Its type or shape is not what the graph takes.
    """
    if image.dtype != np.uint8 or image.shape != spec.shape:
        raise InputError(f"image: expected uint8 {spec.shape}, found {image.dtype} {image.shape}")


def _size_before_crop(image: Image.Image, spec: Preprocess) -> tuple[int, int]:
    if not spec.resize_to:
        return spec.width, spec.height
    scale = spec.resize_to / min(image.size)
    return round(image.width * scale), round(image.height * scale)


def _fit(image: Image.Image, scaled: tuple[int, int], spec: Preprocess) -> npt.NDArray[np.uint8]:
    if image.size != scaled:
        image = _resize(image, scaled, spec)
    left, top = (image.width - spec.width) // 2, (image.height - spec.height) // 2
    image = image.crop((left, top, left + spec.width, top + spec.height))
    return np.asarray(image, np.uint8).reshape(spec.shape)  # (H, W) -> (H, W, 1) for gray


def _resize(image: Image.Image, size: tuple[int, int], spec: Preprocess) -> Image.Image:
    resampling = _RESAMPLING[spec.interpolation]
    if spec.antialias:
        return image.resize(size, resampling)
    return image.transform(size, Image.Transform.EXTENT, (0, 0, image.width, image.height), resampling)
