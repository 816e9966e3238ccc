"""Make the golden pictures: every kind of file that clients send, and the bytes that the graph must get of each.

``golden.npz`` holds, under ``NAME/SPEC``, uint8 ``(H, W, C)`` for each picture and each way to preprocess in
``SPECS``. Written by Pillow 12.3 with libjpeg-turbo 3.1; the test says how near other builds must come.

Run ``python tests/data/pictures/make_pictures.py`` to write the folder again, and look at what changed.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import load_image

FOLDER = Path(__file__).parent
HEIGHT, WIDTH = 37, 50
SPECS = {
    "as-it-is": Preprocess(height=HEIGHT, width=WIDTH, colour="rgb"),
    "gray": Preprocess(height=HEIGHT, width=WIDTH, colour="gray"),
    "squeezed": Preprocess(height=24, width=24, colour="rgb"),
    "cropped": Preprocess(height=24, width=24, colour="rgb", resize_to=27),
    "bilinear": Preprocess(height=20, width=30, colour="rgb", interpolation="bilinear", resize_to=31),
    "sampled": Preprocess(height=24, width=24, colour="gray", antialias=False),
}


def scene() -> npt.NDArray[np.uint8]:
    """Three gradients and a frame that tells all four corners apart, ``(37, 50, 3)``."""
    y, x = np.indices((HEIGHT, WIDTH))
    pixels = np.stack([x * 5, y * 6, (x + 2 * y) * 2], axis=2).astype(np.uint8)
    pixels[:8, :8] = (255, 0, 0)
    pixels[:8, -8:] = (0, 255, 0)
    pixels[-8:, :8] = (0, 0, 255)
    return pixels


def portrait() -> npt.NDArray[np.uint8]:
    """Taller than wide and full of detail, so that it matters which side is scaled first, ``(150, 40, 3)``."""
    y, x = np.indices((150, 40))
    return np.stack([x * y, x * 37 + y * 11, (x ^ y) * 5], axis=2).astype(np.uint8)


def png_of_16_bits(values: npt.NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits, gray ``(h, w)`` or colour ``(h, w, 3)``; Pillow writes no colours of 16 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b""))
    )


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """One picture file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def oriented(orientation: int) -> Image.Exif:
    """EXIF that says how a camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pictures() -> dict[str, bytes]:
    """File name to content."""
    pixels = scene()
    image = Image.fromarray(pixels)
    deep = pixels.astype(np.uint16) * 257 - np.minimum(pixels, 1)  # the lower byte differs from the upper
    see_through = Image.fromarray(np.dstack([pixels, np.full((HEIGHT, WIDTH), 255, np.uint8)]))
    see_through.paste((10, 200, 30, 0), (20, 10, 30, 20))
    return {
        "rgb.png": saved(image, "PNG"),
        "gray.png": saved(image.convert("L"), "PNG"),
        "gray-16-bit.png": png_of_16_bits(deep[..., 0]),
        "rgb-16-bit.png": png_of_16_bits(deep),
        "rgba.png": saved(see_through, "PNG"),
        "palette-transparent.png": saved(image.quantize(32, dither=Image.Dither.NONE), "PNG", transparency=3),
        "orientation-6.png": saved(image, "PNG", exif=oriented(6)),
        "rgb.jpg": saved(image, "JPEG", quality=90),
        "gray.jpg": saved(image.convert("L"), "JPEG", quality=90),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG", quality=90),
        "orientation-6.jpg": saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=oriented(6)),
        "orientation-3.jpg": saved(image.transpose(Image.Transpose.ROTATE_180), "JPEG", quality=90, exif=oriented(3)),
        "portrait.png": saved(Image.fromarray(portrait()), "PNG"),
        "portrait.jpg": saved(Image.fromarray(portrait()), "JPEG", quality=90),
    }


def main() -> None:
    """Write the pictures and what must become of them."""
    golden = {}
    for name, content in pictures().items():
        (FOLDER / name).write_bytes(content)
        for spec_name, spec in SPECS.items():
            golden[f"{name}/{spec_name}"] = load_image(FOLDER / name, spec)
    np.savez_compressed(FOLDER / "golden.npz", allow_pickle=False, **golden)


if __name__ == "__main__":
    main()
