from __future__ import annotations

import csv
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.errors import InputError, ManifestError, TrainError
from devit_contract.service.progress import no_progress
from devit_decompose.data.batches import Batch, BatchSpec, batches
from devit_decompose.data.dataset import load_dataset
from devit_decompose.dry_run import dry_run
from devit_decompose.models.inference import accuracy, run
from devit_decompose.models.model import Model, StemLayer, uniform_config
from devit_decompose.models.weights import load_model
from devit_decompose.models_folder.decomposition import load_decomposition
from devit_decompose.models_folder.subset_accuracy import filled_logits, joined_features
from devit_decompose.recipe.reader import load_recipe
from devit_decompose.recipe.schema import Recipe
from devit_decompose.stages import decompose
from devit_decompose.training import train
from devit_decompose.training.accelerator import Machine
from devit_decompose.training.objectives import Ensemble
from devit_decompose.training.teachers import LiveTeacher, StoredTeacher

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion-mnist.toml"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_decomposition_can_be_measured_again_from_its_files(models: Path, small: Recipe) -> None:
    """Every accuracy in decomposition.json follows from the weights beside it and the data set."""
    found = load_decomposition(models)
    data = load_dataset(small.data)
    assert data.test.digest() == found.data.test_sha256
    assert found.teacher is not None
    teacher = load_model(models / found.file("teacher").name, found.teacher.config)
    assert accuracy(run(teacher, data.test.images), data.test.labels) == found.teacher_test_accuracy
    submodels = [
        load_model(models / found.file("submodel", device).name, record.config)
        for device, record in enumerate(found.submodels)
    ]
    features = joined_features(submodels, data.test.images)
    head = FusionHead.load(models / found.file("fusion").name)
    fusion = Fusion(head)
    assert [subset.mask for subset in found.subsets] == list(range(1, 16))
    for subset in found.subsets:
        for measured, stored in (
            (fusion.batch_logits(features, subset.mask), subset.test_accuracy),
            (filled_logits(head, features, subset.mask, 0.0), subset.test_accuracy_with_zeros),
            (filled_logits(head, features, subset.mask, head.statistics.mean), subset.test_accuracy_with_mean),
        ):
            # two of 200 may turn by rounding
            assert accuracy(measured, data.test.labels) == pytest.approx(stored, abs=0.011), subset.mask
    assert sorted(label for part in found.class_subsets for label in part) == list(range(10))
    ends = np.cumsum(head.dims)[:-1]
    parts = np.split(joined_features(submodels, data.validation.images), ends, axis=1)
    np.testing.assert_allclose(head.norms, [np.linalg.norm(part, axis=1).max() for part in parts], rtol=1e-3)


def test_every_epoch_of_every_stage_is_logged(models: Path, small: Recipe) -> None:
    with (models.parent / "models.log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    stages = ["teacher"]
    for device in range(4):
        stages += [f"sub-teacher-{device}", f"submodel-{device}"]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == [*stages, "ensemble"]
    measures = {row["measure"] for row in rows if row["stage"] == "ensemble"}
    assert {"loss labels", "loss teacher", "loss teacher (failout)", "loss token", "validation accuracy"} <= measures
    assert {"loss relation query", "loss relation value"} <= {row["measure"] for row in rows}


@pytest.mark.system
def test_a_run_that_was_cut_off_in_every_stage_ends_as_one_that_was_not(
    tmp_path: Path, models: Path, small: Recipe
) -> None:
    for cut_in in ("teacher", "sub-teacher-1", "submodel-2", "ensemble", None):

        def cut(stage: str, done: float, total: float, note: str = "", at: str | None = cut_in) -> None:
            if stage == at and done >= 0.5:
                raise KeyboardInterrupt

        if cut_in is None:
            decompose(small, tmp_path / "cut", resume=True, progress=no_progress)
            break
        with pytest.raises(KeyboardInterrupt):
            decompose(small, tmp_path / "cut", resume=cut_in != "teacher", progress=cut)
        assert not (tmp_path / "cut").exists()
    assert contents(tmp_path / "cut") == contents(models)
    assert not (tmp_path / "cut.work").exists()


def test_an_unfinished_run_is_continued_only_when_asked(tmp_path: Path, small: Recipe) -> None:
    (tmp_path / "models.work").mkdir()
    (tmp_path / "models.work" / "recipe.json").write_text("{}")
    with pytest.raises(TrainError, match="--resume"):
        decompose(small, tmp_path / "models", resume=False, progress=no_progress)
    with pytest.raises(TrainError, match="another recipe"):
        decompose(small, tmp_path / "models", resume=True, progress=no_progress)


def test_a_second_run_on_the_same_checkpoints_is_refused(tmp_path: Path, small: Recipe) -> None:
    refused = []

    def second(stage: str, done: float, total: float, note: str = "") -> None:
        if not refused:
            with pytest.raises(TrainError, match="another run is at work in this folder") as caught:
                decompose(small, tmp_path / "models", resume=True, progress=no_progress)
            refused.append(caught)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decompose(small, tmp_path / "models", resume=False, progress=second)
    assert refused


def test_a_data_set_that_is_not_there_leaves_nothing_behind(tmp_path: Path, small: Recipe) -> None:
    moved = msgspec.structs.replace(small, data=msgspec.structs.replace(small.data, folder=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="cannot be read"):
        decompose(moved, tmp_path / "models", resume=False, progress=no_progress)
    assert list(tmp_path.iterdir()) == []


def test_a_class_count_that_is_not_the_datas_is_refused(tmp_path: Path, small_path: Path) -> None:
    wrong = load_recipe(small_path, ("data.classes=8",))
    with pytest.raises(InputError, match=r"data\.classes"):
        decompose(wrong, tmp_path / "models", resume=False, progress=no_progress)


def test_a_budget_below_the_smallest_model_is_refused_with_its_key(small_path: Path) -> None:
    wrong = load_recipe(small_path, ("students=[]", "shrink={depth=1, budgets=[0.0001]}"))
    with pytest.raises(InputError, match=r"shrink\.budget"):
        dry_run(wrong, no_progress)


def test_a_folder_that_holds_something_else_is_never_replaced(tmp_path: Path, small: Recipe) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        decompose(small, tmp_path, resume=False, progress=no_progress)
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


def test_pruned_submodels_meet_their_budgets_and_say_how_they_were_found(tmp_path: Path, small_path: Path) -> None:
    """Two budgets, one teacher: the submodels really are smaller, and unequal."""
    changes = (
        "submodels=2",
        "students=[]",
        "train.max_epochs=1",
        "ensemble.schedule.max_epochs=1",
        'partition.method="confusion"',
        'shrink={depth=1, budgets=[0.5, 0.6], candidates=4, tolerance=0.1, images=50, dimensions=["neurons", "heads"]}',
    )
    wide = "teacher.stem=[{width = 8}, {width = 32, stride = 2}]", "teacher.heads=2"
    recipe = load_recipe(small_path, (*changes, *wide))
    found = decompose(recipe, tmp_path / "models", resume=False, progress=no_progress)
    assert found is not None
    assert found.teacher is not None
    for model, record, share in zip(found.submodels, found.searches, (0.5, 0.6), strict=True):
        assert model.macs == record.cost
        assert abs(record.cost - record.budget) <= 0.1 * record.budget
        assert record.budget == pytest.approx(share * found.teacher.macs, rel=0.01)
    assert found.submodels[0].macs < found.submodels[1].macs


def test_every_submodel_sees_all_classes_without_a_partition(tmp_path: Path, small_path: Path) -> None:
    recipe = load_recipe(small_path, ('partition.method="none"', "submodels=2", "train.max_epochs=1"))
    found = decompose(recipe, tmp_path / "models", resume=False, progress=no_progress)
    assert found is not None
    assert found.class_subsets == (tuple(range(10)),) * 2
    assert [stage.name for stage in found.stages] == ["teacher", "submodel-0", "submodel-1", "ensemble"]


def test_stored_answers_are_those_of_the_live_teacher(tmp_path: Path, small: Recipe, models: Path) -> None:
    """Same images, same variants: up to the half precision in which they are kept."""
    found = load_decomposition(models)
    assert found.teacher is not None
    teacher = load_model(models / found.file("teacher").name, found.teacher.config)
    data, machine = load_dataset(small.data), Machine("fp32", threads=1)
    augment = small.ensemble.schedule.augment
    stored = StoredTeacher(tmp_path, teacher, data.training, augment, machine, no_progress)
    live = LiveTeacher(teacher, machine)
    batch: Batch = next(batches(data.training, small.ensemble.schedule, BatchSpec(3, 0, 10, (0.2,), (0.2,))))
    for found_part, expected in zip(
        (stored(batch).logits, stored(batch).features), (live(batch).logits, live(batch).features), strict=True
    ):
        torch.testing.assert_close(found_part, expected, rtol=2e-3, atol=2e-3)
    again = StoredTeacher(tmp_path, teacher, data.training, augment, machine, _fail_if_told)
    torch.testing.assert_close(again(batch).logits, stored(batch).logits, rtol=0, atol=0)


def _fail_if_told(stage: str, done: float, total: float, note: str = "") -> None:
    assert done == total, "the answers are made a second time"


def test_two_runs_at_once_make_the_same_answers_once(tmp_path: Path, small: Recipe) -> None:
    """The second waits for the first; it would empty the files under its hands."""
    teacher = Model(small.teacher.config(small.data, tuple(range(10)))).eval()
    split, machine = load_dataset(small.data).training, Machine("fp32", threads=1)
    augment = small.ensemble.schedule.augment
    told: list[str] = []

    def note(stage: str, done: float, total: float, text: str = "") -> None:
        told.append(text)

    def start(_run: int) -> StoredTeacher:
        return StoredTeacher(tmp_path, teacher, split, augment, machine, note)

    with ThreadPoolExecutor(2) as runs:
        first, second = runs.map(start, range(2))
    assert told.count("answers stored") == 1
    batch = next(batches(split, small.ensemble.schedule, BatchSpec(3, 0, 10, (0.2,), (0.2,))))
    expected = LiveTeacher(teacher, machine)(batch).logits
    for stored in (first, second):
        torch.testing.assert_close(stored(batch).logits, expected, rtol=2e-3, atol=2e-3)


def test_damaged_answers_are_refused_in_one_line(tmp_path: Path, small: Recipe) -> None:
    teacher = Model(small.teacher.config(small.data, tuple(range(10)))).eval()
    asked = (teacher, load_dataset(small.data).training, small.ensemble.schedule.augment, Machine("fp32", 1))
    StoredTeacher(tmp_path, *asked, no_progress)
    (logits,) = tmp_path.glob("*/logits.npy")
    logits.write_bytes(logits.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"logits\.npy: expected .*: remove its folder"):
        StoredTeacher(tmp_path, *asked, no_progress)


def test_answers_to_endless_variants_are_not_stored(tmp_path: Path, small: Recipe) -> None:
    augment = msgspec.structs.replace(small.ensemble.schedule.augment, erase=0.5)
    data = load_dataset(small.data)
    teacher = Model(small.teacher.config(small.data, tuple(range(10))))
    with pytest.raises(InputError, match="--teacher-cache"):
        StoredTeacher(tmp_path, teacher, data.training, augment, Machine("fp32", 1), no_progress)


def test_the_fusion_of_deits_is_one_matrix_over_both_tokens() -> None:
    """The mean of the class fusion and the distillation fusion, written as one linear map."""
    torch.manual_seed(0)
    configs = [
        uniform_config(
            backbone=backbone,
            image_size=(8, 8, 1),
            mean=(0.5,),
            std=(0.5,),
            stem=(StemLayer(width, kernel=4, stride=4, batch_norm=False),),
            depth=1,
            heads=1,
            mlp_ratio=1.0,
            classes=(0, 1, 2),
        )
        for backbone, width in (("deit", 16), ("vit", 8), ("deit", 24))
    ]
    ensemble = Ensemble([Model(config) for config in configs], classes=3).eval()
    images = torch.randint(0, 256, (4, 8, 8, 1), dtype=torch.uint8)
    weight, bias = ensemble.linear()
    features = ensemble.features(images)
    assert ensemble.dims == (32, 8, 48)
    expected = features.detach().double().numpy() @ weight.T + bias
    np.testing.assert_allclose(ensemble(images).detach().numpy(), expected, atol=1e-5)
    answers = ensemble.answers(features)
    assert len(answers) == 2
    torch.testing.assert_close(ensemble(images), (answers[0] + answers[1]) / 2)


def test_a_dry_run_needs_no_data_and_counts_every_model(small_path: Path) -> None:
    header, rows = dry_run(load_recipe(small_path, ('data.folder="nowhere"',)), no_progress)
    assert header == ["model", "MMACs", "share", "parameters", "classes"]
    assert [row[0] for row in rows] == ["teacher", "submodel 0", "submodel 1", "submodel 2", "submodel 3"]


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_learning_rate_rises_falls_and_stays(decay: str) -> None:
    schedule = msgspec.structs.replace(load_recipe(EXAMPLE).ensemble.schedule, decay=decay, decay_epochs=13)
    rates = [train.learning_rate(schedule, epoch) for epoch in (0.0, 0.5, 1.0, 7.0, 13.0, 20.0)]
    assert rates[0] < rates[1] < rates[2] == schedule.learning_rate
    assert rates[3] == pytest.approx(schedule.learning_rate / 2, rel=0.03)
    assert rates[4] == rates[5] == pytest.approx(schedule.learning_rate * schedule.final_share)
