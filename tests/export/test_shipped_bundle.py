"""The bundle in the package is what the checkpoints in examples/ give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.head import FusionHead
from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Role
from devit_decompose.models_folder.decomposition import load_decomposition
from devit_decompose.pruning.cost import macs
from devit_decompose.recipe.reader import load_recipe
from devit_export.bundle import export_bundle
from devit_export.parity import run_graph

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "fashion-mnist"
SHIPPED = ROOT / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(MODELS, out)
    return Bundle(out)


@pytest.mark.nightly(part="models")
def test_exporting_the_checkpoints_gives_the_shipped_bundle(exported: Bundle) -> None:
    """To 1e-5: another CPU or thread count may round otherwise."""
    shipped = Bundle(SHIPPED)
    ours, theirs = exported.golden(), shipped.golden()
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5, err_msg=name)
    models: list[tuple[Role, int | None]] = [("baseline", None), *(("submodel", device) for device in range(4))]
    for role, device in models:
        for variant in shipped.manifest.graph(role, device).variants:
            graphs = [bundle.path(role, device=device, variant=variant).read_bytes() for bundle in (exported, shipped)]
            outputs = [run_graph(role, graph, theirs["images"]) for graph in graphs]
            np.testing.assert_allclose(*outputs, rtol=0, atol=1e-5 if variant == "fp32" else 1e-3)
        ours_record, theirs_record = (bundle.manifest.graph(role, device) for bundle in (exported, shipped))
        assert ours_record.fp32_nodes == theirs_record.fp32_nodes
        assert ours_record.overflows == theirs_record.overflows == ()
        assert [parity.casts for parity in ours_record.parity] == [parity.casts for parity in theirs_record.parity]
    our_head, their_head = (FusionHead.load(bundle.path("fusion")) for bundle in (exported, shipped))
    for ours_part, theirs_part in (
        (our_head.weight, their_head.weight),
        (our_head.bias, their_head.bias),
        (our_head.statistics.mean, their_head.statistics.mean),
        (our_head.statistics.covariance, their_head.statistics.covariance),
    ):
        np.testing.assert_allclose(ours_part, theirs_part, rtol=0, atol=1e-5)
    for field in ("labels", "preprocess", "subsets", "baseline_accuracy", "opset", "missing"):
        assert getattr(exported.manifest, field) == getattr(shipped.manifest, field)


def test_the_shipped_models_and_bundle_have_the_same_calibration() -> None:
    shipped, found = Bundle(SHIPPED).manifest.file("calibration"), load_decomposition(MODELS).file("calibration")
    assert shipped == found
    calibration = Calibration.load(SHIPPED / shipped.name, devices=4, sha256=shipped.sha256)
    assert calibration.images == load_decomposition(MODELS).data.validation_images
    assert sorted(calibration.flips) == list(range(1, 15))


def test_the_shipped_models_keep_what_the_project_promises() -> None:
    """Teacher 92 %, fused within 1 point of it, submodels of 7.1 % of its cost, any of which may be missing."""
    found = load_decomposition(MODELS)
    accuracies = {subset.mask: subset.test_accuracy for subset in found.subsets}
    assert found.teacher is not None
    assert found.teacher_test_accuracy is not None
    assert found.data.test_images == 10_000
    assert found.teacher_test_accuracy >= 0.92
    assert found.teacher_test_accuracy - accuracies[0b1111] <= 0.01
    assert all(accuracies[0b1111] - accuracies[0b1111 & ~(1 << device)] <= 0.02 for device in range(4))
    for record in found.submodels:
        assert record.macs == macs(record.config, with_head=False)
        assert record.macs <= 0.071 * found.teacher.macs


def test_predicting_missing_features_is_never_worse_than_a_constant_and_far_better_with_one_device_left() -> None:
    for subset in load_decomposition(MODELS).subsets:
        best_constant = max(subset.test_accuracy_with_zeros, subset.test_accuracy_with_mean)
        assert subset.test_accuracy >= best_constant - 0.002, subset.mask
        if subset.mask.bit_count() == 1:
            assert subset.test_accuracy >= best_constant + 0.05, subset.mask


def test_the_shipped_models_were_made_by_the_shipped_recipe() -> None:
    assert load_decomposition(MODELS).recipe == load_recipe(ROOT / "examples" / "fashion-mnist.toml")
