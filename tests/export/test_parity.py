"""A graph that differs from the trained model is not accepted, in whatever way it differs."""

from __future__ import annotations

import numpy as np
import pytest

from devit_contract.errors import ExportError
from devit_decompose.evaluate import run
from devit_decompose.model import Model
from devit_export.graph import ExportedGraph
from devit_export.parity import Float32Array, UInt8Array, measure, run_graph

NAME = "submodel-0.fp32.onnx"


@pytest.fixture(scope="module")
def images(submodels: tuple[Model, ...]) -> UInt8Array:
    """More than one batch, the last one not full."""
    shape = (70, *submodels[0].config.image_size)
    return np.random.default_rng(4).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def reference(submodels: tuple[Model, ...], images: UInt8Array) -> Float32Array:
    return run(submodels[0].features, images)


def test_a_right_graph_differs_by_rounding(
    exported_submodel: ExportedGraph, images: UInt8Array, reference: Float32Array
) -> None:
    difference = measure(NAME, exported_submodel.content, images, reference)
    assert 0.0 < difference.mean_abs < difference.max_abs < 1e-5


def test_batches_are_joined_in_order(exported_submodel: ExportedGraph, images: UInt8Array) -> None:
    whole = run_graph(NAME, exported_submodel.content, images)
    np.testing.assert_allclose(whole[66:], run_graph(NAME, exported_submodel.content, images[66:]), atol=1e-6)


def test_one_number_beyond_the_tolerance_is_refused_with_its_place(
    exported_submodel: ExportedGraph, images: UInt8Array, reference: Float32Array
) -> None:
    """One in a thousand numbers would vanish in a mean."""
    wrong = reference.copy()
    wrong[67, 5] += 2e-4
    with pytest.raises(ExportError, match=r"submodel-0\.fp32\.onnx: .*within 0\.0001.*0\.0002.* image 67, output 5"):
        measure(NAME, exported_submodel.content, images, wrong)


def test_not_a_number_is_refused(exported_submodel: ExportedGraph, images: UInt8Array, reference: Float32Array) -> None:
    """NaN is not larger than any tolerance, so a plain comparison would let it pass."""
    wrong = reference.copy()
    wrong[3, 2] = np.nan
    with pytest.raises(ExportError, match="nan at image 3, output 2"):
        measure(NAME, exported_submodel.content, images, wrong)


def test_another_output_shape_is_refused(
    exported_submodel: ExportedGraph, images: UInt8Array, reference: Float32Array
) -> None:
    """Numpy would stretch one column over all."""
    with pytest.raises(ExportError, match=r"expected an output of shape \(70, 1\), found \(70, 32\)"):
        measure(NAME, exported_submodel.content, images, reference[:, :1])


def test_bytes_that_are_no_graph_are_refused_in_one_line(images: UInt8Array) -> None:
    with pytest.raises(ExportError, match="expected a graph that ONNX Runtime runs") as refused:
        run_graph(NAME, b"not a graph", images)
    assert "\n" not in str(refused.value)


def test_images_of_another_size_are_refused(exported_submodel: ExportedGraph) -> None:
    with pytest.raises(ExportError, match="expected a graph that ONNX Runtime runs"):
        run_graph(NAME, exported_submodel.content, np.zeros((1, 5, 5, 3), np.uint8))
