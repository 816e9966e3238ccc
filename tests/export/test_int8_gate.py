"""A calibration that went wrong never reaches a bundle: the variant is left out by name, or what broke stays out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support.int8 import swap_scales

from devit_contract.arrays import UInt8Array
from devit_contract.choices import EIGHT_BIT_VARIANTS, Variant
from devit_decompose.models.model import Model
from devit_decompose.models_folder.decomposition import load_decomposition
from devit_export import variants
from devit_export.checked import CheckedVariants
from devit_export.graph import ExportedGraph, export_features
from devit_export.int8.products import Runtime
from devit_export.int8.quantize import quantize
from devit_export.parity import ParityError, run_graph
from devit_export.trained import TrainedCell


@pytest.fixture
def cell(assembled_folder: Path) -> TrainedCell:
    return TrainedCell(assembled_folder, load_decomposition(assembled_folder))


@pytest.fixture(scope="module")
def exported(assembled_folder: Path) -> ExportedGraph:
    decomposition = load_decomposition(assembled_folder)
    return export_features(TrainedCell(assembled_folder, decomposition).model(0), "submodel-0.fp32.onnx")


def checked(exported: ExportedGraph, cell: TrainedCell, variant: Variant) -> tuple[CheckedVariants, bytes | None]:
    made = CheckedVariants(exported, cell, 0, ())
    return made, made.add(f"submodel-0.{variant}.onnx", variant)


@pytest.mark.parametrize("variant", EIGHT_BIT_VARIANTS)
def test_constant_images_leave_the_variant_out_or_more_products_in_higher_precision(
    exported: ExportedGraph, cell: TrainedCell, variant: Variant
) -> None:
    plain, _ = checked(exported, cell, variant)
    assert cell.kept is not None
    cell.kept["images"] = np.full_like(cell.kept["images"], 7)
    assert_stopped(checked(exported, cell, variant)[0], plain, variant)


def assert_stopped(found: CheckedVariants, plain: CheckedVariants, variant: Variant) -> None:
    """It is not there, and why, or there is less in INT8 than there would be."""
    if variant in found.left_out:
        words = f"submodel-0.{variant}.onnx: expected what was trained, found smallest cosine"
        assert found.left_out[variant].startswith(words)
        assert (found.parity, found.kept_products) == ((), {})
    else:
        assert len(found.kept_products[variant]) > len(plain.kept_products[variant])


@pytest.mark.parametrize("variant", EIGHT_BIT_VARIANTS)
def test_swapped_scales_leave_the_variant_out_by_name(
    exported: ExportedGraph, cell: TrainedCell, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a search gives is judged, not believed."""

    def swapped(
        model: onnx.ModelProto, images: UInt8Array, _accept: object, name: str, *, runtime: Runtime
    ) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        return swap_scales(quantize(model, images, (), name, runtime=runtime)), ()

    monkeypatch.setattr(variants, "search", swapped)
    made, content = checked(exported, cell, variant)
    assert content is None
    assert "found smallest cosine" in made.left_out[variant]


def loud(model: Model) -> Model:
    """Give one channel of the values of each attention a hundred times its size, and take it back behind it."""
    state = model.state_dict()
    for name in [name for name in state if name.endswith("attention.value.weight")]:
        state[name][3] *= 100.0
        bias = name.removesuffix("weight") + "bias"
        if bias in state:
            state[bias][3] *= 100.0
        state[name.replace("value", "project")][:, 3] /= 100.0
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("variant", [variant for variant in EIGHT_BIT_VARIANTS if variant != "fp8-fp16"])
def test_an_outlier_channel_of_a_hundred_times_keeps_the_product_behind_it_out_of_int8(
    exported: ExportedGraph, cell: TrainedCell, variant: Variant
) -> None:
    """One scale for all channels leaves the others a step or two; no norm is before it that could even them out.

    Numbers of FP8 are as exact whatever their size, from 2^-6 to 448 times the scale, so such a channel spoils nothing.
    """
    noisy = export_features(loud(cell.model(0)), "submodel-0.fp32.onnx")
    assert cell.kept is not None
    images = cell.kept["images"]
    same = run_graph("x", exported.content, images)
    np.testing.assert_allclose(run_graph("x", noisy.content, images), same, atol=1e-4 * float(np.abs(same).max()))
    plain, found = (checked(graph, cell, variant)[0] for graph in (exported, noisy))
    assert_stopped(found, plain, variant)


def test_an_int8_cell_that_answers_worse_is_refused_although_its_features_pass(
    exported: ExportedGraph, cell: TrainedCell
) -> None:
    """One answer of eighteen is more than 0.3 %."""
    graph = exported.content
    cell.check("x.int8.onnx", "int8", 0, graph)
    assert cell.kept is not None
    cell.kept["labels"] = cell._answers("fp32", 0).argmax(axis=1)  # so that all answers are right
    cell.check("x.int8.onnx", "int8", 0, graph)
    cell._int8_outputs["int8", 1] = -10.0 * cell._kept_outputs[1]  # another device, wrong in INT8
    words = r"^x\.int8\.onnx: expected at most 0\.3% fewer right answers on 18 validation images, found \d+\.\d%: the"
    with pytest.raises(ParityError, match=words):
        cell.check("x.int8.onnx", "int8", 0, graph)
