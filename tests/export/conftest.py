"""A models folder at random weights, small enough to export in a second, odd enough to catch a mixed-up axis."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from devit_contract.manifest import Manifest
from devit_contract.progress import no_progress
from devit_decompose.data import Dataset, Split
from devit_decompose.model import Model, ModelConfig, StemLayer
from devit_decompose.recipe import DataRecipe, DistilRecipe, EnsembleRecipe, ModelRecipe, Recipe, Schedule
from devit_decompose.stages import Ensemble, write_models
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
SAMPLES = 12
PLAIN = (StemLayer(width=8, stride=2), StemLayer(width=16, batch_norm=False))
POOLED = (StemLayer(width=8, max_pool=True), StemLayer(width=24, stride=2, kernel=5))


def _config(stem: tuple[StemLayer, ...], heads: tuple[int, ...], classes: tuple[int, ...]) -> ModelConfig:
    blocks = len(heads)
    return ModelConfig(
        backbone="cct",
        image_size=(HEIGHT, WIDTH, COLOURS),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25),
        stem=stem,
        heads=heads,
        head_widths=(16,) * blocks,
        softmax_scales=tuple(0.25 + 0.125 * block for block in range(blocks)),
        neurons=tuple(32 + 16 * block for block in range(blocks)),
        classes=classes,
    )


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


def _recipe() -> Recipe:
    schedule = Schedule(learning_rate=1e-3, decay_epochs=1, patience=0, max_epochs=1)
    shape = ModelRecipe(stem=(StemLayer(width=16),), depth=1, heads=1, mlp_ratio=2.0)
    data = DataRecipe(
        name="Three animals",
        folder="absent",
        classes=CLASSES,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25),
        validation_images=30,
        sample_images=SAMPLES,
    )
    return Recipe(
        schema=1,
        name="animals",
        seed=1,
        submodels=2,
        threads=1,
        data=data,
        teacher=shape,
        student=shape,
        train=schedule,
        distil=DistilRecipe(schedule, 0.5, 0.5, 2.0),
        ensemble=EnsembleRecipe(schedule, 0.3, 0.7, 2.0, 0.25, 0.4),
    )


def _split(count: int, seed: int) -> Split:
    images = np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, COLOURS), np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % len(CLASSES))


@pytest.fixture(scope="session")
def teacher() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return _model(_config(POOLED, heads=(2, 3), classes=(0, 1, 2)))


@pytest.fixture(scope="session")
def submodels() -> tuple[Model, ...]:
    with torch.random.fork_rng():
        torch.manual_seed(8)
        return (
            _model(_config(PLAIN, heads=(1,), classes=(0, 2))),
            _model(_config(POOLED, heads=(2,), classes=(1,))),
        )


@pytest.fixture(scope="session")
def models_folder(teacher: Model, submodels: tuple[Model, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as devit decompose writes it; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("decompose") / "models"
    with torch.random.fork_rng():
        torch.manual_seed(9)
        ensemble = Ensemble(list(submodels), len(CLASSES)).eval()
    data = Dataset(_split(60, 1), _split(30, 2), _split(30, 3))
    subsets = tuple(model.config.classes for model in submodels)
    write_models(folder, _recipe(), data, teacher, ensemble, subsets, (), no_progress)
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
