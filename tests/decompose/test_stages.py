from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from devit_contract.errors import InputError, ManifestError, TrainError
from devit_contract.head import Fusion, FusionHead, FusionStatistics
from devit_contract.progress import no_progress
from devit_decompose import train
from devit_decompose.data import load_dataset
from devit_decompose.decomposition import load_decomposition
from devit_decompose.evaluate import accuracy, joined_features, run
from devit_decompose.recipe import load_recipe
from devit_decompose.stages import Failout, decompose
from devit_decompose.weights import load_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion-mnist.toml"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_decomposition_can_be_measured_again_from_its_files(models: Path, small_changes: tuple[str, ...]) -> None:
    """Every accuracy in decomposition.json follows from the weights beside it and the data set."""
    recipe = load_recipe(EXAMPLE, small_changes)
    out = models
    found = load_decomposition(out)
    data = load_dataset(recipe.data, recipe.seed)
    assert data.test.digest() == found.data.test_sha256
    teacher = load_model(out / found.file("teacher").name, found.teacher.config)
    assert accuracy(run(teacher, data.test.images), data.test.labels) == found.teacher_test_accuracy
    submodels = [
        load_model(out / found.file("submodel", device).name, record.config)
        for device, record in enumerate(found.submodels)
    ]
    features = joined_features(submodels, data.test.images)
    fusion = Fusion(FusionHead.load(out / found.file("fusion").name))
    assert [subset.mask for subset in found.subsets] == list(range(1, 16))
    for subset in found.subsets:
        measured = accuracy(fusion.batch_logits(features, subset.mask), data.test.labels)
        assert measured == pytest.approx(subset.test_accuracy, abs=0.011), (
            subset.mask
        )  # two of 200 may turn by rounding
    assert sorted(label for part in found.class_subsets for label in part) == list(range(10))


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    tmp_path: Path, models: Path, small_changes: tuple[str, ...]
) -> None:
    recipe = load_recipe(EXAMPLE, small_changes)

    def cut(stage: str, done: float, total: float, note: str = "") -> None:
        if stage == "ensemble" and done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decompose(recipe, tmp_path / "cut", resume=False, progress=cut)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(TrainError, match="--resume"):
        decompose(recipe, tmp_path / "cut", resume=False, progress=no_progress)
    decompose(recipe, tmp_path / "cut", resume=True, progress=no_progress)
    assert contents(tmp_path / "cut") == contents(models)
    assert not (tmp_path / "cut.work").exists()


def test_a_data_set_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    recipe = load_recipe(EXAMPLE, (f'data.folder="{tmp_path / "nowhere"}"',))
    with pytest.raises(InputError, match="cannot be read"):
        decompose(recipe, tmp_path / "models", resume=False, progress=no_progress)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_of_another_recipe_is_not_continued(tmp_path: Path, small_changes: tuple[str, ...]) -> None:
    work = tmp_path / "models.work"
    work.mkdir()
    (work / "recipe.json").write_text("{}")
    with pytest.raises(TrainError, match="another recipe"):
        decompose(load_recipe(EXAMPLE, small_changes), tmp_path / "models", resume=True, progress=no_progress)


def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path: Path, small_changes: tuple[str, ...]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        decompose(load_recipe(EXAMPLE, small_changes), tmp_path, resume=False, progress=no_progress)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_damaged_checkpoint_is_named(tmp_path: Path, models: Path) -> None:
    out = tmp_path / "models"
    shutil.copytree(models, out)
    weights = out / "submodel-1.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ManifestError, match=r"submodel-1.safetensors: expected sha256 \w{12}, found \w{12}"):
        load_decomposition(out)


def test_failout_puts_in_a_missing_place_what_the_fusion_node_puts_there() -> None:
    generator = np.random.default_rng(3)
    dims = (3, 2, 4)
    mixing = generator.normal(size=(9, 9))
    features = torch.from_numpy((generator.normal(size=(400, 9)) @ mixing).astype(np.float32))
    failout = Failout(dims, chance=0.5, seed=0)
    weight = generator.normal(size=(5, 9))
    for _ in range(10):
        filled = failout.fill(features)
        missing = [
            device
            for device in range(3)
            if not torch.equal(*(part.split(dims, 1)[device] for part in (filled, features)))
        ]
        mask = 0b111 & ~sum(1 << device for device in missing)
        statistics = FusionStatistics(failout.mean.double().numpy(), failout.covariance.double().numpy())
        fusion = Fusion(FusionHead(dims, weight, np.zeros(5), statistics))
        expected = fusion.batch_logits(features.numpy(), mask)
        np.testing.assert_allclose(filled.numpy() @ weight.T, expected, rtol=1e-3, atol=1e-3)


def test_failout_keeps_at_least_one_device() -> None:
    failout = Failout((1, 1), chance=1.0, seed=0)
    features = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        filled = failout.fill(features)
        assert (filled == features).all(dim=0).any()


def test_the_learning_rate_rises_falls_and_stays() -> None:
    schedule = load_recipe(EXAMPLE).train
    rates = [train.learning_rate(schedule, epoch) for epoch in (0.0, 0.5, 1.0, 7.0, 13.0, 20.0)]
    assert rates[0] < rates[1] < rates[2] == schedule.learning_rate
    assert rates[3] == pytest.approx(schedule.learning_rate / 2)
    assert rates[4] == rates[5] == pytest.approx(schedule.learning_rate * schedule.final_share)


def test_a_shift_moves_the_image_and_uncovers_black() -> None:
    import msgspec

    schedule = msgspec.structs.replace(load_recipe(EXAMPLE).train, flip=False, shift_pixels=1)
    image = torch.full((64, 5, 5, 1), 200, dtype=torch.uint8)
    moved = train.augment(image, schedule, torch.Generator().manual_seed(0))
    sums = {int(one.sum()) for one in moved}
    assert sums == {200 * 25, 200 * 20, 200 * 16}


def test_a_flip_mirrors_left_and_right() -> None:
    import msgspec

    schedule = msgspec.structs.replace(load_recipe(EXAMPLE).train, flip=True, shift_pixels=0)
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4, 1).expand(32, 3, 4, 1)
    flipped = train.augment(image, schedule, torch.Generator().manual_seed(0))
    kinds = {tuple(one[0, :, 0].tolist()) for one in flipped}
    assert kinds == {(0, 1, 2, 3), (3, 2, 1, 0)}
