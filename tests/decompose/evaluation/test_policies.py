"""The simulation of policies against one that asks device by device, image by image, as a node does."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.arrays import Float32Array
from devit_contract.artefacts.calibration import Scores
from devit_contract.artefacts.head import Fusion, FusionHead, FusionStatistics, devices_of
from devit_contract.errors import InputError
from devit_decompose.evaluation.policies import (
    Judged,
    complete_stages,
    parse_stages,
    paths_of,
    play,
    rotations,
)

DIMS, CLASSES, IMAGES = (3, 2, 3, 2), 5, 200


@pytest.fixture(scope="module")
def cell() -> tuple[FusionHead, Float32Array]:
    rng = np.random.default_rng(7)
    mixing = rng.normal(size=(sum(DIMS), sum(DIMS)))
    statistics = FusionStatistics(np.zeros(sum(DIMS)), mixing.T @ mixing)
    head = FusionHead(DIMS, rng.normal(size=(CLASSES, sum(DIMS))), rng.normal(size=CLASSES), statistics)
    return head, (rng.normal(size=(IMAGES, sum(DIMS))) @ mixing).astype(np.float32)


def asked_one_by_one(
    head: FusionHead, image: Float32Array, order: list[int], stages: tuple[int, ...], threshold: float
) -> tuple[int, int, int]:
    """Ask devices until the answer is certain or all have answered; class, devices asked, stages."""
    parts = np.split(image, np.cumsum(DIMS)[:-1])
    features: dict[int, Float32Array] = {}
    left = list(order)
    for stage, count in enumerate(stages, start=1):
        for device in left[:count]:
            features[device] = parts[device]
        left = left[count:]
        logits = Fusion(head).logits(features)
        mask = sum(1 << device for device in features)
        if not left or Scores(head, mask).of(logits) >= threshold:
            return int(logits.argmax()), len(features), stage
    raise AssertionError("stages do not name all devices")


@pytest.mark.parametrize("stages", [(1, 1, 2), (1, 3), (1, 1, 1, 1), (2, 2)])
def test_playing_all_images_at_once_is_asking_one_by_one(
    cell: tuple[FusionHead, Float32Array], stages: tuple[int, ...]
) -> None:
    head, features = cell
    orders = [[2, 0, 3, 1], [1, 2, 3, 0]]
    paths = paths_of("certain", stages, orders)
    played = play(Judged(head, features), paths, dict.fromkeys((mask for path in paths for mask in path), 1.0))
    asked = played.of_asked(int.bit_count)
    for row, order in enumerate(orders):
        for image in range(0, IMAGES, 20):
            found = played.answers[row, image], asked[row, image], played.stages[row, image]
            assert found == asked_one_by_one(head, features[image], order, stages, 1.0)
    assert np.unique(played.stages).size > 1, "every image took as many stages"
    assert played.in_turn().tolist() == [played.answers[image % 2, image] for image in range(IMAGES)]


def test_without_certain_answers_all_devices_are_asked_and_nothing_flips(
    cell: tuple[FusionHead, Float32Array],
) -> None:
    judged = Judged(*cell)
    paths = paths_of("certain", (1, 1, 2), rotations(4))
    played = play(judged, paths, dict.fromkeys(range(15), math.inf))
    assert (played.of_asked(int.bit_count) == 4).all()
    assert (played.stages == 3).all()
    assert (played.answers == judged.answers(0b1111)).all()


def test_a_policys_paths_ask_what_its_name_says() -> None:
    orders = [[2, 3, 0, 1], [1, 0, 2, 3]]
    assert paths_of("all", (), orders) == ((0b1111,),)
    assert paths_of("single", (), orders) == ((0b0100,),)
    assert paths_of("replica", (), orders) == ((0b0100,), (0b0010,))
    assert paths_of("certain", (1, 3), orders) == ((0b0100, 0b1111), (0b0010, 0b1111))


@given(stages=st.lists(st.integers(1, 4), max_size=5), devices=st.integers(1, 9))
def test_completed_stages_ask_each_device_once_and_begin_as_they_were_given(stages: list[int], devices: int) -> None:
    completed = complete_stages(stages, devices)
    assert sum(completed) == devices
    assert min(completed) > 0
    if sum(stages) <= devices:
        assert list(completed[: len(stages)]) == stages
        written = "-".join(map(str, completed))
        assert parse_stages(written, devices) == completed
    for path in paths_of("certain", completed, rotations(devices)):
        assert path[-1] == (1 << devices) - 1
        assert all(set(devices_of(one)) < set(devices_of(two)) for one, two in pairwise(path))


@pytest.mark.parametrize("text", ["1-1-3", "0-4", "1--3", "1,3", "a", "-1", "1-1-2-", "5"])
def test_stages_that_do_not_fit_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=f"found '{text}': name how many are asked in each stage, e.g. 1-1"):
        parse_stages(text, 4)
