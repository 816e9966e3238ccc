"""Images that need not fit in memory: files and small arrays, decoded or resized when they are taken."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from PIL import Image

from devit_contract.arrays import Int64Array, UInt8Array
from devit_contract.artefacts.files import sha256_of_file
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import decode_image, picture_size
from devit_contract.artefacts.regular import read_regular
from devit_contract.errors import InputError
from devit_decompose.models.inference import Images

_LONGEST_PIXELS = 4096
"""Longest side that Preprocess allows."""


Self = TypeVar("Self", bound="LazyImages")


class LazyImages(ABC):
    """Images that are decoded when they are taken, by the preprocessing of clients and agents."""

    preprocess: Preprocess

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def select(self: Self, indices: Int64Array) -> Self:
        """Keep the images at some positions, ``(count,)``, without decoding any."""

    @abstractmethod
    def pieces(self) -> Iterator[bytes]:
        """Yield bytes that identify these images, for a digest; nothing is decoded."""

    @abstractmethod
    def content(self, index: int) -> tuple[bytes, str]:
        """Return the bytes of the image file at one position, and its name for errors.

        Raises:
            InputError: It cannot be read.
        """

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(n, H, W, C)``."""
        return len(self), *self.preprocess.shape

    def __getitem__(self, key: Int64Array | slice, /) -> UInt8Array:
        """Decode some, ``(count, H, W, C)``.

        Raises:
            InputError: One of them is no picture; the error names it.
        """
        chosen = np.arange(len(self))[key]
        taken = np.empty((len(chosen), *self.preprocess.shape), np.uint8)
        for place, index in enumerate(chosen):
            content, where = self.content(int(index))
            taken[place] = decode_image(content, self.preprocess, where)
        return taken

    def whole(self, index: int) -> UInt8Array:
        """Decode one at its own size, ``(h, w, C)``, for random crops; at most 4096 pixels long."""
        content, where = self.content(index)
        width, height = picture_size(content, where)
        shrink = min(1.0, _LONGEST_PIXELS / max(width, height))
        height, width = (max(1, round(side * shrink)) for side in (height, width))
        spec = msgspec.structs.replace(self.preprocess, height=height, width=width, resize_to=0)
        return decode_image(content, spec, where)


@dataclass(frozen=True)
class ImageFiles(LazyImages):
    """Image files below one folder."""

    root: Path
    names: tuple[str, ...]
    """Paths below ``root``."""
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Int64Array) -> ImageFiles:
        """Keep the files at some positions, ``(count,)``."""
        return replace(self, names=tuple(self.names[index] for index in indices))

    def pieces(self) -> Iterator[bytes]:
        """Yield name and digest of every file; this reads them all, which takes minutes for ImageNet."""
        for name in self.names:
            yield os.fsencode(name) + b"\0" + bytes.fromhex(sha256_of_file(self.root / name))

    def content(self, index: int) -> tuple[bytes, str]:
        """Read one file."""
        path = self.root / self.names[index]
        try:
            return read_regular(path), str(path)
        except OSError as err:
            raise InputError(f"{path}: cannot be read: {err.strerror}") from err


@dataclass(frozen=True)
class ResizedImages(LazyImages):
    """Images of one size in memory, resized when they are taken."""

    pixels: UInt8Array
    """Shape ``(n, h, w, 3)``."""
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: Int64Array) -> ResizedImages:
        """Keep the images at some positions, ``(count,)``."""
        return replace(self, pixels=self.pixels[indices])

    def pieces(self) -> Iterator[bytes]:
        """Yield the pixels in memory, before the change of size."""
        yield np.ascontiguousarray(self.pixels).tobytes()

    def content(self, index: int) -> tuple[bytes, str]:
        """Pack one image as a BMP file, so that it is resized as an image file would be."""
        packed = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(packed, "BMP")
        return packed.getvalue(), f"image {index}"


def select(images: Images, indices: Int64Array) -> Images:
    """Keep the images at some positions, ``(count,)``; pictures stay undecoded."""
    return images.select(indices) if isinstance(images, LazyImages) else images[indices]
