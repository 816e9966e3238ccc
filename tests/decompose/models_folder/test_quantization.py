"""The images for INT8 are of the validation part, right in number, and none of them is golden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.files import read_tensors
from devit_decompose.data.dataset import Split, load_dataset
from devit_decompose.models_folder.decomposition import load_decomposition
from devit_decompose.models_folder.quantization import quantization_images, write_quantization
from devit_decompose.recipe.schema import Recipe


def numbered(count: int, shape: tuple[int, int, int] = (2, 1, 1)) -> UInt8Array:
    """Images that are their own number, so that each is known by its first two pixels."""
    images = np.zeros((count, *shape), np.uint8)
    images[:, 0, 0, 0], images[:, 1, 0, 0] = np.arange(count) // 256, np.arange(count) % 256
    return images


def numbers(images: UInt8Array) -> list[int]:
    return [int(image[0, 0, 0]) * 256 + int(image[1, 0, 0]) for image in images]


def test_training_keeps_the_validation_images_that_are_not_golden(models: Path, small: Recipe) -> None:
    entry = load_decomposition(models).file("quantization")
    kept = read_tensors(models / entry.name, "")
    golden = {image.tobytes() for image in read_tensors(models / "samples.safetensors", "")["images"]}
    validation = load_dataset(small.data).validation
    labels = {image.tobytes(): label for image, label in zip(validation.images[:], validation.labels, strict=True)}
    rest = labels.keys() - golden
    assert {image.tobytes() for image in kept["images"]} == rest
    assert len(kept["images"]) == len(rest) > 0
    assert [labels[image.tobytes()] for image in kept["images"]] == kept["labels"].tolist()


@pytest.mark.parametrize(("shape", "kept"), [((28, 28, 1), 1000), ((224, 224, 3), 668), ((300, 300, 3), 500)], ids=str)
def test_a_thousand_images_are_kept_or_fewer_of_a_large_size_but_five_hundred(
    shape: tuple[int, int, int], kept: int
) -> None:
    images = numbered(1100, shape)
    found = quantization_images(Split(images, np.arange(1100)), images[:10])
    assert len(found["images"]) == len(found["labels"]) == kept
    assert len({*found["labels"].tolist()}) == kept  # none twice
    assert numbers(found["images"]) == found["labels"].tolist()
    assert found["labels"].min() >= 10


def test_a_copy_of_a_golden_image_is_golden(tmp_path: Path) -> None:
    images = numbered(40)
    twice = Split(np.concatenate([images, images]), np.arange(80) % 40)
    found = quantization_images(twice, images[:15])
    assert sorted(numbers(found["images"])) == sorted([*range(15, 40)] * 2)
    assert write_quantization(tmp_path, Split(images, np.arange(40)), images) == ()
    assert list(tmp_path.iterdir()) == []
