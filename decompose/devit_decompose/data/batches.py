"""Batches of training images: shuffled, augmented, and reproducible from seed and epoch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from devit_contract.arrays import Int64Array, UInt8Array
from devit_contract.errors import InputError
from devit_decompose.data.dataset import Split
from devit_decompose.data.lazy_images import LazyImages
from devit_decompose.data.workers import made_by_workers
from devit_decompose.recipe.training import AugmentRecipe, Schedule

# Third number of a generator's seed, after seed and epoch; the order has (seed, epoch) alone.
_VARIANTS, _TIMM = 1, 2
_OnPicture = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Batch:
    """Images and their labels."""

    images: Tensor
    """Shape ``(B, H, W, C)``: uint8, or float32 in 0 to 255 where images were mixed or erased."""
    labels: Tensor
    """int64 ``(B,)``, or float32 ``(B, K)`` that sum up to 1 where images were mixed."""
    indices: Tensor
    """int64 ``(B,)``: positions in the split."""
    variants: Tensor | None
    """int64 ``(B,)``: which variant of each image this is, if they are only flipped and shifted."""


@dataclass(frozen=True)
class BatchSpec:
    """Which batches are made of a split, and from which random numbers."""

    seed: int
    """Of the stage, not negative."""
    epoch: int
    """From 0."""
    classes: int
    """K of the split's labels."""
    mean: tuple[float, ...]
    """Per colour, of pixels in 0 to 1."""
    std: tuple[float, ...]
    """Per colour."""
    rank: int = 0
    """Number of this process, from 0."""
    world: int = 1
    """How many processes train together."""


def batches(split: Split, schedule: Schedule, spec: BatchSpec, *, workers: int = 0) -> Iterator[Batch]:
    """Go through a split once, in random order; images that fill no whole batch are left out.

    Everything is drawn from seed, epoch and an image's position in the order alone: a resumed run, other workers and
    another number of processes see the same images and augmentations. Each process takes its slice of every
    batch of ``schedule.batch * world`` images; mixup and cutmix mix within that slice. The global random generators
    are not changed. ``workers`` processes decode and vary images; those in memory that are only flipped and shifted
    need none.

    Raises:
        InputError: There are fewer images than a step takes, the augmentation is impossible, or, from the iterator,
            a picture cannot be read.
    """
    step_images = schedule.batch * spec.world * schedule.accumulate
    if len(split) < step_images:
        raise InputError(
            f"batch: expected at most the {len(split)} images of the part for a step, "
            f"found {step_images} (batch x processes x accumulate): lower it in the recipe"
        )
    epoch = _Epoch(split, schedule, spec)
    if epoch.timm.mix is not None and schedule.batch % 2:
        raise InputError(f"batch: expected an even number for mixup and cutmix, found {schedule.batch}")
    is_quick = variant_count(schedule.augment) is not None and not isinstance(split.images, LazyImages)
    return made_by_workers(epoch.batch, len(epoch), 0 if is_quick else workers)


def variant_count(augment: AugmentRecipe) -> int | None:
    """How many variants of an image there are; None if more than flips and shifts varies it."""
    return None if augment.uses_timm else _plain_count(augment)


def apply_variant(images: Tensor, variant: int | Tensor, augment: AugmentRecipe) -> Tensor:
    """Flip images and shift them; what a shift uncovers is black.

    Args:
        images: uint8 ``(B, H, W, C)``.
        variant: One number for all, or int64 ``(B,)``: ``flip * (2 r + 1)**2 + dy * (2 r + 1) + dx`` with
            r = ``shift_pixels``; at dy = dx = r nothing is shifted, at 0 the image moves down and right by r.
        augment: Its ``flip`` and ``shift_pixels`` count here.
    """
    count, height, width, _ = images.shape
    reach = _reach(augment)
    side = 2 * reach + 1
    number = torch.as_tensor(variant).expand(count)
    if augment.flip:
        is_flipped = number >= side**2
        images = torch.where(is_flipped[:, None, None, None], images.flip(2), images)
    if reach > 0:
        top, left = number // side % side, number % side
        padded = functional.pad(images, (0, 0, reach, reach, reach, reach))
        rows = (top[:, None] + torch.arange(height))[:, :, None]  # (B, H, 1)
        columns = (left[:, None] + torch.arange(width))[:, None, :]  # (B, 1, W)
        images = padded[torch.arange(count)[:, None, None], rows, columns]
    return images


class _Epoch:
    """All batches of one process in one epoch; any of them can be made at any time, by any process."""

    def __init__(self, split: Split, schedule: Schedule, spec: BatchSpec) -> None:
        count, augment = len(split), schedule.augment
        self.split, self.schedule, self.spec = split, schedule, spec
        # One draw for each position in the order, independent of the batches.
        first = spec.seed, spec.epoch
        self.order: Int64Array = np.random.default_rng(first).permutation(count)
        draw = np.random.default_rng((*first, _VARIANTS))
        self.variants: Int64Array = draw.integers(_plain_count(augment), size=count)
        self.seeds: npt.NDArray[np.uint32] | None = None
        if variant_count(augment) is None:
            draw = np.random.default_rng((*first, _TIMM))
            self.seeds = draw.integers(2**32, size=(count, len(_Seeds._fields)), dtype=np.uint32)

    def __len__(self) -> int:
        return len(self.order) // (self.schedule.batch * self.spec.world)

    @property
    def timm(self) -> _TimmParts:
        """Timm's augmentations, made once for each recipe and not pickled with an epoch."""
        image_size = tuple(self.split.images.shape[1:])
        return _timm_parts(self.schedule.augment, image_size, self.spec.classes, self.spec.mean, self.spec.std)

    def batch(self, step: int) -> Batch:
        """Make one batch."""
        augment, size = self.schedule.augment, self.schedule.batch
        start = (step * self.spec.world + self.spec.rank) * size
        positions = slice(start, start + size)
        indices = self.order[positions]
        variants = torch.from_numpy(self.variants[positions])
        labels = torch.from_numpy(self.split.labels[indices])
        if self.seeds is None:
            images = torch.from_numpy(self.split.images[indices])
            return Batch(apply_variant(images, variants, augment), labels, torch.from_numpy(indices), variants)
        seeds = [_Seeds(*map(int, row)) for row in self.seeds[positions]]
        with _lent_generators():
            images, labels = self._varied(indices, labels, variants, seeds)
        return Batch(images, labels, torch.from_numpy(indices), None)

    def _varied(
        self, indices: Int64Array, labels: Tensor, variants: Tensor, seeds: list[_Seeds]
    ) -> tuple[Tensor, Tensor]:
        timm = self.timm
        if timm.crop is None:
            pixels = self.split.images[indices]
        else:
            pixels = np.stack([self._cropped(int(i), timm.crop, one) for i, one in zip(indices, seeds, strict=True)])
        images = apply_variant(torch.from_numpy(pixels), variants, self.schedule.augment)
        if timm.policy is not None:
            for image, one in zip(images, seeds, strict=True):
                _seed_all(one.policy)
                image.copy_(torch.from_numpy(_pixels(timm.policy(_picture(image.numpy())))))
        if timm.erase is not None:
            images = images.float()
            for image, one in zip(images, seeds, strict=True):
                _seed_all(one.erase)
                timm.erase(image)
        if timm.mix is not None:
            _seed_all(seeds[0].mix)
            planes, labels = timm.mix(images.float().permute(0, 3, 1, 2), labels)  # (B, C, H, W)
            images = planes.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
        return images, labels

    def _cropped(self, index: int, crop: _OnPicture, seeds: _Seeds) -> UInt8Array:
        images = self.split.images
        whole = images.whole(index) if isinstance(images, LazyImages) else images[index : index + 1][0]
        _seed_all(seeds.crop)
        return _pixels(crop(_picture(whole)))


class _Seeds(NamedTuple):
    """Seeds of timm's augmentations of one image."""

    crop: int
    policy: int
    erase: int
    mix: int
    """The first image's is that of the batch."""


class _TimmParts(NamedTuple):
    """Augmentations of timm, those that the recipe asks for."""

    crop: _OnPicture | None = None
    policy: _OnPicture | None = None
    erase: Callable[[Tensor], None] | None = None
    """Erases in one float32 image ``(H, W, C)``."""
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """From images ``(B, C, H, W)`` and int64 labels ``(B,)`` to mixed images and float32 ``(B, K)``."""


@lru_cache(maxsize=8)
def _timm_parts(
    augment: AugmentRecipe, image_size: tuple[int, ...], classes: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> _TimmParts:
    """Make them once, before workers start, so that workers need not load timm."""
    if variant_count(augment) is not None:
        return _TimmParts()
    from devit_decompose.models.timm_models import import_timm

    data = import_timm().data
    height, width, colours = image_size
    crop = policy = erase = mix = None
    if augment.crop:
        crop = data.transforms.RandomResizedCropAndInterpolation((height, width), interpolation="bicubic")
    if augment.policy:
        # As timm.data.transforms_factory.transforms_imagenet_train sets them.
        fill = tuple(min(255, round(255 * value)) for value in mean)
        settings = {
            "translate_const": int(min(height, width) * 0.45),
            "img_mean": fill if colours == 3 else fill[0],
            "interpolation": Image.Resampling.BICUBIC,
        }
        try:
            policy = data.auto_augment.rand_augment_transform(augment.policy, settings)
        except (AssertionError, ValueError, LookupError) as err:
            example = "a policy in timm's notation, e.g. rand-m9-mstd0.5-inc1"
            raise InputError(f"augment.policy: expected {example}, found {augment.policy!r}") from err
    if augment.erase > 0:
        erase = _Eraser(data.random_erasing.RandomErasing(augment.erase, mode="pixel", device="cpu"), mean, std)
    if augment.mixup > 0 or augment.cutmix > 0:
        mix = data.mixup.Mixup(augment.mixup, augment.cutmix, label_smoothing=0.0, num_classes=classes)
    return _TimmParts(crop, policy, erase, mix)


class _Eraser:
    """timm's random erasing, made for normalised pixels, on pixels from 0 to 255."""

    def __init__(self, erase: Callable[[Tensor], Tensor], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._erase = erase
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)

    def __call__(self, image: Tensor) -> None:
        """Erase in one image ``(H, W, C)``; all other pixels keep their exact value."""
        height, width, colours = image.shape
        noise = self._erase(torch.full((colours, height, width), math.nan)).permute(1, 2, 0)  # (H, W, C)
        filled = ((noise * self._std + self._mean) * 255).clamp(0, 255)
        image.copy_(torch.where(noise.isnan(), image, filled))


def _reach(augment: AugmentRecipe) -> int:
    return 0 if augment.crop else augment.shift_pixels


def _plain_count(augment: AugmentRecipe) -> int:
    """Variants by flip and shift alone."""
    return (2 if augment.flip else 1) * (2 * _reach(augment) + 1) ** 2


@contextmanager
def _lent_generators() -> Iterator[None]:
    """Restore the global generators, from which timm draws."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would change the GPUs' too


def _picture(image: UInt8Array) -> Image.Image:
    """From ``(H, W, C)``."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _pixels(picture: Image.Image) -> UInt8Array:
    """To ``(H, W, C)``."""
    pixels = np.array(picture, np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
