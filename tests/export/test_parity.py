"""A graph that differs from the trained model is not accepted, in whatever way it differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.gate import Reference
from devit_contract.errors import ExportError
from devit_decompose.models.inference import run
from devit_decompose.models.model import Model
from devit_export.graph import ExportedGraph
from devit_export.parity import ParityError, check_same, measure, measure_variant, run_graph

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
    wrong[67, 5] += 2e-4 * np.abs(reference).max()
    with pytest.raises(
        ParityError, match=r"submodel-0\.fp32\.onnx: .* 0\.01% of the largest.* image 67, output 5: export"
    ):
        measure(NAME, exported_submodel.content, images, wrong)


@pytest.mark.parametrize("size", [1e-6, 1e3, 1e6])
def test_features_of_any_size_are_judged_alike(size: float) -> None:
    """A norm with larger weights makes the same model, and rounds as much more."""
    reference = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    step = np.float32(np.abs(reference).max())
    check_same(NAME, reference * size + 0.9e-4 * step * size, reference * size, "the numbers")
    with pytest.raises(ParityError):
        check_same(NAME, reference * size + 1.1e-4 * step * size, reference * size, "the numbers")


def test_numbers_that_are_all_zero_have_to_be_met(
    exported_submodel: ExportedGraph, images: UInt8Array, reference: Float32Array
) -> None:
    nothing = np.zeros_like(reference)
    assert check_same(NAME, nothing, nothing, "zeros").max_abs == 0.0
    with pytest.raises(ParityError):
        measure(NAME, exported_submodel.content, images, nothing)


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


HALF_NAME = "submodel-0.fp16.onnx"


def reference_of(images: UInt8Array, outputs: Float32Array) -> Reference:
    """Compare outputs alone: the first two of them are the logits."""
    return Reference(images, outputs, outputs[:, :2], lambda found: found[:, :2])


def test_a_right_half_graph_is_measured(
    exported_submodel: ExportedGraph, images: UInt8Array, reference: Float32Array
) -> None:
    """By the errors' own figures; an FP32 graph will do."""
    difference = measure_variant(HALF_NAME, "fp16", exported_submodel.content, reference_of(images, reference))
    assert difference == measure(NAME, exported_submodel.content, images, reference)


def test_one_image_that_points_elsewhere_in_lower_precision_is_refused(
    exported_submodel: ExportedGraph, images: UInt8Array, reference: Float32Array
) -> None:
    """Another image's features are as large, and point almost the same way until the mean is removed."""
    wrong = reference.copy()
    wrong[[31, 57]] = wrong[[57, 31]]
    words = r"submodel-0\.fp16\.onnx: expected what was trained, found smallest cosine .*: the variant is left out"
    for variant in ("fp16", "int8"):
        with pytest.raises(ParityError, match=words):
            measure_variant(HALF_NAME, variant, exported_submodel.content, reference_of(images, wrong))


def test_int8_may_differ_by_its_rounding_and_fp16_may_not(
    exported_submodel: ExportedGraph, images: UInt8Array, reference: Float32Array
) -> None:
    noise = np.random.default_rng(1).normal(0.0, 0.05 * (reference - reference.mean(axis=0)).std(), reference.shape)
    noise[:, :2] = 0.0  # the logits
    rounded = reference_of(images, (reference + noise).astype(np.float32))
    assert measure_variant("x.int8.onnx", "int8", exported_submodel.content, rounded).max_abs > 0.0
    with pytest.raises(ParityError, match=r"median cosine .*, expected at least 0\.999"):
        measure_variant(HALF_NAME, "fp16", exported_submodel.content, rounded)


def _reciprocal() -> bytes:
    """One over each pixel's value: infinite where it is black."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reciprocal", ["pixels"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 2])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 2])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def test_an_output_that_is_not_finite_in_half_precision_is_refused() -> None:
    pixels = np.array([[1, 2], [2, 1], [3, 0], [0, 0]], np.uint8)
    with pytest.raises(ParityError, match=r"submodel-0\.fp16\.onnx: .* found 3 output numbers are NaN or infinite"):
        measure_variant(HALF_NAME, "fp16", _reciprocal(), reference_of(pixels, np.ones((4, 2), np.float32)))


CPUSET = Path("/sys/fs/cgroup/cpuset")
RUN_IN = """
import os, sys
from pathlib import Path
Path(sys.argv[1], "tasks").write_text(str(os.getpid()))
import numpy as np
from devit_export.parity import run_graph
run_graph("x.onnx", Path(sys.argv[2]).read_bytes(), np.zeros((1, 2), np.uint8) + 1)
"""


@pytest.mark.system
@pytest.mark.skipif(not (CPUSET / "tasks").exists(), reason="no cpuset of cgroup v1 on this machine")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core leaves none out")
def test_a_process_that_may_use_one_core_hears_nothing_of_the_others(tmp_path: Path) -> None:
    """As ``docker run --cpuset-cpus 0``: ONNX Runtime would complain once for every core that it cannot have."""
    place = CPUSET / f"devit-{os.getpid()}"
    place.mkdir()
    try:
        (place / "cpuset.cpus").write_text(str(min(os.sched_getaffinity(0))))
        (place / "cpuset.mems").write_text((CPUSET / "cpuset.mems").read_text())
        (tmp_path / "x.onnx").write_bytes(_reciprocal())
        done = subprocess.run(
            [sys.executable, "-c", RUN_IN, place, tmp_path / "x.onnx"], capture_output=True, text=True, timeout=60
        )
    finally:
        place.rmdir()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
