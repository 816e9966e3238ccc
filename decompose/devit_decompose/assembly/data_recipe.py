"""Makes the recipe of a data set from what is in its folder."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import InputError
from devit_contract.printable import storable
from devit_decompose.data.sources import PAIRS, read_idx, read_source
from devit_decompose.recipe.schema import DataRecipe

_SAMPLES = 256
"""About this many images in the golden set, and at least one of each class."""
_CLASS_COUNTS = {"pairs": PAIRS, "cifar100": 100, "flowers102": 102, "stanford_cars": 196}


def data_recipe(
    source: str,
    folder: Path,
    spec: Preprocess,
    pixels: tuple[tuple[float, ...], tuple[float, ...]],
    *,
    name: str,
    validation_images: int | None = None,
    workers: int = 0,
) -> DataRecipe:
    """Make the recipe for the data set in a folder, whose images become what ``spec`` says.

    Pixels have a mean and a standard deviation, one number for each colour. Validation images are taken from the
    training part; by default a tenth, and at most half of a class.

    Raises:
        InputError: The folder does not hold such a data set, or less than two classes.
    """
    for text in (name, str(folder.expanduser().resolve())):
        if text != storable(text):
            raise InputError(f"{text}: expected a name in UTF-8, which the recipe holds: rename that folder")
    size, (mean, std) = (spec.height, spec.width), pixels
    if source in ("idx", "pairs"):
        size, mean, std = _idx_size(source, folder), mean[:1], std[:1]
    classes = _class_count(source, folder)
    if classes < 2:
        raise InputError(f"{folder}: expected pictures of at least 2 classes, found {classes}")
    fields = {
        "name": name,
        "folder": str(folder.expanduser().resolve()),
        "size": size,
        "classes": classes,
        "mean": mean,
        "std": std,
        "validation_images": classes,
        "sample_images": classes,
        "source": source,
        "resize_to": 0 if source in ("idx", "pairs") else spec.resize_to,
        "workers": workers,
    }
    try:
        recipe = msgspec.convert(fields, DataRecipe)
    except msgspec.ValidationError as err:
        raise InputError(f"--data and --source: {err}") from err
    if validation_images is None:
        validation_images = _tenth(recipe)
    samples = classes * max(1, min(_SAMPLES, validation_images) // classes)
    return msgspec.structs.replace(recipe, validation_images=validation_images, sample_images=samples)


def _tenth(recipe: DataRecipe) -> int:
    labels = read_source(recipe).training.labels
    singles = np.bincount(labels)
    rounded = round(len(labels) / 10 / recipe.class_count)
    at_most = int(singles.min()) * len(singles) // 2 // recipe.class_count
    return recipe.class_count * max(1, min(rounded, at_most))


def _idx_size(source: str, folder: Path) -> tuple[int, int]:
    images = read_idx(folder / "train-images-idx3-ubyte")
    if images.ndim != 3:
        raise InputError(f"{folder}: expected images (n, H, W), found {images.shape}")
    return images.shape[1], images.shape[2] * (2 if source == "pairs" else 1)


def _class_count(source: str, folder: Path) -> int:
    if source in _CLASS_COUNTS:
        return _CLASS_COUNTS[source]
    if source == "idx":
        return int(read_idx(folder / "train-labels-idx1-ubyte").astype(np.int64).max(initial=-1)) + 1
    train = folder / "train"
    try:
        return sum(1 for entry in train.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as err:
        raise InputError(
            f"{train}: expected a folder for each class, found none ({err.strerror}): "
            "set --data to a folder with train/ and test/, or name its --source"
        ) from err
