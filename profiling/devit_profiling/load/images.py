"""What is sent to the cell while it is measured: picture files, or random images where there are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from devit_contract.artefacts.preprocess import PICTURE_SUFFIXES
from devit_contract.errors import InputError
from devit_contract.wire.client import Picture

MAX_PICTURES = 1000
"""Files that are read from the given paths; they are sent again and again."""


@dataclass(frozen=True)
class Pictures:
    """Images to send in turn."""

    items: Sequence[Picture]
    origin: str
    """What they are, for people; it stands in the report."""

    def __iter__(self) -> Iterator[Picture]:
        """Give the images once, in order."""
        return iter(self.items)


def random_pictures(shape: tuple[int, int, int], *, count: int = 32, seed: int = 0) -> Pictures:
    """Make uint8 images ``(H, W, C)`` of even noise, the same for the same seed."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]
    size = " x ".join(map(str, shape))
    return Pictures(images, f"{count} random images of {size} (noise, seed {seed}), ready for the graph")


def load_pictures(paths: Sequence[Path]) -> Pictures:
    """Read picture files, to be decoded on the devices; of a folder, those with a picture's suffix, sorted by name.

    Raises:
        InputError: A path is missing or unreadable, or there is no picture.
    """
    files = [file for path in paths for file in _files(path)][:MAX_PICTURES]
    if not files:
        suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
        raise InputError(f"{', '.join(map(str, paths))}: expected picture files ({suffixes}), found none")
    return Pictures([_read(file) for file in files], f"{len(files)} picture files, decoded on the devices")


def _files(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err.strerror}") from err
