"""Labelled images from IDX files, split into training, validation and test parts that never meet."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from devit_contract.errors import InputError
from devit_decompose.recipe import DataRecipe

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

_HINT = "apt install dataset-fashion-mnist, or set data.folder in the recipe"


@dataclass(frozen=True)
class Split:
    """Labelled images."""

    images: UInt8Array
    """Shape ``(n, H, W, C)``."""
    labels: Int64Array
    """Shape ``(n,)``, global labels."""

    def of_classes(self, classes: tuple[int, ...]) -> Split:
        """Keep the images of some classes; labels become positions in ``classes``."""
        position = np.full(int(self.labels.max()) + 1, -1, np.int64)
        position[list(classes)] = np.arange(len(classes))
        kept = position[self.labels] >= 0
        return Split(self.images[kept], position[self.labels[kept]])

    def digest(self) -> str:
        """Digest images and labels, as 64 hex digits."""
        whole = hashlib.sha256(np.ascontiguousarray(self.images).tobytes())
        whole.update(self.labels.astype("<i8").tobytes())
        return whole.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Three parts without a common image."""

    training: Split
    validation: Split
    test: Split


def load_dataset(recipe: DataRecipe, seed: int) -> Dataset:
    """Read the IDX files; the validation part is drawn from the training file, balanced over classes.

    Raises:
        InputError: A file is missing, is no IDX file, or does not fit the recipe.
    """
    folder = Path(recipe.folder)
    training = _read_split(folder, "train", recipe)
    test = _read_split(folder, "t10k", recipe)
    chosen = balanced_indices(training.labels, recipe.validation_images, len(recipe.classes), seed)
    rest = np.setdiff1d(np.arange(len(training.labels)), chosen)
    return Dataset(
        training=Split(training.images[rest], training.labels[rest]),
        validation=Split(training.images[chosen], training.labels[chosen]),
        test=test,
    )


def balanced_indices(labels: Int64Array, count: int, classes: int, seed: int) -> Int64Array:
    """Draw ``count`` positions, the same number of each class, in rising order.

    Raises:
        InputError: ``count`` is no multiple of the number of classes, or a class has too few images.
    """
    if count % classes != 0:
        raise InputError(f"expected a multiple of {classes} images to balance {classes} classes, found {count}")
    generator = np.random.default_rng(seed)
    drawn = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < count // classes:
            raise InputError(f"class {label}: expected at least {count // classes} images, found {len(members)}")
        drawn.append(generator.choice(members, count // classes, replace=False))
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def read_idx(path: Path) -> UInt8Array:
    """Read an IDX file of unsigned bytes, plain or with ``.gz`` behind its name.

    The format: two zero bytes, type 8, number of dimensions, then each dimension as a big-endian u32, then the bytes
    (http://yann.lecun.com/exdb/mnist).

    Raises:
        InputError: The file is missing, damaged, or of another type.
    """
    packed = path.with_name(path.name + ".gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as err:
        raise InputError(f"{packed}: cannot be read ({err}): {_HINT}") from err
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise InputError(f"{path}: expected an IDX file of unsigned bytes, found {content[:4]!r}: {_HINT}")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != np.prod(shape):
        raise InputError(f"{path}: expected {np.prod(shape)} bytes for shape {shape}, found {values.size}: {_HINT}")
    return values.reshape(shape)


def _read_split(folder: Path, prefix: str, recipe: DataRecipe) -> Split:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte").astype(np.int64)
    if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max() >= len(recipe.classes):
        raise InputError(
            f"{folder}: expected as many labels below {len(recipe.classes)} as images, "
            f"found images {images.shape}, labels {labels.shape} up to {labels.max()}"
        )
    return Split(images[..., np.newaxis], labels)
