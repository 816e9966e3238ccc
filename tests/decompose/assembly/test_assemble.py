"""``devit assemble``: small timm models with local weights become a cell whose files say what was measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from devit_contract.artefacts.head import Fusion, FusionHead
from devit_contract.artefacts.manifest import Preprocess
from devit_contract.errors import InputError, ManifestError
from devit_contract.service.progress import no_progress
from devit_decompose.assembly import features as features_module
from devit_decompose.assembly.assemble import Order, assemble, set_head
from devit_decompose.assembly.data_recipe import data_recipe
from devit_decompose.assembly.features import FeatureCache, weights_digest
from devit_decompose.assembly.ridge import LinearHead
from devit_decompose.data.dataset import load_dataset
from devit_decompose.evaluation.evaluate import evaluate, load_cell
from devit_decompose.models.inference import accuracy, run
from devit_decompose.models.model import Model, StemLayer, uniform_config
from devit_decompose.models.timm_models import import_timm
from devit_decompose.models_folder.assembly import Assembly, load_assembly
from devit_decompose.models_folder.decomposition import Decomposition, load_decomposition
from devit_decompose.models_folder.subset_accuracy import joined_features

DEVIT = [sys.executable, "-c", "from devit_pipeline.cli import main; main()"]
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}
SPEC = Preprocess(32, 32, "rgb")
PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    try:
        return import_timm()
    except InputError as err:
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures of three colours, of several sizes: 20 of each for training, 8 for the test."""
    root = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 8)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                size = (40 + number, 30, 3)
                noisy = np.clip(generator.normal(colour, 90, size) + generator.normal(0, 40, 3), 0, 255)
                Image.fromarray(noisy.astype(np.uint8)).save(root / part / name / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, timm: ModuleType) -> dict[str, Path]:
    """Weight files as timm would have made them, random: two of one shape, and a DeiT with two tokens."""
    root = tmp_path_factory.mktemp("weights")
    files = {}
    for seed, (key, name) in enumerate(
        {"a": "test_vit", "b": "test_vit", "deit": "deit_tiny_distilled_patch16_224"}.items()
    ):
        torch.manual_seed(seed)
        files[key] = root / f"{key}.safetensors"
        save_file(timm.create_model(name, img_size=32, num_classes=5).state_dict(), files[key])
    return files


@pytest.fixture(scope="session")
def order(folder: Path, weights: dict[str, Path]) -> Order:
    return Order(
        models=("test_vit", "deit_tiny_distilled_patch16_224", "test_vit"),
        data=folder,
        name="colours",
        weights=(weights["a"], weights["deit"], weights["b"]),
        size=(32, 32),
        validation_images=15,
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session")
def assembled(
    tmp_path_factory: pytest.TempPathFactory, order: Order, cache: Path
) -> tuple[Path, Decomposition, Assembly]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("assembled") / "models"
    return out, *assemble(order, out, cache, no_progress)


def small_order(folder: Path, files: dict[str, Path], /, **changes: object) -> Order:
    fields: dict[str, object] = {
        "models": ("test_vit",),
        "data": folder,
        "weights": (files["a"],),
        "size": (32, 32),
        "validation_images": 15,
    }
    return Order(**(fields | changes))  # type: ignore[arg-type]


def devit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEVIT, *map(str, arguments)], capture_output=True, text=True, timeout=90, check=False)


def test_an_assembled_cell_reads_back_as_it_was_measured(assembled: tuple[Path, Decomposition, Assembly]) -> None:
    out, written, assembly = assembled
    assert load_decomposition(out) == written
    assert load_assembly(out) == assembly
    assert (written.teacher, written.recipe, written.teacher_test_accuracy) == (None, None, None)
    assert written.class_names == ("blue", "green", "red")
    assert written.class_subsets == ((0, 1, 2),) * 3
    assert [record.config.feature_dim for record in written.submodels] == [64, 384, 64]
    assert (written.data.training_images, written.data.validation_images, written.data.test_images) == (45, 15, 24)
    found = evaluate(out, data=None, against=None, progress=no_progress)
    assert found.is_stored_test_set
    assert (found.teacher_accuracy, found.teacher_macs) == (None, None)
    for subset, accuracy_percent in zip(written.subsets, found.subsets.values(), strict=True):
        assert accuracy_percent == pytest.approx(100 * subset.test_accuracy, abs=4.2)  # one of 24 may turn by rounding
    assert found.fused_accuracy > 60  # chance is a third; the backbones are random


def test_the_fusion_is_the_best_of_the_heads_that_were_tried(
    assembled: tuple[Path, Decomposition, Assembly], order: Order
) -> None:
    _, written, assembly = assembled
    assert {head.method for head in assembly.heads} == {"ridge", "logistic"}
    assert assembly.heads[0].validation_accuracy == max(head.validation_accuracy for head in assembly.heads)
    assert written.subsets[-1].validation_accuracy == pytest.approx(assembly.heads[0].validation_accuracy, abs=0.07)
    assert written.stages[0].name == f"fusion-{assembly.heads[0].method}"


def test_each_submodel_keeps_its_own_linear_probe_as_its_head(
    assembled: tuple[Path, Decomposition, Assembly], folder: Path
) -> None:
    """Also the DeiT, whose two heads' mean it is."""
    out, _, assembly = assembled
    test = load_dataset(assembly.data, SPEC).test
    for model, record in zip(load_cell(out).submodels, assembly.backbones, strict=True):
        assert accuracy(run(model, test.images), test.labels) == pytest.approx(record.probe_test_accuracy, abs=0.042)


def test_each_backbone_keeps_its_own_normalisation(assembled: tuple[Path, Decomposition, Assembly]) -> None:
    _, written, _ = assembled
    assert [record.config.mean[0] for record in written.submodels] == [0.5, 0.485, 0.5]


def test_features_are_timms_own(
    assembled: tuple[Path, Decomposition, Assembly], timm: ModuleType, order: Order
) -> None:
    """The code of timm on the pictures of the test, with its own normalisation."""
    out, _, assembly = assembled
    images = load_dataset(assembly.data, SPEC).test.images[:4]
    theirs = timm.create_model("test_vit", img_size=32, num_classes=5)
    from safetensors.torch import load_file

    theirs.load_state_dict(load_file(order.weights[0]))
    theirs.eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = theirs.forward_head(theirs.forward_features((pixels - 0.5) / 0.5), pre_logits=True).numpy()
    np.testing.assert_allclose(run(load_cell(out).submodels[0].features, images), expected, rtol=1e-3, atol=1e-4)


def test_a_second_run_computes_no_feature_for_the_fusion(
    tmp_path: Path,
    assembled: tuple[Path, Decomposition, Assembly],
    order: Order,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_compute(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(FeatureCache, "_compute", no_compute)
    out, _, _ = assembled
    assemble(order, tmp_path / "again", cache, no_progress)
    for path in sorted(out.iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_ctrl_c_leaves_whole_backbones_and_nothing_else(tmp_path: Path, folder: Path, weights: dict[str, Path]) -> None:
    pair = small_order(folder, weights, models=("test_vit",) * 2, weights=(weights["a"], weights["b"]), ridge=0.1)

    def cut(stage: str, done: float, total: float, note: str = "") -> None:
        if stage == "features 1" and done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assemble(pair, tmp_path / "models", tmp_path / "cache", cut)
    assert [path.name[0] == "." for path in (tmp_path / "cache").iterdir()] == [False] * 3  # the first one's parts
    assert not (tmp_path / "models").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assemble(pair, tmp_path / "models", tmp_path / "cache", no_progress)
    assert len(list((tmp_path / "cache").iterdir())) == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_same_backbone_twice_is_computed_once_and_may_be_lost(
    tmp_path: Path, folder: Path, weights: dict[str, Path]
) -> None:
    pair = small_order(folder, weights, models=("test_vit",) * 2, weights=(weights["a"],) * 2, ridge=0.1)
    decomposition, assembly = assemble(pair, tmp_path / "models", tmp_path / "cache", no_progress)
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert [head.method for head in assembly.heads] == ["ridge"]
    one, other, both = (subset.test_accuracy for subset in decomposition.subsets)
    assert one == other == pytest.approx(both, abs=0.042)


def test_features_do_not_depend_on_the_processes_that_decode(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "_BATCH", 7)
    torch.manual_seed(0)
    model = Model(small_config()).eval()
    images = load_dataset(data_recipe("folder", folder, SPEC, PIXELS, name="x"), SPEC).test.images
    found = [
        FeatureCache(tmp_path / str(workers), SPEC, workers).features(model, "w", images, "d", lambda done: None)
        for workers in (0, 2)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], joined_features([model], images), rtol=1e-4, atol=1e-5)


def test_a_damaged_picture_is_named_by_whichever_process_finds_it(tmp_path: Path, folder: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "test" / "red" / "03.png").write_bytes(b"no picture")
    images = load_dataset(data_recipe("folder", broken, SPEC, PIXELS, name="x"), SPEC).test.images
    for workers in (0, 1):
        cache = FeatureCache(tmp_path / "cache", SPEC, workers)
        with pytest.raises(InputError, match=r"red/03\.png"):
            cache.features(Model(small_config()).eval(), "w", images, "d", lambda done: None)
        assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_cache_file_is_named(tmp_path: Path) -> None:
    model, cache = Model(small_config()).eval(), FeatureCache(tmp_path, SPEC, 0)
    images = np.zeros((3, 32, 32, 3), np.uint8)
    cache.features(model, "w", images, "d", lambda done: None)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"\.npy: expected stored features, found a damaged file .*: remove it"):
        cache.features(model, "w", images, "d", lambda done: None)


def test_the_digest_of_a_backbone_covers_all_but_its_head() -> None:
    torch.manual_seed(0)
    model = Model(small_config())
    before = weights_digest(model)
    set_head(model, LinearHead(np.ones((3, 16)), np.ones(3)))
    assert weights_digest(model) == before
    with torch.no_grad():
        model.blocks[1].expand.bias[0] += 1e-3  # type: ignore[union-attr, index, operator]
    assert weights_digest(model) != before


def small_config(backbone: str = "vit"):  # noqa: ANN201
    return uniform_config(
        backbone=backbone,
        image_size=(32, 32, 3),
        mean=PIXELS[0],
        std=PIXELS[1],
        stem=(StemLayer(16, kernel=16, stride=16, batch_norm=False),),
        depth=2,
        heads=2,
        mlp_ratio=2.0,
        classes=(0, 1, 2),
    )


def test_a_deits_two_heads_average_to_one_linear_head() -> None:
    generator = np.random.default_rng(0)
    model = Model(small_config("deit")).eval()
    head = LinearHead(generator.normal(size=(3, 32)), generator.normal(size=3))
    set_head(model, head)
    images = generator.integers(0, 256, (5, 32, 32, 3), np.uint8)
    features = run(model.features, images)
    np.testing.assert_allclose(run(model, images), features @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4)


def test_idx_images_become_larger_and_coloured_and_keep_their_places(idx_folder: Path) -> None:
    recipe = data_recipe("idx", idx_folder, SPEC, PIXELS, name="squares")
    plain, large = load_dataset(recipe), load_dataset(recipe, SPEC)
    assert recipe.validation_images == 60
    assert (large.preprocess, plain.test.images.shape) == (SPEC, (200, 8, 8, 1))
    image = large.test.images[:1]
    assert image.shape == (1, 32, 32, 3)
    assert (image[..., 0] == image[..., 2]).all()
    expected = Image.fromarray(plain.test.images[0][..., 0]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(image[0, ..., 0].astype(int) - np.asarray(expected).astype(int)).max() <= 1
    assert (large.test.labels == plain.test.labels).all()


def test_an_assembled_cell_becomes_a_bundle(tmp_path: Path, folder: Path, weights: dict[str, Path]) -> None:
    """The graph's features, fused by the bundle's head, are the answers of the models folder."""
    from devit_contract.artefacts.manifest import Bundle
    from devit_export.bundle import export_bundle

    assemble(small_order(folder, weights), tmp_path / "models", tmp_path / "cache", no_progress)
    manifest = export_bundle(tmp_path / "models", tmp_path / "bundle")
    assert (manifest.baseline, manifest.labels) == (None, ("blue", "green", "red"))
    assert manifest.file("calibration") in load_decomposition(tmp_path / "models").files
    golden = Bundle(tmp_path / "bundle").golden()
    cell = load_cell(tmp_path / "models")
    features = joined_features(cell.submodels, golden["images"])
    np.testing.assert_allclose(golden["features.0"], features, atol=1e-5)
    head = FusionHead.load(tmp_path / "bundle" / "fusion.safetensors")
    np.testing.assert_allclose(Fusion(head).batch_logits(features, 1), golden["logits"], atol=1e-3)
    assert head.norms is not None
    assert np.linalg.norm(features, axis=1).max() <= head.norms[0] * 1.001  # golden images are of the validation part


@pytest.mark.system
def test_the_command_prints_tables_that_fit_and_json_that_holds_more(
    tmp_path: Path, folder: Path, weights: dict[str, Path]
) -> None:
    arguments = ("assemble", "--models", "test_vit,test_vit", "--weights", f"{weights['a']},{weights['b']}")
    arguments += ("--data", folder, "--size", "32,32", "--ridge", "0.1", "--cache", tmp_path / "cache")  # type: ignore[assignment]
    done = devit(*arguments, "--out", tmp_path / "models")
    assert done.returncode == 0, done.stderr
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("next: ")) <= 80
    assert "features 1: done, test_vit, 84 of 84 images" in done.stderr
    found = load_assembly(tmp_path / "models")
    assert found.data.validation_images == 6  # a tenth
    for record in found.backbones:
        assert f"{record.probe_test_accuracy:.2%}" in done.stdout
    again = devit(*arguments, "--out", tmp_path / "models", "--json", "--force")
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout)["assembly"]["heads"][0]["strength"] == 0.1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"models": ("vit_tinny_patch16_224",)}, "did you mean vit_tiny_patch16_224"),
        ({"models": ("vit_tiny_patch16_224.mine",)}, r"expected vit_tiny\S+\.augreg.* found 'vit_tiny"),
        ({"models": ("resnet18",)}, "expected a plain ViT or DeiT, found ResNet"),
        ({"models": ("test_vit", "vit_tiny_patch16_384", "test_vit"), "weights": (), "size": None},
         r"160 x 160 as test_vit takes, found vit_tiny_patch16_384 \(384 x 384\): .* --size 160,160"),
        ({"models": ("test_vit",) * 11, "weights": ()}, "1 to 10 names, found 11"),
        ({"models": ("test_vit",) * 2}, "expected 2 files, one for each model, found 1"),
        ({"size": (30, 32)}, "--size: test_vit: image_size: expected multiples of the patch 16"),
        ({"resize_to": 20}, "--resize-to: resize_to: expected 0, or"),
        ({"data": Path("nowhere")}, "nowhere/train: expected a folder for each class, found none"),
        ({"source": "clouds"}, "source"),
        ({"ridge": 0.0}, "--ridge: expected auto or a number above 0"),
        ({"ridge": float("nan")}, "--ridge"),
        ({"validation_images": 16}, "validation_images: .*multiple of 3"),
        ({"weights": (Path("nowhere.safetensors"),)}, "nowhere.safetensors: cannot be read"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_feature(
    tmp_path: Path, folder: Path, weights: dict[str, Path], changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        assemble(small_order(folder, weights, **changes), tmp_path / "models", tmp_path / "cache", no_progress)
    assert not (tmp_path / "models").exists()


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path, folder: Path, weights: dict[str, Path]) -> None:
    shutil.copytree(folder / "train" / "red", tmp_path / "train" / "red")
    with pytest.raises(InputError, match="at least 2 classes, found 1"):
        assemble(small_order(tmp_path, weights), tmp_path / "models", tmp_path / "cache", no_progress)


def test_weights_of_another_shape_are_named(tmp_path: Path, folder: Path, weights: dict[str, Path]) -> None:
    wrong = small_order(folder, weights, weights=(weights["deit"],))
    with pytest.raises(ManifestError, match=r"deit\.safetensors"):
        assemble(wrong, tmp_path / "models", tmp_path / "cache", no_progress)


def test_a_folder_that_holds_something_else_is_never_replaced(
    tmp_path: Path, folder: Path, weights: dict[str, Path]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        assemble(small_order(folder, weights), tmp_path, tmp_path / "cache", no_progress)


def test_a_cell_whose_data_set_nobody_wrote_down_is_named(
    tmp_path: Path, assembled: tuple[Path, Decomposition, Assembly]
) -> None:
    bare = shutil.copytree(assembled[0], tmp_path / "bare")
    (bare / "assembly.json").unlink()
    with pytest.raises(InputError, match=r"expected a recipe or assembly\.json, found none"):
        evaluate(bare, data=None, against=None, progress=no_progress)


def test_moved_pictures_are_found_again(
    tmp_path: Path, assembled: tuple[Path, Decomposition, Assembly], folder: Path
) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert evaluate(assembled[0], data=moved, against=None, progress=no_progress).is_stored_test_set
    (moved / "test" / "red" / "07.png").unlink()
    assert not evaluate(assembled[0], data=moved, against=None, progress=no_progress).is_stored_test_set
