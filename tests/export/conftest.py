"""Models folders at random weights, small enough to export in seconds, odd enough to catch a mixed-up axis."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from devit_contract.artefacts.files import write_json
from devit_contract.artefacts.manifest import Manifest, Preprocess
from devit_contract.service.progress import no_progress
from devit_decompose.data.dataset import Dataset, Split
from devit_decompose.models.model import Model, ModelConfig, StemLayer, uniform_config
from devit_decompose.models_folder.decomposition import FILE_NAME, load_decomposition
from devit_decompose.models_folder.write import Made, write_models
from devit_decompose.pruning.importance import importance
from devit_decompose.pruning.shrink import Shape, keep_best, prune
from devit_decompose.recipe.schema import DataRecipe, Recipe, ShapeRecipe
from devit_decompose.recipe.training import AnswerRecipe, DistilRecipe, EnsembleRecipe, Schedule
from devit_decompose.training.objectives import Ensemble
from devit_export.bundle import export_bundle
from devit_export.graph import ExportedGraph, export_features, export_logits


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs onnxsim where it cannot be installed."""
    if sys.version_info < (3, 11):
        reason = "onnxsim has no wheel below Python 3.11: exporting belongs to the workstation"
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason=reason))


CLASSES = ("cat", "dog", "newt")
HEIGHT, WIDTH, COLOURS = 10, 14, 3
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
SAMPLES = 12
PATCHES = (StemLayer(width=16, kernel=2, stride=2, batch_norm=False),)
POOLED = (StemLayer(width=8, max_pool=True), StemLayer(width=24, stride=2, kernel=5))
PREPROCESS = Preprocess(HEIGHT, WIDTH, "rgb", resize_to=20)


def _config(backbone: str, classes: tuple[int, ...], *, heads: int = 2) -> ModelConfig:
    """Blocks that differ in neurons, and a scale of the softmax that is not the usual one."""
    uniform = uniform_config(
        backbone=backbone,
        image_size=(HEIGHT, WIDTH, COLOURS),
        mean=MEAN,
        std=STD,
        stem=POOLED if backbone == "cct" else PATCHES,
        depth=2,
        heads=heads,
        head_width=16,
        mlp_ratio=2.0,
        classes=classes,
    )
    return msgspec.structs.replace(uniform, softmax_scales=(0.25, 0.375), neurons=(32, 48))


def _model(config: ModelConfig) -> Model:
    """Random everywhere, the statistics of BatchNorm included, so that no term is invisible."""
    model = Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
        for module in model.modules():
            if (
                isinstance(module, nn.BatchNorm2d)
                and module.running_mean is not None
                and module.running_var is not None
            ):
                module.running_mean.normal_(0.0, 0.5)
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def _pruned() -> Model:
    """A DeiT cut down in every dimension, each block otherwise: 176 channels of 192, 1 and 3 of 4 heads."""
    stem = (StemLayer(width=192, kernel=2, stride=2, batch_norm=False),)
    wide = msgspec.structs.replace(
        _config("deit", (0, 1, 2), heads=4), stem=stem, head_widths=(48, 48), neurons=(80, 80)
    )
    model = _model(wide)
    scores = importance(model, np.zeros((1, HEIGHT, WIDTH, COLOURS), np.uint8), "magnitude")
    shape = Shape(depth=2, width=176, heads=(1, 3), head_widths=(40, 24), neurons=(48, 64), stem=())
    return prune(model, keep_best(model, scores, shape))


def _recipe() -> Recipe:
    schedule = Schedule(learning_rate=1e-3, decay_epochs=1, patience=0, max_epochs=1)
    answer = AnswerRecipe(label_weight=0.5, teacher_weight=0.5)
    shape = ShapeRecipe(stem=(StemLayer(width=16),), depth=1, heads=1, mlp_ratio=2.0)
    data = DataRecipe(
        name="Three animals",
        folder="absent",
        size=(HEIGHT, WIDTH),
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        validation_images=30,
        sample_images=SAMPLES,
    )
    return Recipe(
        schema=2,
        name="animals",
        seed=1,
        submodels=2,
        threads=1,
        data=data,
        teacher=shape,
        students=(shape,),
        train=schedule,
        distil=DistilRecipe(schedule, answer),
        ensemble=EnsembleRecipe(schedule, answer),
    )


def _data() -> Dataset:
    def split(count: int, seed: int) -> Split:
        rng = np.random.default_rng(seed)
        noise = rng.integers(0, 256, (count, HEIGHT, WIDTH, COLOURS))
        tint = rng.integers(0, 256, (count, 1, 1, COLOURS))  # so that the answers to two images differ
        images = ((noise + 3 * tint) // 4).astype(np.uint8)
        return Split(images, np.arange(count, dtype=np.int64) % len(CLASSES))

    return Dataset(
        training=split(60, 1),
        validation=split(30, 2),
        test=split(30, 3),
        class_names=CLASSES,
        name="Three animals",
        preprocess=PREPROCESS,
    )


def _ensemble(submodels: tuple[Model, ...]) -> Ensemble:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        ensemble = Ensemble(submodels, len(CLASSES))
        for parameter in ensemble.fusions.parameters():
            nn.init.normal_(parameter)
    return ensemble.eval()


@pytest.fixture(scope="session")
def preprocess() -> Preprocess:
    return PREPROCESS


@pytest.fixture(scope="session")
def sample_model() -> Callable[[str], Model]:
    """Build a model at random weights, the same each time: ``vit``, ``deit``, ``cct`` or ``pruned``."""

    def build(kind: str) -> Model:
        with torch.random.fork_rng():
            torch.manual_seed(6)
            return _pruned() if kind == "pruned" else _model(_config(kind, (0, 1, 2)))

    return build


@pytest.fixture(scope="session")
def sample_graph(sample_model: Callable[[str], Model]) -> Callable[[str], ExportedGraph]:
    """Export the features of a sample model; torch takes seconds, so each is exported once."""
    return cache(lambda kind: export_features(sample_model(kind), f"{kind}.onnx"))


@pytest.fixture(scope="session")
def teacher() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return _model(_config("cct", (0, 1, 2), heads=3))


@pytest.fixture(scope="session")
def submodels() -> tuple[Model, ...]:
    """A DeiT, whose feature is as long as two tokens, beside a CCT."""
    with torch.random.fork_rng():
        torch.manual_seed(8)
        return _model(_config("deit", (0, 2), heads=1)), _model(_config("cct", (1,)))


@pytest.fixture(scope="session")
def ensemble(submodels: tuple[Model, ...]) -> Ensemble:
    return _ensemble(submodels)


@pytest.fixture(scope="session")
def models_folder(teacher: Model, ensemble: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as devit decompose writes it; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("decompose") / "models"
    submodels = tuple(ensemble.models())
    made = Made(
        name="animals",
        submodels=submodels,
        fusion=ensemble.linear(),
        class_subsets=tuple(model.config.classes for model in submodels),
        recipe=_recipe(),
        teacher=teacher,
    )
    write_models(folder, made, _data(), SAMPLES, no_progress)
    return folder


@pytest.fixture(scope="session")
def assembled(sample_model: Callable[[str], Model]) -> Ensemble:
    """Trained DeiTs that are joined as they are, one of them pruned: no recipe, no baseline model."""
    return _ensemble((sample_model("deit"), sample_model("pruned")))


@pytest.fixture(scope="session")
def assembled_folder(assembled: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assemble") / "models"
    made = Made("assembled", tuple(assembled.models()), assembled.linear(), class_subsets=((0, 1), (2,)))
    write_models(folder, made, _data(), SAMPLES, no_progress)
    return folder


@pytest.fixture(scope="session")
def exported_teacher(teacher: Model) -> ExportedGraph:
    return export_logits(teacher, "baseline.fp32.onnx")


@pytest.fixture(scope="session")
def exported_submodel(submodels: tuple[Model, ...]) -> ExportedGraph:
    return export_features(submodels[0], "submodel-0.fp32.onnx")


@pytest.fixture(scope="session")
def written(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A bundle and the manifest that was returned with it; only read by tests."""
    folder = tmp_path_factory.mktemp("export") / "bundle"
    return folder, export_bundle(models_folder, folder, serial=3)


@pytest.fixture(scope="session")
def written_assembled(assembled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The bundle of a cell without a teacher, whose models folder is as of older versions: no calibration, no INT8."""
    older = Path(shutil.copytree(assembled_folder, tmp_path_factory.mktemp("older") / "models"))
    for name in ("calibration.safetensors", "quantization.safetensors"):
        (older / name).unlink()
    found = load_decomposition(assembled_folder)
    files = tuple(file for file in found.files if file.role not in ("calibration", "quantization"))
    write_json(older / FILE_NAME, msgspec.structs.replace(found, files=files))
    folder = tmp_path_factory.mktemp("export") / "bundle"
    return folder, export_bundle(older, folder)
