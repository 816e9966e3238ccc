"""What a picture file costs to decode, as far as its own marks tell: a check of pictures from strangers.

A file of some KiB can hold millions of pixels, and one of some MiB a million parts, each of which costs a decoder
microseconds. The comment of a GIF costs it by the square: two million blocks of one byte take 48 s (Pillow 12.3). Here
nothing is decoded: the parts are walked, some thousand at most. What is no PNG, JPEG, GIF, BMP or WebP costs a decoder
nothing, as it refuses it at once.
"""

from __future__ import annotations

import re
import struct

from devit_contract.choices import ImageCoding
from devit_contract.errors import InputError

_MAX_PARTS = 2048
"""Chunks, segments or blocks: a PNG of 4 MiB has 512 in the usual parts of 8 KiB."""
_MAX_SCANS = 64
"""Of a progressive JPEG, each over all pixels: encoders make about ten."""
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of segments that hold the size (ITU-T T.81, table B.1)."""
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a segment."""
_BMP_PLAIN = (0, 3)
"""BMP compressions that are none; the others are decoded by a loop in Python, 0.4 s a megapixel (Pillow 12.3)."""


def check_picture(content: memoryview, max_pixels: int, resize_to: int) -> int:
    """Count the pixels of a picture file, or those that it is resized to if they are more; 0 of what is no picture.

    Its shorter side becomes ``resize_to``, or stays if that is 0.

    Raises:
        InputError: It has too many of them, or too many parts, or ends before its size.
    """
    reader = next((read for mark, read in _READERS.items() if re.match(mark, content, re.DOTALL)), None)
    if reader is None:
        return 0
    try:
        width, height = reader(content)
    except (struct.error, IndexError):
        raise InputError(
            "picture: expected a whole file, found one that ends before its pixels: send it again"
        ) from None
    resized = resize_to**2 * max(width, height) // max(1, min(width, height))  # millions, of a picture one pixel wide
    if max(width * height, resized) > max_pixels:
        raise InputError(
            f"picture: expected at most {max_pixels} pixels, before and after resizing, found {width} x {height}: make "
            "it smaller, or raise max_pixels in fleet.toml"
        )
    return max(width * height, resized)


def check_coded(content: memoryview, width: int, height: int) -> ImageCoding:
    """Tell how an image of that size is coded, which a decoder can do in the time that its pixels take.

    Raises:
        InputError: It is coded otherwise, has another size, or more bytes than three a pixel.
    """
    file = content.tobytes()
    is_jpeg = file.startswith(b"\xff\xd8\xff") and file.count(b"\xff\xda") == 1
    if not is_jpeg and not (file.startswith(b"RIFF") and file[8:16] == b"WEBPVP8L"):
        raise InputError("image: expected a JPEG of one scan or a lossless WebP, found another file: send it raw")
    if len(content) > 3 * width * height:
        raise InputError(f"image: expected fewer bytes than a raw one, found {len(content)}: send it raw")
    if check_picture(content, width * height, 0) != width * height:
        raise InputError(f"image: expected {width} x {height} pixels, found fewer: send it raw")
    return "jpeg" if is_jpeg else "lossless"


def _png(content: memoryview) -> tuple[int, int]:
    position, size = 8, (0, 0)
    for _ in range(_MAX_PARTS):
        if position >= len(content):
            return size
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"IHDR":  # wherever it is, and however often, a decoder takes it
            size = _larger(size, struct.unpack_from(">II", content, position + 8))
        if kind == b"IEND":
            return size
        position += 12 + length
    raise _too_many("chunks", _MAX_PARTS)


def _jpeg(content: memoryview) -> tuple[int, int]:
    if content.tobytes().count(b"\xff\xda") > _MAX_SCANS:
        raise _too_many("scans", _MAX_SCANS)
    position, size = 2, (0, 0)
    for _ in range(_MAX_PARTS):
        mark, marker = content[position], content[position + 1]
        if mark != 0xFF or marker == 0xFF:  # a byte between segments, which a decoder skips
            position += 1
        elif marker in _JPEG_ALONE:
            position += 2
        elif marker == 0xDA:
            return size
        else:
            if marker in _JPEG_FRAMES:
                height, width = struct.unpack_from(">HH", content, position + 5)
                size = _larger(size, (width, height))
            position += 2 + struct.unpack_from(">H", content, position + 2)[0]
    raise _too_many("segments", _MAX_PARTS)


def _gif(content: memoryview) -> tuple[int, int]:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)  # behind the table of colours
    is_extension = False
    for _ in range(_MAX_PARTS):
        byte = content[position]
        if is_extension:  # sub-blocks, each after its length, the last one empty
            is_extension = byte > 0
            position += 1 + byte
        elif byte == 0x2C:  # an image, which may reach beyond the size in the head
            left, top, image_width, image_height = struct.unpack_from("<HHHH", content, position + 1)
            return max(width, left + image_width), max(height, top + image_height)
        else:
            is_extension = byte == 0x21
            position += 1 + is_extension
    raise _too_many("blocks", _MAX_PARTS)


def _bmp(content: memoryview) -> tuple[int, int]:
    width: int
    height: int
    if struct.unpack_from("<I", content, 14) == (12,):
        width, height = struct.unpack_from("<HH", content, 18)
        return width, height
    width, height, _, _, compression = struct.unpack_from("<IiHHI", content, 18)
    if compression not in _BMP_PLAIN:
        raise InputError("picture: expected a BMP without compression, found one with it: send PNG or JPEG")
    return width, abs(height)


def _webp(content: memoryview) -> tuple[int, int]:
    kind = content[12:16].tobytes()
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF


def _larger(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one, other, key=lambda size: size[0] * size[1])


def _too_many(parts: str, limit: int) -> InputError:
    return InputError(f"picture: expected at most {limit} {parts}, found more: save it again with another program")


_READERS = {
    rb"\x89PNG\r\n\x1a\n": _png,
    rb"\xff\xd8\xff": _jpeg,
    rb"GIF8[79]a": _gif,
    rb"BM": _bmp,
    rb"RIFF.{4}WEBPVP8[ LX]": _webp,
}
"""How each format begins, and who reads it."""
