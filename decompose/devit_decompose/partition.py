"""Chooses the classes that each submodel is first trained on.

Every partition is a tuple of sorted tuples of class numbers, one for each submodel; each class is in one of them. The
same arguments give the same partition.

Of every function, ``parts`` is N, one for each submodel; ``seed`` decides between equals; ``sizes`` are the numbers of
classes of the parts, by default sizes that differ by at most one. InputError is raised where there are more parts than
classes, or ``sizes`` do not fit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from devit_contract.arrays import Float64Array, Int64Array
from devit_contract.errors import InputError
from devit_decompose.data.dataset import Split
from devit_decompose.models.inference import run
from devit_decompose.models.model import Model
from devit_decompose.recipe.schema import Recipe

Partition = tuple[tuple[int, ...], ...]

_ROUNDING = 1e-12


def partition_of(recipe: Recipe, training: Split, teacher: Model, validation: Split) -> Partition:
    """Give every submodel its classes, as ``recipe.partition`` says."""
    settings, count = recipe.partition, recipe.data.class_count
    everything = tuple(range(count))
    if settings.method in ("none", "committee"):
        return (everything,) * recipe.submodels
    if settings.method == "balanced":
        counts = np.bincount(training.labels, minlength=count)
        return balanced_partition(counts, recipe.submodels, sizes=settings.sizes, seed=recipe.seed)
    if settings.method in ("confusion", "specialists"):
        confusion = confusion_of(run(teacher, validation.images), validation.labels, count)
        parts = recipe.submodels - settings.generalists
        groups = confusion_partition(confusion, parts, sizes=settings.sizes, seed=recipe.seed)
        return (everything,) * settings.generalists + groups
    return random_partition(count, recipe.submodels, recipe.seed, sizes=settings.sizes)


def random_partition(classes: int, parts: int, seed: int, sizes: tuple[int, ...] = ()) -> Partition:
    """Cut the shuffled K classes into parts, as DeViT does.

    >>> random_partition(5, 2, seed=0)
    ((2, 3, 4), (0, 1))
    """
    cuts = np.cumsum(_sizes(classes, parts, sizes))[:-1]
    order = np.random.default_rng(seed).permutation(classes)
    return tuple(tuple(sorted(part.tolist())) for part in np.split(order, cuts))


def balanced_partition(
    counts: npt.NDArray[np.integer], parts: int, seed: int, sizes: tuple[int, ...] = ()
) -> Partition:
    """Give each part about the same number of images, from the images of each class, ``(K,)``.

    The classes are dealt out, largest first, each to the part that has the fewest images and still has room.

    >>> balanced_partition(np.array([9, 1, 1, 7]), 2, seed=0)
    ((0, 1), (2, 3))
    """
    classes = len(counts)
    room = sorted(_sizes(classes, parts, sizes), reverse=True)
    generator = np.random.default_rng(seed)
    members: list[list[int]] = [[] for _ in range(parts)]
    images = [0] * parts
    ranks = generator.permutation(parts)
    for label in sorted(generator.permutation(classes).tolist(), key=lambda each: -int(counts[each])):
        # Where no sizes are given, which parts become the larger ones is open until they are.
        limits = sizes or _limits([len(part) for part in members], room)
        part = min(
            (part for part in range(parts) if len(members[part]) < limits[part]),
            key=lambda each: (images[each], ranks[each]),
        )
        members[part].append(label)
        images[part] += int(counts[label])
    return tuple(tuple(sorted(part)) for part in members)


def confusion_partition(
    confusion: npt.NDArray[np.number], parts: int, seed: int, sizes: tuple[int, ...] = ()
) -> Partition:
    """Keep classes together that the teacher confuses.

    Two classes attract each other by the share of images of one that the teacher takes for the other. Parts are filled
    one by one, each with the class that its members attract most; then pairs of classes change places, the best pair
    first, until no exchange raises the attraction inside the parts. ``confusion``, ``(K, K)``, has one row for each
    true class: images counted by answer, or probabilities.

    >>> confusion_partition(np.array([[8, 0, 2, 0], [0, 9, 0, 1], [3, 0, 7, 0], [0, 1, 0, 9]]), 2, seed=0)
    ((0, 2), (1, 3))
    """
    classes = len(confusion)
    wanted = _sizes(classes, parts, sizes)
    # Ties go to the class that comes first: the seed decides which one that is.
    order = np.random.default_rng(seed).permutation(classes)
    attraction = _attraction(confusion)[np.ix_(order, order)]
    part_of = _filled(attraction, wanted)
    _exchange(attraction, part_of, parts)
    return tuple(tuple(sorted(order[part_of == part].tolist())) for part in range(parts))


def confusion_of(logits: npt.NDArray[np.floating], labels: Int64Array, classes: int) -> Float64Array:
    """Average a model's logits ``(n, K)`` by label ``(n,)``: row i is the mean softmax over the images of class i.

    Raises:
        InputError: A class has no image.
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() == 0:
        raise InputError(
            f"class {int(counts.argmin())}: expected validation images to see what it is confused with, found none: "
            "raise data.validation_images"
        )
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    sums = np.zeros((classes, classes))
    np.add.at(sums, labels, exponentials / exponentials.sum(axis=1, keepdims=True))
    confusion: Float64Array = sums / counts[:, np.newaxis]
    return confusion


def _sizes(classes: int, parts: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= parts <= classes:
        raise InputError(f"submodels: expected 1 to {classes}, one class each at least, found {parts}")
    if not sizes:
        return tuple(classes // parts + (part < classes % parts) for part in range(parts))
    if len(sizes) != parts or sum(sizes) != classes or min(sizes) < 1:
        raise InputError(
            f"partition.sizes: expected {parts} numbers from 1 that sum up to {classes} classes, found {sizes}"
        )
    return sizes


def _limits(found: list[int], room: list[int]) -> list[int]:
    """Limit the classes of each part, where the sizes ``room``, falling, may go to any part."""
    larger_left = room.count(room[0]) > sum(size == room[0] for size in found)
    return [room[0] if larger_left else max(size, room[-1]) for size in found]


def _attraction(confusion: npt.NDArray[np.number]) -> Float64Array:
    counts = confusion.astype(np.float64)
    sums = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)
    attraction: Float64Array = shares + shares.T
    np.fill_diagonal(attraction, 0.0)
    return attraction


def _filled(attraction: Float64Array, sizes: tuple[int, ...]) -> Int64Array:
    """Fill part by part: first the class that could gather most attraction in a part of that size, then its friends."""
    part_of = np.full(len(attraction), -1, np.int64)
    for part, size in enumerate(sizes):
        free = np.flatnonzero(part_of < 0)
        among = np.sort(attraction[np.ix_(free, free)], axis=1)[:, ::-1]
        pull = among[:, : size - 1].sum(axis=1)
        part_of[free[pull.argmax()]] = part
        for _ in range(size - 1):
            free = np.flatnonzero(part_of < 0)
            pull = attraction[np.ix_(free, np.flatnonzero(part_of == part))].sum(axis=1)
            part_of[free[pull.argmax()]] = part
    return part_of


def _exchange(attraction: Float64Array, part_of: Int64Array, parts: int) -> None:
    all_devices = np.arange(len(attraction))
    while True:
        to_part = attraction @ np.eye(parts)[part_of]  # (K, N)
        move = to_part[:, part_of] - to_part[all_devices, part_of][:, np.newaxis]  # [a, b]: a goes to b's part
        gain = move + move.T - 2 * attraction  # they would not meet there: each takes the other's place
        one, other = np.unravel_index(gain.argmax(), gain.shape)
        if gain[one, other] <= _ROUNDING:
            return
        part_of[[one, other]] = part_of[[other, one]]
