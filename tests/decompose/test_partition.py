from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.errors import InputError
from devit_decompose.partition import (
    Partition,
    balanced_partition,
    confusion_of,
    confusion_partition,
    random_partition,
)


def random_confusion(classes: int, seed: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).random((classes, classes))


Maker = Callable[[int, int, int, tuple[int, ...]], Partition]
MAKERS: dict[str, Maker] = {
    "random": random_partition,
    "balanced": lambda classes, parts, seed, sizes: balanced_partition(
        np.random.default_rng(seed).integers(0, 50, classes), parts, seed, sizes
    ),
    "confusion": lambda classes, parts, seed, sizes: confusion_partition(
        random_confusion(classes, seed), parts, seed, sizes
    ),
}


@st.composite
def class_counts(draw: st.DrawFn) -> tuple[int, int, tuple[int, ...]]:
    """Classes, parts, and sizes that fit, or none."""
    sizes = tuple(draw(st.lists(st.integers(1, 8), min_size=1, max_size=8)))
    return sum(sizes), len(sizes), sizes if draw(st.booleans()) else ()


@pytest.mark.parametrize("method", MAKERS)
@given(counts=class_counts(), seed=st.integers(0, 2**32 - 1))
def test_each_class_is_in_one_part_and_sizes_are_kept(
    method: str, counts: tuple[int, int, tuple[int, ...]], seed: int
) -> None:
    classes, parts, sizes = counts
    found = MAKERS[method](classes, parts, seed, sizes)
    assert sorted(label for part in found for label in part) == list(range(classes))
    assert all(list(part) == sorted(part) for part in found)
    lengths = tuple(len(part) for part in found)
    assert lengths == sizes if sizes else max(lengths) - min(lengths) <= 1
    assert found == MAKERS[method](classes, parts, seed, sizes)


@pytest.mark.parametrize("method", MAKERS)
@pytest.mark.parametrize(
    ("classes", "parts", "sizes", "complaint"),
    [
        (3, 4, (), r"submodels: expected 1 to 3, .* found 4"),
        (3, 0, (), "submodels"),
        (5, 2, (2, 2), r"partition.sizes: expected 2 numbers from 1 that sum up to 5 classes, found \(2, 2\)"),
        (5, 2, (5, 0), "partition.sizes"),
        (5, 2, (1, 2, 2), "partition.sizes"),
    ],
)
def test_parts_that_cannot_be_made_are_refused(
    method: str, classes: int, parts: int, sizes: tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        MAKERS[method](classes, parts, 0, sizes)


def test_the_random_partition_stays_what_it_was() -> None:
    """The one that the models of version 0.1.0 were trained on."""
    assert random_partition(10, 4, seed=1) == ((4, 7, 8), (0, 1, 2), (5, 9), (3, 6))


def test_balanced_classes_are_dealt_out_largest_first() -> None:
    """By hand: 8 | 7 -> 8 | 7 6 -> 8 5 | 7 6 -> 8 5 4 | 7 6 (13 against 13, either way) -> the rest where room is."""
    found = balanced_partition(np.array([4, 8, 6, 7, 5, 1]), 2, seed=3)
    images = sorted(sum(np.array([4, 8, 6, 7, 5, 1])[list(part)]) for part in found)
    assert images == [14, 17]
    assert {1, 4} in [set(part) - {0, 5} for part in found]


def test_balanced_parts_of_given_sizes_are_filled_while_there_is_room() -> None:
    """The small part takes the largest class and is full."""
    counts = np.array([10, 9, 1, 1])
    found = balanced_partition(counts, 2, seed=0, sizes=(1, 3))
    assert found in (((0,), (1, 2, 3)), ((1,), (0, 2, 3)))


@given(seed=st.integers(0, 2**32 - 1))
def test_equal_classes_make_equal_parts(seed: int) -> None:
    found = balanced_partition(np.full(12, 7), 4, seed)
    assert [len(part) for part in found] == [3, 3, 3, 3]


def test_the_seed_decides_between_equal_classes() -> None:
    assert len({balanced_partition(np.full(12, 7), 4, seed) for seed in range(10)}) > 1


@given(seed=st.integers(0, 2**32 - 1), sizes=st.permutations([2, 3, 4]))
def test_classes_that_are_confused_stay_together(seed: int, sizes: list[int]) -> None:
    """Planted groups, hidden by shuffled labels, are found again."""
    generator = np.random.default_rng(seed)
    groups = np.split(generator.permutation(9), np.cumsum(sizes)[:-1])
    confusion = generator.random((9, 9)) * 0.01
    for group in groups:
        confusion[np.ix_(group, group)] += 1.0
    found = confusion_partition(confusion, 3, seed, tuple(sizes))
    assert {frozenset(part) for part in found} == {frozenset(group.tolist()) for group in groups}


def inside(confusion: npt.NDArray[np.float64], parts: Partition) -> float:
    """Share of images confused with a class of the same part, pair by pair."""
    shares = confusion / confusion.sum(axis=1, keepdims=True)
    return sum(float(shares[one, other]) for part in parts for one in part for other in part if one != other)


@given(seed=st.integers(0, 2**32 - 1), parts=st.integers(2, 4))
def test_no_exchange_of_two_classes_raises_the_confusion_inside_the_parts(seed: int, parts: int) -> None:
    confusion = random_confusion(9, seed)
    found = confusion_partition(confusion, parts, seed)
    reached = inside(confusion, found)
    for one in range(9):
        for other in range(one):
            exchanged = tuple(tuple({one: other, other: one}.get(label, label) for label in part) for part in found)
            assert inside(confusion, exchanged) <= reached + 1e-9


def test_counts_of_unequal_classes_weigh_as_shares() -> None:
    """Class 3 has a hundred times the images; its few mistakes are no reason to part 0 from 1."""
    counts = np.array([[6, 4, 0, 0], [4, 6, 0, 0], [0, 0, 9, 1], [0, 10, 0, 990]])
    assert confusion_partition(counts, 2, seed=0) == ((0, 1), (2, 3)) or confusion_partition(counts, 2, seed=0) == (
        (2, 3),
        (0, 1),
    )


def test_confusion_is_the_mean_answer_of_each_class() -> None:
    """By hand: softmax of (0, log 3) is (1/4, 3/4)."""
    logits = np.array([[0.0, np.log(3)], [1000.0, 1000.0], [np.log(3), 0.0]])
    expected = [[(0.25 + 0.5) / 2, (0.75 + 0.5) / 2], [0.75, 0.25]]
    np.testing.assert_allclose(confusion_of(logits, np.array([0, 0, 1]), 2), expected)


def test_a_class_without_an_image_is_named() -> None:
    with pytest.raises(InputError, match=r"class 1: expected validation images .* found none"):
        confusion_of(np.zeros((2, 3)), np.array([0, 2]), 3)
