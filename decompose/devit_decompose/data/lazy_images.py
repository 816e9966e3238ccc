"""Images that need not fit in memory: picture files and small arrays, decoded or enlarged when they are taken."""

from __future__ import annotations

import io
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
from devit_contract.errors import InputError
from devit_decompose.models.inference import Images

_LONGEST_PIXELS = 4096
"""Longest side that Preprocess allows."""


Self = TypeVar("Self", bound="LazyImages")


class LazyImages(ABC):
    """Images that are made when they are taken, by the one preprocessing that client and agent have."""

    preprocess: Preprocess

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def select(self: Self, indices: Int64Array) -> Self:
        """Keep the images at some positions, ``(count,)``, without decoding any."""

    @abstractmethod
    def pieces(self) -> Iterator[bytes]:
        """Hand out what tells these images from others, for a digest; nothing is decoded."""

    @abstractmethod
    def content(self, index: int) -> tuple[bytes, str]:
        """Hand out the picture file's bytes at one position, and what names it in errors.

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
        """Decode one at its own size, ``(h, w, C)``, for random crops; at most 4096 pixels long.

        Raises:
            InputError: It is no picture.
        """
        content, where = self.content(index)
        width, height = picture_size(content, where)
        shrink = min(1.0, _LONGEST_PIXELS / max(width, height))
        size = max(1, round(height * shrink)), max(1, round(width * shrink))
        spec = msgspec.structs.replace(self.preprocess, height=size[0], width=size[1], resize_to=0)
        return decode_image(content, spec, where)


@dataclass(frozen=True)
class ImageFiles(LazyImages):
    """Picture files below one folder."""

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
        """Hand out name and digest of every file; reads them all, which takes minutes for ImageNet.

        Raises:
            InputError: A file cannot be read.
        """
        for name in self.names:
            yield name.encode() + b"\0" + bytes.fromhex(sha256_of_file(self.root / name))

    def content(self, index: int) -> tuple[bytes, str]:
        """Read one file."""
        path = self.root / self.names[index]
        try:
            return path.read_bytes(), str(path)
        except OSError as err:
            raise InputError(f"{path}: cannot be read: {err.strerror}") from err


@dataclass(frozen=True)
class ResizedImages(LazyImages):
    """Images of one size in memory, brought to another size when they are taken."""

    pixels: UInt8Array
    """Shape ``(n, h, w, 3)``."""
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: Int64Array) -> ResizedImages:
        """Keep the images at some positions, ``(count,)``."""
        return replace(self, pixels=self.pixels[indices])

    def pieces(self) -> Iterator[bytes]:
        """Hand out the pixels as they lie in memory, without the change of size."""
        yield np.ascontiguousarray(self.pixels).tobytes()

    def content(self, index: int) -> tuple[bytes, str]:
        """Pack one image as a BMP file, so that its change of size is that of a picture file."""
        packed = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(packed, "BMP")
        return packed.getvalue(), f"image {index}"


def select(images: Images, indices: Int64Array) -> Images:
    """Keep the images at some positions, ``(count,)``; pictures stay undecoded."""
    return images.select(indices) if isinstance(images, LazyImages) else images[indices]
