"""From a picture file to the uint8 input of the graph, and into bytes for the network: one implementation for all."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from devit_contract.artefacts.files import named_failure
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.regular import read_regular
from devit_contract.choices import ImageCoding
from devit_contract.errors import InputError

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
_LYING = (5, 6, 7, 8)
"""EXIF orientations by which width and height change places."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_CODED_FORMATS = ("JPEG", "WEBP")
_JPEG_QUALITY, _JPEG_SUBSAMPLING = 90, "4:2:0"
"""A ninth of an image of 224 pixels, and a third of a millisecond to decode; ``benchmarks.links.run`` shows what it
costs in answers. Of 28 pixels each counts, and 98 would be needed: small images are sent raw."""
_WEBP_MAX_SIDE = 16383
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
"""Formats that may come from strangers: Pillow knows more, and starts Ghostscript for one of them (EPS)."""


def load_image(path: Path, spec: Preprocess) -> npt.NDArray[np.uint8]:
    """Read a picture file as the graph wants it, uint8 ``(H, W, C)``.

    Raises:
        InputError: The file is missing, is no picture, is damaged or too large.
    """
    with named_failure(f"{path}: cannot be read"):
        content = read_regular(path)
    return decode_image(content, spec, str(path))


def decode_image(content: bytes | memoryview, spec: Preprocess, where: str) -> npt.NDArray[np.uint8]:
    """Decode a picture file in memory, uint8 ``(H, W, C)``; ``where`` names it in errors.

    It is turned upright as its EXIF orientation says. Of 16 bits the upper eight count, and transparency counts for
    nothing: a pixel's colour is what lies below it. CMYK becomes RGB without a colour profile.

    Raises:
        InputError: It is no picture, is damaged or too large.
    """
    with _reading(where):
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        scaled = _size_before_crop(image.size, spec)  # thousands of times larger for a picture one pixel wide
        for width, height in (image.size, scaled):
            if width * height > MAX_PIXELS:
                raise InputError(f"{where}: expected at most {MAX_PIXELS} pixels, found {width} x {height}")
        return _fit(_of_8_bits(_upright(image)).convert(_MODES[spec.colour]), spec)


def encode_image(image: npt.NDArray[np.uint8], coding: ImageCoding) -> bytes | None:
    """Code an image ``(H, W, C)`` for :func:`decode_coded`; ``None`` where no file holds such a shape.

    The lossless files are WebP, by its fastest method: smaller than PNG, and coded and decoded in less time.
    """
    height, width, channels = image.shape
    if channels not in (1, 3) or max(height, width) > _WEBP_MAX_SIDE:
        return None
    file = io.BytesIO()
    pixels = Image.fromarray(image[..., 0] if channels == 1 else image)  # (H, W, 1) -> (H, W)
    if coding == "jpeg":
        pixels.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=_JPEG_SUBSAMPLING)
    else:
        pixels.convert("RGB").save(file, "WEBP", lossless=True, quality=0, method=0)
    return file.getvalue()


def decode_coded(content: bytes | memoryview, spec: Preprocess, where: str) -> npt.NDArray[np.uint8]:
    """Decode what :func:`encode_image` made of an image, uint8 ``(H, W, C)``: nothing is scaled or turned.

    Raises:
        InputError: It is damaged, or no image of the shape that the graph takes.
    """
    with _reading(where):
        image = Image.open(io.BytesIO(content), formats=_CODED_FORMATS)
        if image.size != (spec.width, spec.height):
            expected = f"{spec.width} x {spec.height}"
            raise InputError(f"{where}: expected an image of {expected}, found {image.width} x {image.height}")
        return np.asarray(image.convert(_MODES[spec.colour]), np.uint8).reshape(spec.shape)  # (H, W) if gray


def picture_size(content: bytes | memoryview, where: str) -> tuple[int, int]:
    """Read width and height of a picture file in memory, upright, from its head.

    Raises:
        InputError: It is no picture.
    """
    with _reading(where):
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        width, height = image.size
        with suppress(*_DAMAGE):
            if image.getexif().get(ExifTags.Base.Orientation) in _LYING:
                return height, width
        return width, height


def fit_image(pixels: npt.NDArray[np.uint8], spec: Preprocess) -> npt.NDArray[np.uint8]:
    """Make uint8 ``(H, W, C)`` of a camera's pixels ``(h, w, 3)``, as of a picture file that holds them.

    Raises:
        InputError: Their type or shape is another.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(f"pixels: expected uint8 (h, w, 3), found {pixels.dtype} {pixels.shape}")
    return _fit(Image.fromarray(pixels).convert(_MODES[spec.colour]), spec)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes: our own limit is lower; of damage: what matters is an error
            yield
    except _DAMAGE as err:
        is_unknown = isinstance(err, UnidentifiedImageError)
        reason = "no picture format that is known" if is_unknown else f"a damaged one: {err}"
        raise InputError(f"{where}: expected a picture such as PNG or JPEG, found {reason}") from err


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    # A damaged orientation counts as none, as in browsers; the pixels are turned before anything is written back.
    with suppress(*_DAMAGE):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _of_8_bits(image: Image.Image) -> Image.Image:
    """Keep the upper eight of 16 bits of gray, which Pillow would clip at 255; of colours it keeps them itself."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _size_before_crop(size: tuple[int, int], spec: Preprocess) -> tuple[int, int]:
    """Width and height, the longer side rounded down as torchvision does."""
    if not spec.resize_to:
        return spec.width, spec.height
    width, height = (int(spec.resize_to * side / min(size)) for side in size)
    return width, height


def _fit(image: Image.Image, spec: Preprocess) -> npt.NDArray[np.uint8]:
    scaled = _size_before_crop(image.size, spec)
    if image.size != scaled:
        image = _resize(image, scaled, spec)
    # Half a pixel goes to the even number, as in torchvision, with which published models were measured.
    left, top = round((image.width - spec.width) / 2), round((image.height - spec.height) / 2)
    image = image.crop((left, top, left + spec.width, top + spec.height))
    return np.asarray(image, np.uint8).reshape(spec.shape)  # (H, W) -> (H, W, 1) for gray


def _resize(image: Image.Image, size: tuple[int, int], spec: Preprocess) -> Image.Image:
    resampling = _RESAMPLING[spec.interpolation]
    if spec.antialias:
        # Pillow 13 begins with the side that shrinks more, older ones with the width, and between the two passes it
        # rounds to eight bits: two calls keep the order, and so the bytes, of those with which models were measured.
        return image.resize((size[0], image.height), resampling).resize(size, resampling)
    return image.transform(size, Image.Transform.EXTENT, (0, 0, image.width, image.height), resampling)
