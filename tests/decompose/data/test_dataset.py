from __future__ import annotations

import hashlib
import struct
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from devit_contract.arrays import Int64Array, UInt8Array
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import load_image
from devit_contract.errors import InputError
from devit_decompose.data.dataset import Dataset, Split, balanced_indices, load_dataset
from devit_decompose.data.lazy_images import ImageFiles, ResizedImages
from devit_decompose.recipe.schema import DataRecipe

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    """1,000 training and 300 test images of 4 x 3 pixels; no two are alike, and the first pixel is the class."""
    folder = tmp_path_factory.mktemp("idx")
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 1000), ("t10k", 300)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = generator.integers(0, 256, (count, 4, 3), dtype=np.uint8)
        images[:, 0, 0] = labels
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 4, 3) + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())
    return DataRecipe(
        name="small",
        folder=str(folder),
        size=(4, 3),
        classes=10,
        mean=(0.5,),
        std=(0.5,),
        validation_images=200,
        sample_images=20,
    )


def paired(idx: DataRecipe, **changes: object) -> DataRecipe:
    return msgspec.structs.replace(idx, **{"source": "pairs", "classes": 100, "size": (4, 6)} | changes)


def parts(data: Dataset) -> tuple[Split, Split, Split]:
    return data.training, data.validation, data.test


def each(images: UInt8Array) -> list[bytes]:
    return [image.tobytes() for image in images]


def write_pictures(folder: Path, count: int) -> ImageFiles:
    """Write PNG files of 12 x 10 random pixels."""
    generator = np.random.default_rng(5)
    names = tuple(f"{'ab'[i % 2]}/{i}.png" for i in range(count))
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (10, 12, 3), np.uint8)).save(folder / name)
    return ImageFiles(folder, names, Preprocess(6, 4, "rgb", resize_to=8))


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_parts_of_fashion_mnist_are_those_that_were_published() -> None:
    recipe = DataRecipe(
        name="Fashion-MNIST",
        folder=str(FASHION_MNIST),
        size=(28, 28),
        classes=10,
        mean=(0.286,),
        std=(0.353,),
        validation_images=5000,
        sample_images=260,
    )
    assert [(len(part), part.digest()) for part in parts(load_dataset(recipe))] == [
        (55000, "b74e6a3cacb36e190ea807dc4e48ba131c6886112adcb699602f092304abe06b"),
        (5000, "8f60ea8bc125e139d78367dddd81ebf6b2ef0346300c8744d7c32ecd3912aeb0"),
        (10000, "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e"),
    ]


def test_the_parts_never_meet_and_are_the_whole(idx: DataRecipe) -> None:
    data = load_dataset(idx)
    images = [set(each(part.images[:])) for part in parts(data)]
    assert [len(part) for part in images] == [800, 200, 300]
    assert len(set.union(*images)) == 1300
    assert np.bincount(data.validation.labels).tolist() == [20] * 10


def test_another_split_seed_draws_another_validation_part_and_keeps_the_test_part(idx: DataRecipe) -> None:
    data, other = load_dataset(idx), load_dataset(msgspec.structs.replace(idx, split_seed=2))
    assert data.validation.digest() != other.validation.digest()
    assert data.test.digest() == other.test.digest()
    assert data.validation.digest() == load_dataset(idx).validation.digest()


def test_no_single_picture_is_in_two_parts_of_a_paired_set(idx: DataRecipe) -> None:
    data = load_dataset(paired(idx))
    sides = [set(each(part.images[:][:, :, :3]) + each(part.images[:][:, :, 3:])) for part in parts(data)]
    assert len(set.union(*sides)) == sum(map(len, sides)) == 1300


def test_every_picture_stands_once_on_each_side_and_every_pair_of_classes_is_as_frequent(idx: DataRecipe) -> None:
    data = load_dataset(paired(idx))
    for part, count in zip(parts(data), (8, 2, 3), strict=True):
        assert part.images.shape == (100 * count, 4, 6, 1)
        assert np.bincount(part.labels).tolist() == [count] * 100
        for side in (part.images[:][:, :, :3], part.images[:][:, :, 3:]):
            assert set(Counter(each(side)).values()) == {1}


def test_the_label_of_a_pair_is_ten_times_the_left_class_and_the_right_one(idx: DataRecipe) -> None:
    data = load_dataset(paired(idx))
    for part in parts(data):
        images = part.images[:].astype(int)
        assert (part.labels == 10 * images[:, 0, 0, 0] + images[:, 0, 3, 0]).all()
        assert (np.diff(part.labels) != 0).any()
    assert data.class_names[38] == "Dress + Bag"
    assert len(set(data.class_names)) == 100


def test_pairs_are_made_the_same_way_every_time_and_test_pairs_whatever_the_seed(idx: DataRecipe) -> None:
    data, again, other = (load_dataset(paired(idx, split_seed=seed)) for seed in (1, 1, 2))
    assert [part.digest() for part in parts(data)] == [part.digest() for part in parts(again)]
    assert data.training.digest() != other.training.digest()
    assert data.test.digest() == other.test.digest()


@pytest.mark.parametrize(
    ("count", "complaint"),
    [
        (15, "data.validation_images: expected a multiple of 10"),
        (0, "data.validation_images: expected a multiple of 10 from 10, found 0"),
        (1010, "data.validation_images: class 0: expected at least 101 images, found 100"),
        (1000, "data.validation_images: expected images of class 0 left for training"),
    ],
)
def test_a_validation_part_that_cannot_be_drawn_is_refused(idx: DataRecipe, count: int, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        load_dataset(msgspec.structs.replace(idx, validation_images=count))


def test_validation_pairs_that_cannot_be_balanced_are_refused(idx: DataRecipe) -> None:
    with pytest.raises(InputError, match=r"data.validation_images: expected a multiple of 100 from 100, found 250"):
        load_dataset(paired(idx, validation_images=250))


def test_a_few_training_images_are_as_many_of_each_class_and_leave_the_other_parts_alone(idx: DataRecipe) -> None:
    whole, few = load_dataset(idx), load_dataset(msgspec.structs.replace(idx, training_images=50))
    assert np.bincount(few.training.labels).tolist() == [5] * 10
    assert set(each(few.training.images[:])) <= set(each(whole.training.images[:]))
    assert (few.validation.digest(), few.test.digest()) == (whole.validation.digest(), whole.test.digest())
    with pytest.raises(InputError, match=r"data.training_images: class 0: expected at least 90 images, found 80"):
        load_dataset(msgspec.structs.replace(idx, training_images=900))


def test_labels_of_a_class_subset_count_from_zero(idx: DataRecipe) -> None:
    subset = load_dataset(idx).test.of_classes((7, 2))
    assert np.bincount(subset.labels).tolist() == [30, 30]
    assert [(7, 2)[label] for label in subset.labels] == subset.images[:][:, 0, 0, 0].tolist()


def test_a_class_without_images_keeps_its_place_in_a_subset() -> None:
    split = Split(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]))
    assert split.of_classes((1, 5)).labels.tolist() == [0]
    assert split.of_classes((5, 1)).labels.tolist() == [1]
    assert len(split.of_classes((5,))) == 0


@given(
    counts=st.lists(st.integers(3, 9), min_size=1, max_size=8), seed=st.integers(0, 2**31), per_class=st.integers(1, 3)
)
def test_as_many_positions_of_each_class_are_drawn_as_class_by_class(
    counts: list[int], seed: int, per_class: int
) -> None:
    labels: Int64Array = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(np.flatnonzero(labels == k), per_class, replace=False) for k in range(len(counts))]
    found = balanced_indices(labels, per_class * len(counts), len(counts), seed)
    assert found.tolist() == sorted(np.concatenate(drawn).tolist())
    assert np.bincount(labels[found]).tolist() == [per_class] * len(counts)


def test_too_few_images_of_a_class_are_refused() -> None:
    with pytest.raises(InputError, match="class 1: expected at least 2 images, found 1"):
        balanced_indices(np.array([0, 0, 1]), 4, 2, seed=0)
    with pytest.raises(InputError, match="class 2: expected at least 1 images, found 0"):
        balanced_indices(np.array([0, 0, 1]), 3, 3, seed=0)


def test_the_digest_of_images_in_memory_is_that_of_their_bytes() -> None:
    images = np.random.default_rng(1).integers(0, 256, (5000, 2, 3, 1), np.uint8)
    labels = np.arange(5000)
    expected = hashlib.sha256(images.tobytes() + struct.pack("<5000q", *range(5000))).hexdigest()
    assert Split(images, labels).digest() == Split(images[::-1][::-1], labels).digest() == expected


def test_the_digest_of_picture_files_is_of_names_and_bytes_and_decodes_nothing(tmp_path: Path) -> None:
    def digest(names: tuple[str, ...], size: int = 4) -> str:
        return Split(ImageFiles(tmp_path, names, Preprocess(size, size, "rgb")), np.zeros(len(names), int)).digest()

    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"no picture")
    files = [b"one\0" + hashlib.sha256(b"no picture").digest(), b"two\0" + hashlib.sha256(b"no picture").digest()]
    before = digest(("one", "two"))
    assert before == hashlib.sha256(b"".join(files) + bytes(16)).hexdigest()
    assert before == digest(("one", "two"), size=8)
    assert before != digest(("two", "one"))
    (tmp_path / "two").write_bytes(b"no picturf")
    assert before != digest(("one", "two"))
    with pytest.raises(InputError, match="three: cannot be read"):
        digest(("three",))


def test_picture_files_are_what_client_and_agent_decode(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, 5)
    expected = np.stack([load_image(tmp_path / name, images.preprocess) for name in images.names])
    assert images.shape == expected.shape == (5, 6, 4, 3)
    for key in (slice(None), slice(1, 4), slice(4, 99), np.array([3, 0, 3]), np.array([], np.int64)):
        np.testing.assert_array_equal(images[key], expected[key])


def test_a_subset_of_picture_files_stays_undecoded(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, 4)
    split = Split(images, np.array([0, 1, 0, 1]))
    (tmp_path / "a" / "0.png").write_bytes(b"damaged")
    subset = split.of_classes((1,))
    assert isinstance(subset.images, ImageFiles)
    assert subset.images.names == ("b/1.png", "b/3.png")
    np.testing.assert_array_equal(subset.images[:], split.images[np.array([1, 3])])
    assert len(split.select(np.array([0]))) == 1


@pytest.mark.parametrize(("content", "complaint"), [(b"damaged", "a picture such as PNG"), (None, "cannot be read")])
def test_a_file_that_is_no_picture_is_named_when_it_is_read(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    images = write_pictures(tmp_path, 3)
    path = tmp_path / "b" / "1.png"
    path.unlink() if content is None else path.write_bytes(content)
    assert len(images[np.array([0, 2])]) == 2
    for read in (lambda: images[:], lambda: images.whole(1)):
        with pytest.raises(InputError, match=rf"b/1.png: .*{complaint}"):
            read()


def test_a_whole_picture_has_its_own_size(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, 2)
    np.testing.assert_array_equal(images.whole(1), np.asarray(Image.open(tmp_path / "b" / "1.png")))
    Image.new("L", (5000, 10)).save(tmp_path / "a" / "0.png")
    assert images.whole(0).shape == (8, 4096, 3)


def test_an_array_is_enlarged_as_a_picture_file_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), np.uint8)
    images = ResizedImages(pixels, Preprocess(20, 20, "rgb"))
    Image.fromarray(pixels[2]).save(tmp_path / "two.png")
    np.testing.assert_array_equal(images[2:][0], load_image(tmp_path / "two.png", images.preprocess))
    np.testing.assert_array_equal(images.whole(2), pixels[2])
    assert images.shape == (3, 20, 20, 3)
    labels = np.arange(3)
    assert Split(images, labels).digest() == Split(pixels, labels).digest()
    assert len(Split(images, labels).of_classes((0, 2))) == 2
