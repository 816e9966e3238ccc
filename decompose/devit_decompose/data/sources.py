"""Where images come from: IDX files, pairs of them, folders of pictures, and torchvision's data sets."""

from __future__ import annotations

import gzip
import math
import os
import pickle
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from devit_contract.arrays import Int64Array, UInt8Array
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import PICTURE_SUFFIXES, picture_size
from devit_contract.artefacts.regular import open_regular, read_regular, regular_size
from devit_contract.errors import InputError
from devit_contract.printable import printable
from devit_decompose.data.lazy_images import ImageFiles, ResizedImages
from devit_decompose.models.inference import Images
from devit_decompose.recipe.schema import DataRecipe

PAIRS = 100
"""Classes of ``pairs``: 10 a + b for a picture of class a, left, and one of class b, right."""
# https://github.com/zalandoresearch/fashion-mnist, "Labels"
_FASHION = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
FASHION_MNIST = tuple(_FASHION.split(", "))

_RENAMED = {"idx", "pairs", "imagenet"}
"""Sources whose classes a recipe may name as it likes."""
_HOW_TO_GET = {
    "CIFAR100": "run python -c \"from torchvision.datasets import *; CIFAR100('{folder}', download=True)\"",
    "Flowers102": "run python -c \"from torchvision.datasets import *; Flowers102('{folder}', download=True)\"",
    "StanfordCars": "its address is gone; lay a copy out as torchvision.datasets.StanfordCars says",
}
_HEAD_BYTES = 1 << 16
_LISTED = 8
_HINT = "apt install dataset-fashion-mnist, or set data.folder in the recipe"


class Labelled(NamedTuple):
    """Images ``(n, H, W, C)`` and their labels ``(n,)``."""

    images: Images
    labels: Int64Array


class Source(NamedTuple):
    """A data set as its makers split it."""

    training: Labelled
    test: Labelled
    class_names: tuple[str, ...]


def read_source(recipe: DataRecipe) -> Source:
    """Find the images that a recipe names; of ``pairs``, the single ones, with the names of all pairs.

    Raises:
        InputError: A file is missing or damaged, or the classes are not those of the recipe.
    """
    readers: dict[str, Callable[[DataRecipe, Path], Source]] = {
        "idx": _read_idx_set,
        "pairs": _read_idx_set,
        "folder": _read_folders,
        "imagenet": _read_folders,
        "cifar100": _read_cifar100,
        "flowers102": _read_flowers102,
        "stanford_cars": _read_stanford_cars,
    }
    folder = Path(recipe.folder).expanduser()
    source = readers[recipe.source](recipe, folder)
    if recipe.class_count != len(source.class_names):
        raise InputError(
            f"data.classes: expected {len(source.class_names)} as {folder} holds, found {recipe.class_count}"
        )
    if isinstance(recipe.classes, int):
        return source
    for ours, theirs in zip(recipe.classes, source.class_names, strict=True):
        if recipe.source not in _RENAMED and ours != theirs:
            raise InputError(f"data.classes: expected {theirs!r} as {folder} holds, found {ours!r}")
    return source._replace(class_names=recipe.classes)


def preprocess_of(recipe: DataRecipe) -> Preprocess:
    """How a picture becomes an image ``(H, W, C)`` of this data set, in training and on every device.

    Raises:
        InputError: The size or the number of colours is impossible.
    """
    height, width, colours = recipe.image_size
    if colours not in (1, 3):
        raise InputError(f"data.mean: expected 1 number (gray) or 3 (red, green, blue), found {colours}")
    try:
        return Preprocess(height, width, "gray" if colours == 1 else "rgb", resize_to=recipe.resize_to)
    except ValueError as err:
        raise InputError(f"data.size and data.resize_to: {err}: change them in the recipe") from err


def paired(images: UInt8Array, labels: Int64Array, classes: int, seed: tuple[int, int]) -> Labelled:
    """Put images side by side, in random order, with the same number of pairs for each two classes.

    There are ``n // classes**2`` pairs of each two classes. If all classes have the same number of images, each
    image is once on the left and once on the right; otherwise images of small classes are repeated. Single images
    ``(n, H, W, C)`` of K classes become pairs ``(m, H, 2 W, C)`` with labels K a + b.

    Raises:
        InputError: There are too few images.
    """
    generator = np.random.default_rng(seed)
    count = len(labels) // classes**2
    if count == 0 or np.bincount(labels, minlength=classes).min() == 0:
        raise InputError(f"pairs: expected at least {classes**2} images of all {classes} classes, found {len(labels)}")

    def deal() -> Int64Array:
        """Positions ``(K, K, count)``: of the first index's class, shared among the second's."""
        shuffled = [generator.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
        return np.stack([np.resize(members, (classes, count)) for members in shuffled])

    left = deal()  # (a, b, count)
    right = deal().transpose(1, 0, 2)  # (b, a, count) -> (a, b, count)
    order = generator.permutation(left.size)
    both = [images[side.reshape(-1)[order]] for side in (left, right)]
    return Labelled(np.concatenate(both, axis=2), order // count)


def read_idx(path: Path) -> UInt8Array:
    """Read an IDX file of unsigned bytes, plain or gzipped, with ``.gz`` added to its name.

    The format: two zero bytes, type 8, number of dimensions, then each dimension as a big-endian u32, then the bytes
    (http://yann.lecun.com/exdb/mnist).

    Raises:
        InputError: The file is missing, damaged, or of another type.
    """
    packed = path.with_name(path.name + ".gz")
    try:
        content = read_regular(path) if path.exists() else gzip.decompress(read_regular(packed))
    except (OSError, EOFError, zlib.error) as err:
        raise InputError(f"{packed}: cannot be read ({err}): {_HINT}") from err
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise InputError(f"{path}: expected an IDX file of unsigned bytes, found {content[:4]!r}: {_HINT}")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != math.prod(shape):
        raise InputError(f"{path}: expected {math.prod(shape)} bytes for shape {shape}, found {values.size}: {_HINT}")
    return values.reshape(shape)


def _read_idx_set(recipe: DataRecipe, folder: Path) -> Source:
    training, test = (_read_idx_part(recipe, folder, prefix) for prefix in ("train", "t10k"))
    found = int(training.labels.max()) + 1
    if int(test.labels.max()) >= found:
        raise InputError(f"{folder}: expected test labels below {found}, found {int(test.labels.max())}: {_HINT}")
    names = tuple(str(label) for label in range(found))  # IDX files hold none
    if recipe.source == "pairs":
        if found**2 != PAIRS:
            raise InputError(f"{folder}: expected 10 classes to pair, found {found}: {_HINT}")
        names = tuple(f"{left} + {right}" for left in FASHION_MNIST for right in FASHION_MNIST)
    return Source(training, test, names)


def _read_idx_part(recipe: DataRecipe, folder: Path, prefix: str) -> Labelled:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte").astype(np.int64)
    if images.ndim != 3 or labels.shape != images.shape[:1] or len(labels) == 0:
        raise InputError(
            f"{folder}: expected images (n, H, W) and n labels, found {images.shape} and {labels.shape}: {_HINT}"
        )
    size = images.shape[1], images.shape[2] * (2 if recipe.source == "pairs" else 1), 1
    if recipe.image_size != size:
        raise InputError(
            f"data.size and data.mean: expected {list(size[:2])} and 1 colour as the images in {folder}, "
            f"found {list(recipe.size)} and {len(recipe.mean)}: change them in the recipe"
        )
    return Labelled(images[..., np.newaxis], labels)


def _read_folders(recipe: DataRecipe, folder: Path) -> Source:
    """A folder for each class; of ILSVRC2012, as torchvision lays it out, by WordNet number."""
    is_imagenet = recipe.source == "imagenet"
    training, names = _class_folders(recipe, folder / "train", None)
    is_named_test = not is_imagenet and (folder / "test").is_dir()
    test, _ = _class_folders(recipe, folder / ("test" if is_named_test else "val"), names)
    shown = _imagenet_names(folder / "meta.bin", names) if is_imagenet else tuple(map(printable, names))
    return Source(training, test, shown)


def _imagenet_names(meta: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    if not meta.exists():
        return wnids
    try:
        # torchvision.datasets.imagenet, parse_devkit_archive: {WordNet number: names}, and the test set's numbers.
        known: dict[str, tuple[str, ...]] = torch.load(meta, weights_only=True)[0]
        return tuple(known[wnid][0] for wnid in wnids)
    except (OSError, EOFError, RuntimeError, LookupError, TypeError, pickle.UnpicklingError) as err:
        raise InputError(f"{meta}: expected torchvision's names of the folders, found none: remove it") from err


def _class_folders(
    recipe: DataRecipe, folder: Path, expected: tuple[str, ...] | None
) -> tuple[Labelled, tuple[str, ...]]:
    """List a folder with one folder for each class; ``expected`` are the allowed names."""
    try:
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as err:
        raise InputError(f"{folder}: expected a folder for each class, found none: set data.folder") from err
    classes = tuple(found) if expected is None else expected
    _refuse_twins(folder, sorted({*found, *classes}))
    if strangers := sorted(set(found) - set(classes)):
        raise InputError(f"{folder}: expected the classes of the training part, found {_listing(strangers)}: remove it")
    names, labels = [], []
    for label, name in enumerate(classes):
        below = _files_below(folder, name)
        if not below and expected is None:
            raise InputError(f"{folder / name}: expected pictures, found none: remove it or fill it")
        names += below
        labels += [label] * len(below)
    if not names:
        raise InputError(f"{folder}: expected pictures in a folder for each class, found none: set data.folder")
    if strangers := [name for name in names if not _is_picture(folder / name)]:
        raise InputError(f"{folder}: expected nothing but pictures, found {_listing(strangers)}: remove what is none")
    return _labelled(recipe, folder, names, labels), classes


def _refuse_twins(folder: Path, names: Sequence[str]) -> None:
    """Refuse two class names that look the same: macOS writes an umlaut as two characters, Linux as one."""
    by_look: dict[str, str] = {}
    for name in names:
        other = by_look.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise InputError(
                f"{folder}: expected one name a class, found {name!r} in two Unicode forms ({other!a} and "
                f"{name!a}): rename one of the folders, in the training or the test part"
            )


def _is_picture(path: Path) -> bool:
    """Tell by its suffix, or else by its first bytes, whether a file is a picture; a damaged one counts as one."""
    try:
        regular_size(path)
        if path.suffix.lower() in PICTURE_SUFFIXES:
            return True
        with open_regular(path) as file:
            picture_size(file.read(_HEAD_BYTES), str(path))
    except (OSError, InputError):
        return False
    return True


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more


def _files_below(folder: Path, name: str) -> list[str]:
    """Paths below ``folder`` of all files of one class, sorted; hidden ones are left out."""
    found = []
    for place, folders, files in os.walk(folder / name, followlinks=True):
        folders[:] = [one for one in folders if not one.startswith(".")]
        below = Path(place).relative_to(folder).as_posix()
        found += [f"{below}/{one}" for one in files if not one.startswith(".")]
    return sorted(found)


def _labelled(recipe: DataRecipe, folder: Path, names: Iterable[str], labels: Sequence[int]) -> Labelled:
    return Labelled(ImageFiles(folder, tuple(names), preprocess_of(recipe)), np.array(labels, np.int64))


def _read_cifar100(recipe: DataRecipe, folder: Path) -> Source:
    spec = preprocess_of(recipe)
    parts = [_torchvision("CIFAR100", folder, train=is_training) for is_training in (True, False)]
    sets = []
    for part in parts:
        pixels: UInt8Array = np.ascontiguousarray(part.data)  # (n, 32, 32, 3)
        is_as_it_is = pixels.shape[1:] == spec.shape and spec.resize_to in (0, pixels.shape[1])
        images: Images = pixels if is_as_it_is else ResizedImages(pixels, spec)
        sets.append(Labelled(images, np.array(part.targets, np.int64)))
    return Source(sets[0], sets[1], tuple(parts[0].classes))


def _read_flowers102(recipe: DataRecipe, folder: Path) -> Source:
    """The makers' training and validation parts, 10 images of each class in both, are one training part here."""
    parts = [_torchvision("Flowers102", folder, split=split) for split in ("train", "val", "test")]
    # torchvision has no public list of the files.
    paths: list[list[Path]] = [part._image_files for part in parts]
    labels: list[list[int]] = [part._labels for part in parts]
    below = folder / "flowers-102" / "jpg"
    training = _listed(recipe, below, paths[0] + paths[1], labels[0] + labels[1])
    return Source(training, _listed(recipe, below, paths[2], labels[2]), tuple(parts[0].classes))


def _read_stanford_cars(recipe: DataRecipe, folder: Path) -> Source:
    training, test = (_torchvision("StanfordCars", folder, split=split) for split in ("train", "test"))
    below = folder / "stanford_cars"
    # torchvision has no public list of the files.
    sets = [_listed(recipe, below, *zip(*part._samples, strict=True)) for part in (training, test)]
    return Source(sets[0], sets[1], tuple(training.classes))


def _listed(recipe: DataRecipe, folder: Path, paths: Any, labels: Any) -> Labelled:  # noqa: ANN401 - torchvision's
    return _labelled(recipe, folder, (Path(path).relative_to(folder).as_posix() for path in paths), labels)


def _torchvision(name: str, folder: Path, **part: str | bool) -> Any:  # noqa: ANN401 - torchvision has no types
    """Open one part of a data set of torchvision, without downloading it."""
    from devit_decompose.models.timm_models import import_torchvision

    dataset = getattr(import_torchvision().datasets, name)
    hint = _HOW_TO_GET[name].format(folder=folder)
    try:
        return dataset(str(folder), **part)
    except ImportError as err:
        raise InputError(f"{name}: expected scipy to read its lists, found none: pip install scipy") from err
    except (RuntimeError, OSError, LookupError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as err:
        if "Scipy" in str(err):
            raise InputError(f"{name}: expected scipy to read its lists, found none: pip install scipy") from err
        reason = " ".join(str(err).split()) or type(err).__name__
        raise InputError(f"{folder}: expected the files of {name}, found: {reason}: {hint}") from err
