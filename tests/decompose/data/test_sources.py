from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import load_image
from devit_contract.errors import InputError
from devit_decompose.data.dataset import load_dataset
from devit_decompose.data.lazy_images import ImageFiles, ResizedImages
from devit_decompose.data.sources import paired, preprocess_of, read_idx, read_source
from devit_decompose.models.timm_models import import_torchvision
from devit_decompose.recipe.schema import DataRecipe

RECIPE = DataRecipe(
    name="small",
    folder="absent",
    source="folder",
    size=(6, 5),
    classes=("cat", "dog"),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    validation_images=2,
    sample_images=2,
)


def recipe_of(folder: Path, **changes: object) -> DataRecipe:
    return msgspec.structs.replace(RECIPE, **{"folder": str(folder)} | changes)


def picture(path: Path, shade: int, size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three training and one test picture of each; each picture has its own red."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(3):
            picture(tmp_path / "train" / name / f"{number}.png", 100 * label + number)
        picture(tmp_path / "test" / name / "9.jpeg", 100 * label + 9)
    return tmp_path


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, *images.shape) + images.tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(labels)) + labels.tobytes())


def test_a_packed_idx_file_is_read_like_a_plain_one(tmp_path: Path) -> None:
    content = struct.pack(">2I", 0x801, 3) + bytes((5, 6, 7))
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(content))
    assert read_idx(tmp_path / "plain").tolist() == read_idx(tmp_path / "packed").tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\0\0\x0d\x01\0\0\0\1\0", "unsigned bytes"),
        (struct.pack(">2I", 0x801, 9) + b"\0", "expected 9 bytes"),
        (b"", "IDX"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        read_idx(tmp_path / "x")


def test_a_missing_data_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="apt install dataset-fashion-mnist"):
        read_idx(tmp_path / "train-images-idx3-ubyte")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"classes": ("a", "b", "c")}, None),
        ({"classes": 4}, "data.classes: expected 3 as .* holds, found 4"),
        ({"classes": ("a", "b")}, "data.classes: expected 3 as .* holds, found 2"),
        ({"size": (5, 4)}, r"data.size and data.mean: expected \[4, 5\] and 1 colour .* found \[5, 4\] and 1"),
        ({"mean": (0.1,) * 3, "std": (0.1,) * 3}, r"data.size and data.mean: .* found \[4, 5\] and 3"),
        ({"source": "pairs", "classes": 9, "size": (4, 10)}, "expected 10 classes to pair, found 3"),
    ],
)
def test_idx_files_must_be_as_the_recipe_says(
    tmp_path: Path, changes: dict[str, object], complaint: str | None
) -> None:
    for prefix in ("train", "t10k"):
        write_idx(tmp_path, prefix, np.zeros((6, 4, 5), np.uint8), np.arange(6, dtype=np.uint8) % 3)
    plain = {"source": "idx", "size": (4, 5), "mean": (0.5,), "std": (0.5,), "classes": 3}
    recipe = recipe_of(tmp_path, **plain | changes)
    if complaint is None:
        source = read_source(recipe)
        assert source.class_names == (("0", "1", "2") if recipe.classes == 3 else ("a", "b", "c"))
        assert source.training.images.shape == (6, 4, 5, 1)
    else:
        with pytest.raises(InputError, match=complaint):
            read_source(recipe)


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (np.zeros((6, 4, 5), np.uint8), np.arange(5, dtype=np.uint8) % 3, r"found \(6, 4, 5\) and \(5,\)"),
        (np.zeros((6, 4, 5), np.uint8), np.arange(6, dtype=np.uint8), "expected test labels below 3, found 5"),
        (np.zeros((0, 4, 5), np.uint8), np.zeros(0, np.uint8), r"found \(0, 4, 5\) and \(0,\)"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, complaint: str
) -> None:
    write_idx(tmp_path, "train", np.zeros((6, 4, 5), np.uint8), np.arange(6, dtype=np.uint8) % 3)
    write_idx(tmp_path, "t10k", images, labels)
    with pytest.raises(InputError, match=complaint):
        read_source(recipe_of(tmp_path, source="idx", size=(4, 5), mean=(0.5,), std=(0.5,), classes=3))


def test_pairs_of_an_unbalanced_set_use_the_pictures_of_a_class_about_equally() -> None:
    """Twelve images of class 0 and four of class 1: four pairs of each two classes, and eight places on each side."""
    images = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1)
    labels = np.repeat([0, 1], [12, 4])
    pairs = paired(images, labels, 2, (1, 1))
    assert np.bincount(pairs.labels).tolist() == [4, 4, 4, 4]
    for side in (0, 1):
        used = np.bincount(pairs.images[:][:, 0, side, 0], minlength=16)
        assert used[:12].max() == 1
        assert used[12:].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 0, 0, 0, 0]])
def test_too_few_images_to_pair_are_refused(labels: list[int]) -> None:
    with pytest.raises(InputError, match=f"at least 4 images of all 2 classes, found {len(labels)}"):
        paired(np.zeros((len(labels), 1, 1, 1), np.uint8), np.array(labels), 2, (1, 1))


def test_a_folder_of_pictures_is_a_data_set(folder: Path) -> None:
    data = load_dataset(recipe_of(folder))
    assert data.class_names == ("cat", "dog")
    assert isinstance(data.training.images, ImageFiles)
    assert [len(part) for part in (data.training, data.validation, data.test)] == [4, 2, 2]
    reds = [part.images[:][:, 3, 3, 0].tolist() for part in (data.training, data.validation)]
    assert sorted(reds[0] + reds[1]) == [0, 1, 2, 100, 101, 102]
    assert data.test.images[:].shape == (2, 6, 5, 3)
    assert data.test.labels.tolist() == [0, 1]
    for part, red in zip((data.training, data.validation), reds, strict=True):
        assert [value // 100 for value in red] == part.labels.tolist()


def test_the_digest_of_a_folder_does_not_tell_where_it_lies(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    before = load_dataset(recipe_of(folder)).training.digest()
    folder.rename(moved)
    assert load_dataset(recipe_of(moved)).training.digest() == before


def test_hidden_files_are_left_out_and_deeper_folders_and_links_are_not(folder: Path) -> None:
    (folder / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "train" / ".cache").mkdir()
    picture(folder / "train" / "dog" / ".thumbnails" / "1.png", 1)
    picture(folder / "train" / "dog" / "album" / "4.png", 104)
    picture(folder / "elsewhere" / "5.png", 105)
    (folder / "train" / "dog" / "link").symlink_to(folder / "elsewhere")
    training = read_source(recipe_of(folder)).training
    assert isinstance(training.images, ImageFiles)
    assert training.images.names == (
        *(f"cat/{number}.png" for number in range(3)),
        *(f"dog/{number}.png" for number in range(3)),
        "dog/album/4.png",
        "dog/link/5.png",
    )


def test_val_is_the_test_part_where_there_is_no_test_folder(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert load_dataset(recipe_of(folder, classes=2)).test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"classes": 3}, "data.classes: expected 2 as .* holds, found 3"),
        ({"classes": ("cat", "cow", "dog")}, "data.classes: expected 2 as .* holds, found 3"),
        ({"classes": ("dog", "cat")}, "data.classes: expected 'cat' as .* holds, found 'dog'"),
        ({"mean": (0.5,) * 2, "std": (0.5,) * 2}, "data.mean: expected 1 number .* found 2"),
        ({"resize_to": 3}, "data.size and data.resize_to: resize_to: expected 0, or"),
        ({"validation_images": 8}, "data.validation_images: class 0: expected at least 4 images, found 3"),
    ],
)
def test_a_folder_that_is_not_as_the_recipe_says_is_refused(
    folder: Path, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        load_dataset(recipe_of(folder, **changes))


def test_all_files_that_are_no_pictures_are_listed_at_once(folder: Path) -> None:
    (folder / "train/cat/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "train/dog/labels.txt").write_text("dog")
    (folder / "train/dog/1.png").rename(folder / "train/dog/no-suffix")
    with pytest.raises(
        InputError, match=r"train: expected nothing but pictures, found 'cat/Thumbs.db', 'dog/labels.txt': remove"
    ):
        read_source(recipe_of(folder))


def test_a_pipe_that_is_called_a_picture_is_listed_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "train/cat/9.png")
    with pytest.raises(InputError, match=r"train: expected nothing but pictures, found 'cat/9.png': remove"):
        read_source(recipe_of(folder))


def test_class_names_that_differ_in_unicode_form_only_are_told_as_such(folder: Path) -> None:
    """An umlaut is two characters as macOS stores it."""
    (folder / "train/cat").rename(folder / "train/K\u00e4tzchen")
    (folder / "test/cat").rename(folder / "test/Ka\u0308tzchen")
    with pytest.raises(InputError, match="two Unicode forms"):
        read_source(recipe_of(folder))


def test_names_that_are_not_utf_8_are_read_and_shown_escaped(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part / "cat").rename(Path(f"{folder}/{part}/K\udce4tzchen"))
    data = load_dataset(recipe_of(folder, classes=2))
    assert data.class_names == (r"K\xe4tzchen", "dog")
    assert len(data.training.digest()) == 64


def test_a_folder_with_strangers_gaps_or_nothing_is_refused(folder: Path) -> None:
    picture(folder / "test" / "cow" / "1.png", 1)
    with pytest.raises(InputError, match=r"test: expected the classes of the training part, found 'cow'"):
        read_source(recipe_of(folder))
    (folder / "train" / "cow").mkdir()
    with pytest.raises(InputError, match=r"train/cow: expected pictures, found none"):
        read_source(recipe_of(folder))
    with pytest.raises(
        InputError, match=r"absent/train: expected a folder for each class, found none: set data.folder"
    ):
        read_source(recipe_of(folder / "absent"))


def test_how_pictures_are_decoded_follows_the_recipe() -> None:
    assert preprocess_of(msgspec.structs.replace(RECIPE, resize_to=8)) == Preprocess(6, 5, "rgb", resize_to=8)
    gray = msgspec.structs.replace(RECIPE, mean=(0.5,), std=(0.5,), size=(28, 28))
    assert preprocess_of(gray) == Preprocess(28, 28, "gray")


def test_imagenet_is_read_as_torchvision_lays_it_out(tmp_path: Path) -> None:
    wnids = ("n01440764", "n01443537")
    for label, wnid in enumerate(wnids):
        for number in range(2):
            picture(tmp_path / "train" / wnid / f"{wnid}_{number}.JPEG", 100 * label + number)
        picture(tmp_path / "val" / wnid / f"ILSVRC2012_val_0000000{label}.JPEG", 100 * label + 9)
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"")
    recipe = recipe_of(tmp_path, source="imagenet", classes=2)
    assert read_source(recipe).class_names == wnids
    names = {wnids[1]: ("goldfish", "Carassius auratus"), wnids[0]: ("tench", "Tinca tinca")}
    torch.save((names, [wnids[1], wnids[0]]), tmp_path / "meta.bin")
    data = load_dataset(recipe)
    assert data.class_names == ("tench", "goldfish")
    assert [len(part) for part in (data.training, data.validation, data.test)] == [2, 2, 2]
    assert load_dataset(msgspec.structs.replace(recipe, classes=("a", "b"))).class_names == ("a", "b")
    (tmp_path / "meta.bin").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"meta.bin: expected torchvision's names of the folders"):
        read_source(recipe)


needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="the extra timm is not installed")


def trust(monkeypatch: pytest.MonkeyPatch, dataset: str, folder: Path) -> None:
    """Let torchvision expect the digests of the small files in ``folder`` in place of the published ones."""
    kind = getattr(import_torchvision().datasets, dataset)

    def md5(name: str) -> str:
        return hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()

    if dataset == "CIFAR100":
        for table in ("train_list", "test_list"):
            monkeypatch.setattr(kind, table, [[name, md5(name)] for name, _ in getattr(kind, table)])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5("meta")})
    if dataset == "Flowers102":
        listed = {key: (name, md5(name) if key != "image" else "") for key, (name, _) in kind._file_dict.items()}
        monkeypatch.setattr(kind, "_file_dict", listed)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-100's own format: pickled rows of 3,072 bytes, red, green, blue; here 200 and 100 images."""
    inside = tmp_path / "cifar-100-python"
    inside.mkdir()
    for name, count in (("train", 200), ("test", 100)):
        rows = np.random.default_rng(count).integers(0, 256, (count, 3072), np.uint8)
        labels = [number % 100 for number in range(count)]
        (inside / name).write_bytes(pickle.dumps({"data": rows, "fine_labels": labels, "coarse_labels": labels}))
    names = [f"name {number:02}" for number in range(100)]
    (inside / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": []}))
    trust(monkeypatch, "CIFAR100", inside)
    return tmp_path


@needs_torchvision
def test_cifar_100_is_kept_in_memory_at_its_own_size(cifar: Path) -> None:
    recipe = recipe_of(cifar, source="cifar100", classes=100, size=(32, 32), validation_images=100)
    source = read_source(recipe)
    rows = np.random.default_rng(200).integers(0, 256, (200, 3072), np.uint8)
    assert isinstance(source.training.images, np.ndarray)
    np.testing.assert_array_equal(source.training.images, rows.reshape(200, 3, 32, 32).transpose(0, 2, 3, 1))
    data = load_dataset(recipe)
    assert [len(part) for part in (data.training, data.validation, data.test)] == [100, 100, 100]
    assert data.class_names[7] == "name 07"


@needs_torchvision
def test_cifar_100_is_enlarged_when_images_are_taken(cifar: Path, tmp_path: Path) -> None:
    recipe = recipe_of(cifar, source="cifar100", classes=100, size=(48, 48), validation_images=100)
    test = load_dataset(recipe).test
    assert isinstance(test.images, ResizedImages)
    Image.fromarray(test.images.pixels[5]).save(tmp_path / "five.png")
    np.testing.assert_array_equal(test.images[5:6][0], load_image(tmp_path / "five.png", preprocess_of(recipe)))


@needs_torchvision
def test_the_names_of_a_recipe_must_be_those_of_cifar_100(cifar: Path) -> None:
    names = ["name 00", "another", *(f"name {number:02}" for number in range(2, 100))]
    with pytest.raises(InputError, match=r"data.classes: expected 'name 01' as .* holds, found 'another'"):
        read_source(recipe_of(cifar, source="cifar100", classes=tuple(names)))


@needs_torchvision
@pytest.mark.parametrize(
    ("source", "classes", "hint"),
    [
        ("cifar100", 100, r"expected the files of CIFAR100, found: .* CIFAR100\('.*', download=True\)"),
        ("flowers102", 102, r"expected the files of Flowers102, found: .* Flowers102\('.*', download=True\)"),
        ("stanford_cars", 196, r"expected (the files of StanfordCars, found: .*|scipy to read its lists)"),
    ],
)
def test_a_set_of_torchvision_that_is_not_there_says_how_to_get_it(
    tmp_path: Path, source: str, classes: int, hint: str
) -> None:
    with pytest.raises(InputError, match=hint) as caught:
        read_source(recipe_of(tmp_path, source=source, classes=classes))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@needs_torchvision
def test_flowers_102_trains_on_the_makers_training_and_validation_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """408 pictures: numbers 1 to 204 for testing, the next 102 for validation, the last 102 for training."""
    savemat = pytest.importorskip("scipy.io", reason="scipy is not installed").savemat
    inside = tmp_path / "flowers-102"
    for number in range(1, 409):
        picture(inside / "jpg" / f"image_{number:05}.jpg", number % 102)
    savemat(inside / "imagelabels.mat", {"labels": np.array([[number % 102 + 1 for number in range(1, 409)]])})
    numbers = {"tstid": range(1, 205), "valid": range(205, 307), "trnid": range(307, 409)}
    savemat(inside / "setid.mat", {key: np.array([list(value)]) for key, value in numbers.items()})
    trust(monkeypatch, "Flowers102", inside)
    recipe = recipe_of(tmp_path, source="flowers102", classes=102, validation_images=102)
    training, test, names = read_source(recipe)
    assert len(training.labels) == len(test.labels) == 204
    assert names[:2] == ("pink primrose", "hard-leaved pocket orchid")
    assert isinstance(training.images, ImageFiles)
    assert (training.images.names[0], training.images.names[-1]) == ("image_00307.jpg", "image_00306.jpg")
    for part in (training, test):
        assert np.abs(part.images[:][:, 3, 3, 0].astype(int) - part.labels).max() <= 3  # JPEG rounds
    assert len(load_dataset(recipe).training) == 102


@needs_torchvision
def test_stanford_cars_are_read_by_their_development_kit(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io", reason="scipy is not installed").savemat
    inside = tmp_path / "stanford_cars"
    (inside / "devkit").mkdir(parents=True)
    kind = [(name, "O") for name in ("bbox_x1", "class", "fname")]
    lists = {"train": inside / "devkit" / "cars_train_annos.mat", "test": inside / "cars_test_annos_withlabels.mat"}
    for part, path in lists.items():
        rows = []
        for number in range(1, 393):
            picture(inside / f"cars_{part}" / f"{number:05}.jpg", number % 196)
            rows.append((1, number % 196 + 1, f"{number:05}.jpg"))
        savemat(path, {"annotations": np.array([rows], dtype=kind)})
    names = np.array([f"Car {number}" for number in range(196)], dtype=object)[None]
    savemat(inside / "devkit" / "cars_meta.mat", {"class_names": names})
    recipe = recipe_of(tmp_path, source="stanford_cars", classes=196, validation_images=196)
    training, test, found = read_source(recipe)
    assert found[195] == "Car 195"
    assert isinstance(test.images, ImageFiles)
    assert (training.labels[0], test.images.names[391]) == (1, "cars_test/00392.jpg")
    assert np.abs(test.images[:][:, 3, 3, 0].astype(int) - test.labels).max() <= 3  # JPEG rounds
    assert len(load_dataset(recipe).training) == 196
