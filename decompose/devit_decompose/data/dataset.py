"""A data set in three parts without a common image: training, validation and test."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from devit_contract.arrays import Int64Array
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import InputError
from devit_decompose.data.lazy_images import LazyImages, ResizedImages, select
from devit_decompose.data.sources import PAIRS, paired, preprocess_of, read_source
from devit_decompose.models.inference import Images
from devit_decompose.recipe.schema import DataRecipe

_CHUNK_IMAGES = 4096


@dataclass(frozen=True)
class Split:
    """Labelled images."""

    images: Images
    """Shape ``(n, H, W, C)``, in memory or decoded when they are taken."""
    labels: Int64Array
    """Shape ``(n,)``, global labels."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Int64Array) -> Split:
        """Keep the images at some positions, ``(count,)``; pictures stay undecoded."""
        return Split(select(self.images, indices), self.labels[indices])

    def of_classes(self, classes: tuple[int, ...]) -> Split:
        """Keep the images of some classes; labels become positions in ``classes``."""
        position = np.full(max(*classes, int(self.labels.max(initial=0)), 0) + 1, -1, np.int64)
        position[list(classes)] = np.arange(len(classes))
        kept = np.flatnonzero(position[self.labels] >= 0)
        return Split(select(self.images, kept), position[self.labels[kept]])

    def digest(self) -> str:
        """Digest images and labels, as 64 hex digits.

        Picture files count with their own bytes and their names below the data set's folder, and are not decoded:
        the same files at another size have the same digest.

        Raises:
            InputError: A picture file cannot be read.
        """
        whole = hashlib.sha256()
        for piece in _pieces(self.images):
            whole.update(piece)
        whole.update(self.labels.astype("<i8").tobytes())
        return whole.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Three parts without a common image."""

    training: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    """In the order of the labels."""
    name: str
    preprocess: Preprocess
    """How a picture becomes one of the images."""


def load_dataset(recipe: DataRecipe, preprocess: Preprocess | None = None) -> Dataset:
    """Read a data set; its validation part is drawn from the training part, the same number of each class.

    Of ``pairs``, the single images are split first, and each part is paired on its own: no picture is in two parts.
    If models take other images, as ``preprocess`` says, IDX images are enlarged, and gray ones become red, green and
    blue.

    Raises:
        InputError: A file is missing, is damaged, or does not fit the recipe.
    """
    source = read_source(recipe)
    is_paired = recipe.source == "pairs"
    classes = math.isqrt(PAIRS) if is_paired else recipe.class_count
    if recipe.validation_images < 1 or (is_paired and recipe.validation_images % PAIRS != 0):
        needed = f"a multiple of {recipe.class_count} from {recipe.class_count}"
        raise InputError(f"data.validation_images: expected {needed}, found {recipe.validation_images}")
    training, test = Split(*source.training), Split(*source.test)
    chosen = _drawn(training.labels, "validation_images", recipe, classes)
    rest = np.setdiff1d(np.arange(len(training)), chosen)
    left = np.bincount(training.labels[rest], minlength=classes)
    if left.min() == 0:
        raise InputError(
            f"data.validation_images: expected images of class {left.argmin()} left for training, "
            f"found none beside the {recipe.validation_images} for validation: lower it in the recipe"
        )
    training, validation = training.select(rest), training.select(chosen)
    if recipe.training_images:
        training = training.select(_drawn(training.labels, "training_images", recipe, classes))
    if is_paired:
        training = Split(*paired(training.images[:], training.labels, classes, (recipe.split_seed, 1)))
        validation = Split(*paired(validation.images[:], validation.labels, classes, (recipe.split_seed, 2)))
        test = Split(*paired(test.images[:], test.labels, classes, (0, 0)))  # the same for every split
    own = preprocess_of(recipe)
    if preprocess is not None and preprocess != own:
        training, validation, test = (_resized(split, preprocess) for split in (training, validation, test))
    return Dataset(training, validation, test, source.class_names, recipe.name, preprocess or own)


def balanced_indices(labels: Int64Array, count: int, classes: int, seed: int) -> Int64Array:
    """Draw ``count`` positions, the same number of each class, in rising order.

    Raises:
        InputError: ``count`` is no multiple of the number of classes, or a class has too few images.
    """
    if count % classes != 0:
        raise InputError(f"expected a multiple of {classes} images to balance {classes} classes, found {count}")
    generator = np.random.default_rng(seed)
    by_class = np.argsort(labels, kind="stable")  # rising positions within each class
    ends = np.cumsum(np.bincount(labels, minlength=classes))
    drawn = []
    for label, members in enumerate(np.split(by_class, ends[:-1])[:classes]):
        if len(members) < count // classes:
            raise InputError(f"class {label}: expected at least {count // classes} images, found {len(members)}")
        drawn.append(generator.choice(members, count // classes, replace=False))
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _resized(split: Split, spec: Preprocess) -> Split:
    pixels = np.asarray(split.images)
    return Split(ResizedImages(np.repeat(pixels, 3 // pixels.shape[3], axis=3), spec), split.labels)


def _drawn(labels: Int64Array, field: str, recipe: DataRecipe, classes: int) -> Int64Array:
    """Draw as many images as a field of the recipe says."""
    try:
        return balanced_indices(labels, getattr(recipe, field), classes, recipe.split_seed)
    except InputError as err:
        raise InputError(f"data.{field}: {err}: change it in the recipe") from err


def _pieces(images: Images) -> Iterator[bytes]:
    if isinstance(images, LazyImages):
        return images.pieces()
    chunks = (images[start : start + _CHUNK_IMAGES] for start in range(0, len(images), _CHUNK_IMAGES))
    return (np.ascontiguousarray(chunk).tobytes() for chunk in chunks)
