from __future__ import annotations

import multiprocessing.process
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.support.properties import examples

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import InputError
from devit_decompose.data.batches import Batch, BatchSpec, apply_variant, batches, variant_count
from devit_decompose.data.dataset import Split
from devit_decompose.data.lazy_images import ImageFiles
from devit_decompose.recipe.training import AugmentRecipe, Schedule

PLAIN = AugmentRecipe(flip=False, shift_pixels=0)
FULL = AugmentRecipe(crop=True, policy="rand-m9-mstd0.5-inc1", erase=0.5, mixup=0.8, cutmix=1.0)
UNMIXED = msgspec.structs.replace(FULL, mixup=0.0, cutmix=0.0)
CLASSES = 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="the extra timm is not installed")
with_workers = [
    # A machine may have fewer cores, and its Python may warn of forks beside threads.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def split_of(count: int, height: int = 6, width: int = 5, colours: int = 3) -> Split:
    images = np.random.default_rng(count).integers(0, 256, (count, height, width, colours), np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % CLASSES)


def pictures(folder: Path, count: int) -> Split:
    generator = np.random.default_rng(7)
    names = tuple(f"{number}.png" for number in range(count))
    for number, name in enumerate(names):
        pixels = generator.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return Split(ImageFiles(folder, names, Preprocess(16, 16, "rgb")), np.arange(count, dtype=np.int64) % CLASSES)


def made(
    split: Split,
    augment: AugmentRecipe,
    *,
    batch: int = 4,
    seed: int = 1,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    accumulate: int = 1,
) -> list[Batch]:
    schedule = Schedule(
        learning_rate=1.0,
        decay_epochs=1,
        patience=0,
        max_epochs=1,
        batch=batch,
        accumulate=accumulate,
        augment=augment,
    )
    colours = split.images.shape[3]
    return list(
        batches(
            split,
            schedule,
            BatchSpec(seed, epoch, CLASSES, MEAN[:colours], STD[:colours], rank, world),
            workers=workers,
        )
    )


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in ("images", "labels", "indices"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert (one.variants is None) == (other.variants is None)
        if one.variants is not None and other.variants is not None:
            assert torch.equal(one.variants, other.variants)


def joined(parts: list[Batch]) -> Batch:
    variants = [part.variants for part in parts if part.variants is not None]
    return Batch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.indices for part in parts]),
        torch.cat(variants) if variants else None,
    )


@given(count=st.integers(1, 60), batch=st.integers(1, 9), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_image_at_most_once_with_its_label(count: int, batch: int, epoch: int) -> None:
    split = split_of(count)
    if batch > count:
        with pytest.raises(InputError, match=rf"batch: expected at most the {count} images"):
            made(split, PLAIN, batch=batch)
        return
    seen = joined(made(split, PLAIN, batch=batch, epoch=epoch))
    assert len(seen.indices) == len(set(seen.indices.tolist())) == count // batch * batch
    assert (seen.images.dtype, seen.labels.dtype, seen.indices.dtype) == (torch.uint8, torch.int64, torch.int64)
    np.testing.assert_array_equal(seen.images.numpy(), split.images[seen.indices.numpy()])
    assert seen.labels.tolist() == [index % CLASSES for index in seen.indices.tolist()]


def test_orders_differ_by_epoch_and_seed_and_come_again() -> None:
    split = split_of(60)
    orders = {
        (seed, epoch): tuple(joined(made(split, PLAIN, seed=seed, epoch=epoch)).indices.tolist())
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    assert orders[1, 1] == tuple(joined(made(split, PLAIN, seed=1, epoch=1)).indices.tolist())


@given(world=st.integers(1, 4), batch=st.integers(1, 4), count=st.integers(16, 50), epoch=st.integers(0, 3))
def test_the_slices_of_all_processes_together_are_the_batches_of_one(
    world: int, batch: int, count: int, epoch: int
) -> None:
    split, augment = split_of(count), AugmentRecipe(shift_pixels=2)
    whole = made(split, augment, batch=batch * world, epoch=epoch)
    ranks = [made(split, augment, batch=batch, epoch=epoch, rank=rank, world=world) for rank in range(world)]
    assert_same([joined(list(parts)) for parts in zip(*ranks, strict=True)], whole)


@given(
    flip=st.booleans(),
    reach=st.integers(0, 3),
    colours=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_a_variants_number_makes_the_batchs_images_again(flip: bool, reach: int, colours: int, seed: int) -> None:
    split, augment = split_of(24, colours=colours), AugmentRecipe(flip=flip, shift_pixels=reach)
    count = variant_count(augment)
    assert count == (2 if flip else 1) * (2 * reach + 1) ** 2
    for batch in made(split, augment, batch=6, seed=seed):
        assert batch.variants is not None
        assert (batch.variants >= 0).all()
        assert (batch.variants < count).all()
        plain = torch.from_numpy(split.images[batch.indices.numpy()])
        assert torch.equal(apply_variant(plain, batch.variants, augment), batch.images)
        for image, variant, original in zip(batch.images, batch.variants.tolist(), plain, strict=True):
            assert torch.equal(apply_variant(original[None], variant, augment)[0], image)
            np.testing.assert_array_equal(by_hand(original.numpy(), variant, reach), image.numpy())


def by_hand(image: np.ndarray, variant: int, reach: int) -> np.ndarray:
    """Written out: flip, then let every pixel move by r - dy down and r - dx to the right."""
    side = 2 * reach + 1
    flip, dy, dx = variant // side**2, variant // side % side, variant % side
    image = image[:, ::-1] if flip else image
    moved = np.zeros_like(image)
    height, width, _ = image.shape
    for row in range(height):
        for column in range(width):
            target = row + reach - dy, column + reach - dx
            if 0 <= target[0] < height and 0 <= target[1] < width:
                moved[target] = image[row, column]
    return moved


def test_every_variant_is_drawn_about_as_often() -> None:
    split = Split(np.zeros((9000, 1, 1, 1), np.uint8), np.zeros(9000, np.int64))
    variants = joined(made(split, AugmentRecipe(), batch=9000)).variants
    assert variants is not None
    drawn = np.bincount(variants.numpy(), minlength=18)
    assert drawn.min() > 400  # of 500 expected, 22 standard deviation
    assert drawn.max() < 600


def test_a_shift_moves_the_image_and_uncovers_black() -> None:
    split = Split(np.full((64, 5, 5, 1), 200, np.uint8), np.zeros(64, np.int64))
    moved = joined(made(split, AugmentRecipe(flip=False, shift_pixels=1), batch=64)).images
    assert {int(one.sum()) for one in moved} == {200 * 25, 200 * 20, 200 * 16}


def test_a_flip_mirrors_left_and_right() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1)
    split = Split(np.repeat(image, 32, axis=0), np.zeros(32, np.int64))
    flipped = joined(made(split, AugmentRecipe(flip=True, shift_pixels=0), batch=32)).images
    assert {tuple(one[0, :, 0].tolist()) for one in flipped} == {(0, 1, 2, 3), (3, 2, 1, 0)}


def test_images_in_memory_are_not_changed() -> None:
    split = split_of(12)
    before = split.digest()
    for batch in made(split, AugmentRecipe()) + made(split, PLAIN):
        batch.images.zero_()
        batch.labels.zero_()
    assert split.digest() == before


def test_a_part_smaller_than_a_step_is_refused() -> None:
    assert len(made(split_of(24), PLAIN, batch=4, world=2, accumulate=3)) == 3
    with pytest.raises(InputError, match=r"at most the 23 images of the part for a step, found 24"):
        made(split_of(23), PLAIN, batch=4, world=2, accumulate=3)


@pytest.mark.parametrize("change", ["crop", "policy", "erase", "mixup", "cutmix"])
def test_what_timm_does_has_endless_variants(change: str) -> None:
    values = {"crop": True, "policy": "rand-m9", "erase": 0.1, "mixup": 0.8, "cutmix": 1.0}
    assert variant_count(msgspec.structs.replace(AugmentRecipe(), **{change: values[change]})) is None


def global_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("augment", [AugmentRecipe(), pytest.param(FULL, marks=needs_timm)])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=with_workers)])
def test_the_global_random_generators_are_left_as_they_were(augment: AugmentRecipe, workers: int) -> None:
    def seed_all() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed_all()
    expected = global_draws()
    split = split_of(12, 16, 16)
    first = made(split, augment, workers=workers)
    seed_all()
    assert_same(made(split, augment, workers=workers), first)
    assert global_draws() == expected


@needs_timm
@pytest.mark.parametrize("colours", [1, 3])
def test_batches_of_timms_augmentation_depend_on_seed_and_epoch_alone(colours: int) -> None:
    split = split_of(16, 16, 16, colours)
    first = made(split, FULL, epoch=2)
    made(split, FULL, epoch=0)
    global_draws()
    assert_same(made(split, FULL, epoch=2), first)
    assert not torch.equal(first[0].images, made(split, FULL, epoch=3)[0].images)
    assert first[0].variants is None
    assert first[0].images.shape == (4, 16, 16, colours)


@needs_timm
@examples(0.08)
@given(world=st.sampled_from([1, 2, 4]), epoch=st.integers(0, 9))
def test_the_slices_of_all_processes_are_varied_like_the_batches_of_one(world: int, epoch: int) -> None:
    split = split_of(16, 16, 16)
    whole = made(split, UNMIXED, batch=8, epoch=epoch)
    ranks = [made(split, UNMIXED, batch=8 // world, epoch=epoch, rank=rank, world=world) for rank in range(world)]
    assert_same([joined(list(parts)) for parts in zip(*ranks, strict=True)], whole)


@needs_timm
def test_a_crop_shows_a_part_of_the_picture_at_full_size(tmp_path: Path) -> None:
    """A picture whose red rises to the right and green downwards: a crop keeps the order and spans less."""
    ramp = np.zeros((64, 128, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = 2 * np.arange(128)[None, :], 4 * np.arange(64)[:, None]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    images = ImageFiles(tmp_path, ("ramp.png",) * 16, Preprocess(16, 16, "rgb"))
    split = Split(images, np.zeros(16, np.int64))
    augment = msgspec.structs.replace(PLAIN, crop=True, shift_pixels=5)
    crops = joined(made(split, augment, batch=16)).images
    assert crops.dtype == torch.uint8
    spans = []
    for crop in crops.int():
        assert (crop[:, 1:, 0] >= crop[:, :-1, 0]).all()
        assert (crop[1:, :, 1] >= crop[:-1, :, 1]).all()
        across, down = crop[8, :, 0].max() - crop[8, :, 0].min(), crop[:, 8, 1].max() - crop[:, 8, 1].min()
        spans.append((across / 2 / 128 * 16 / 15) * (down / 4 / 64 * 16 / 15))
    assert 0.05 < min(spans) < 0.4 < max(spans) < 1.1


@needs_timm
def test_a_policy_varies_some_images_and_keeps_their_type() -> None:
    split = split_of(32, 16, 16)
    batch = joined(made(split, msgspec.structs.replace(PLAIN, policy="rand-m9-mstd0.5-inc1"), batch=32))
    is_same = (batch.images == torch.from_numpy(split.images[batch.indices.numpy()])).flatten(1).all(dim=1)
    assert batch.images.dtype == torch.uint8
    assert 0 < int(is_same.sum()) < 32  # each of two operations with probability one half


@needs_timm
def test_an_erased_rectangle_holds_normal_numbers_on_the_scale_of_pixels() -> None:
    """Mean and spread are those of the data set, 0.4 +- 0.2 for red; all else keeps its exact value."""
    count = 64
    split = Split(np.full((count, 40, 40, 3), 200, np.uint8), np.zeros(count, np.int64))
    images = joined(made(split, msgspec.structs.replace(PLAIN, erase=0.5), batch=count)).images
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0
    assert float(images.max()) <= 255
    is_erased = (images != 200).any(dim=3)
    assert 16 < int(is_erased.any(dim=2).any(dim=1).sum()) < 48
    for mask in is_erased:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert mask.sum() == rows.sum() * columns.sum()  # a rectangle
    red = images[..., 0][is_erased] / 255
    assert red.mean().item() == pytest.approx(0.4, abs=0.02)
    assert red.std().item() == pytest.approx(0.2, abs=0.02)


@needs_timm
def test_mixup_adds_the_batch_and_its_mirror_and_says_so_in_the_labels() -> None:
    split = split_of(8)
    (batch,) = made(split, msgspec.structs.replace(PLAIN, mixup=0.8), batch=8)
    plain = torch.from_numpy(split.images[batch.indices.numpy()]).float()
    one_hot = torch.eye(CLASSES)[batch.indices % CLASSES]
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.float32)
    share = float(((batch.images - plain.flip(0)) / (plain - plain.flip(0))).nanmedian())
    assert 0 < share < 1
    torch.testing.assert_close(batch.images, share * plain + (1 - share) * plain.flip(0), atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(batch.labels, share * one_hot + (1 - share) * one_hot.flip(0), atol=1e-4, rtol=1e-4)


@needs_timm
def test_cutmix_pastes_a_rectangle_and_weighs_the_labels_by_its_area() -> None:
    split = Split(np.arange(8, dtype=np.uint8)[:, None, None, None].repeat(20, 1).repeat(20, 2), np.arange(8) % CLASSES)
    (batch,) = made(split, msgspec.structs.replace(PLAIN, cutmix=1.0), batch=8, seed=3)
    is_pasted = batch.images[..., 0] == batch.indices.flip(0)[:, None, None]
    assert (is_pasted | (batch.images[..., 0] == batch.indices[:, None, None])).all()
    area = is_pasted[0].float().mean()
    assert 0 < area < 1
    one_hot = torch.eye(CLASSES)[batch.indices % CLASSES]
    torch.testing.assert_close(batch.labels, (1 - area) * one_hot + area * one_hot.flip(0))


@needs_timm
@pytest.mark.parametrize(
    ("augment", "batch", "complaint"),
    [
        (AugmentRecipe(mixup=0.8), 3, "batch: expected an even number for mixup and cutmix, found 3"),
        (
            AugmentRecipe(policy="augmix-m3"),
            4,
            "augment.policy: expected a policy in timm's notation.*found 'augmix-m3'",
        ),
        (AugmentRecipe(policy="rand-m9-x1"), 4, "augment.policy: .*found 'rand-m9-x1'"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(augment: AugmentRecipe, batch: int, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        made(split_of(12), augment, batch=batch)


@pytest.mark.parametrize("augment", [AugmentRecipe(), pytest.param(FULL, marks=needs_timm)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_workers_make_the_same_batches(augment: AugmentRecipe, tmp_path: Path) -> None:
    split = pictures(tmp_path, 14)
    expected = made(split, augment)
    assert len(expected) == 3
    assert_same(made(split, augment, workers=2), expected)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=with_workers)])
def test_a_picture_that_cannot_be_read_ends_training_with_one_line(tmp_path: Path, workers: int) -> None:
    split = pictures(tmp_path, 8)
    (tmp_path / "3.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"3.png: expected a picture") as caught:
        made(split, AugmentRecipe(), workers=workers)
    assert "\n" not in str(caught.value)


def test_images_in_memory_that_are_flipped_and_shifted_need_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    assert len(made(split_of(12), AugmentRecipe(), workers=2)) == 3
