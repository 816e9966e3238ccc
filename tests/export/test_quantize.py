"""Products in INT8 are what integer arithmetic makes of them, nothing else changes, and what is broken is seen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.support.properties import examples

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.gate import Reference
from devit_contract.errors import ExportError
from devit_export.graph import ExportedGraph
from devit_export.int8 import smooth as smoothing
from devit_export.int8.products import Product, Runtime
from devit_export.int8.quantize import calibrate, quantizable, quantize, write
from devit_export.int8.scales import weight_scales, weight_steps
from devit_export.parity import ParityError, measure_variant, run_graph
from devit_export.rules import Graph, check_graph

RUNTIMES: tuple[Runtime, ...] = ("ort", "tensorrt")
KINDS = ("deit", "cct")
SIDE, WIDTH, RESULTS = 4, 24, 10
OUTLIER = 100.0
Sample = Callable[[str], ExportedGraph]


@pytest.fixture(scope="module")
def images() -> UInt8Array:
    """What a sample model takes: 24 images whose colours differ."""
    rng = np.random.default_rng(5)
    tint = rng.integers(0, 256, (24, 1, 1, 3))
    return ((rng.integers(0, 256, (24, 10, 14, 3)) + 3 * tint) // 4).astype(np.uint8)


def _weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _toy(weight: Float32Array, gain: Float32Array, bias: Float32Array, operator: str = "MatMul") -> onnx.ModelProto:
    """Pixels, a norm, and one product: ``images`` uint8 ``(batch, 4, 4, 3)`` to ``features`` ``(batch, results)``."""
    product = [weight.T.copy() if operator == "GemmT" else weight, *([bias] if operator != "MatMul" else [])]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "flat"], ["row"], name="flatten"),
        helper.make_node("MatMul", ["row", "spread"], ["spread_row"], name="embed"),
        helper.make_node("LayerNormalization", ["spread_row", "gain", "shift"], ["normed"], name="norm", axis=-1),
        helper.make_node(
            operator.removesuffix("T"),
            ["normed", "p0", "p1"][: 1 + len(product)],
            ["features"],
            name="product",
            transB=1 if operator == "GemmT" else None,  # ONNX leaves out an attribute that is None
        ),
    ]
    rng = np.random.default_rng(11)
    stored: dict[str, npt.NDArray[Any]] = {
        "flat": np.array([0, SIDE * SIDE * 3], np.int64),
        "spread": rng.normal(0.0, 0.01, (SIDE * SIDE * 3, len(gain))).astype(np.float32),
        "gain": gain,
        "shift": (0.1 * gain).astype(np.float32),
    }
    stored |= {f"p{place}": value for place, value in enumerate(product)}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(bias)])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _toy_images(count: int = 32) -> UInt8Array:
    return np.random.default_rng(2).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def _random_toy(operator: str = "MatMul", *, loud: float = 1.0) -> onnx.ModelProto:
    """A toy, one channel of whose norm is louder than the others."""
    rng = np.random.default_rng(3)
    gain = np.ones(WIDTH, np.float32)
    gain[7] = loud
    weight, bias = rng.normal(0.0, 0.1, (WIDTH, RESULTS)), rng.normal(0.0, 0.5, RESULTS)
    return _toy(weight.astype(np.float32), gain, bias.astype(np.float32), operator)


def _check(quantized: onnx.ModelProto, model: onnx.ModelProto, images: UInt8Array) -> None:
    """Hold a graph against the gate of every device; its features are its answers."""
    wanted = run_graph("x", model.SerializeToString(), images)
    reference = Reference(images, wanted, wanted, lambda outputs: outputs)
    measure_variant("x", "int8", quantized.SerializeToString(), reference)


def _relative_error(model: onnx.ModelProto, quantized: onnx.ModelProto, images: UInt8Array) -> float:
    found, wanted = (run_graph("x", each.SerializeToString(), images) for each in (quantized, model))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - wanted.mean(axis=0)))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "GemmT"])
def test_a_product_is_what_integers_make_of_it(operator: str, runtime: Runtime) -> None:
    """Counted by hand from what the file stores: whole numbers in INT32, then both scales, then the bias."""
    model, images = _random_toy(operator), _toy_images()
    quantized = quantize(model, images, ("embed",), "x", runtime=runtime)
    stored = _weights(quantized)
    scale, zero = stored["normed.scale"], int(stored["normed.zero"])
    normed = onnx.ModelProto()
    normed.CopyFrom(quantized)  # the norm may be smoothed
    normed.graph.output[0].CopyFrom(helper.make_tensor_value_info("normed", TensorProto.FLOAT, ["batch", WIDTH]))
    rows = run_graph("x", normed.SerializeToString(), images)
    counted = np.clip(np.rint(rows / scale) + zero, -128, 127).astype(np.int32) - zero
    weight = stored["product.weight.int"].astype(np.int32)
    sums = counted @ (weight.T if operator == "GemmT" else weight)
    wanted = sums * (np.float64(scale) * stored["product.weight.scale"])
    if operator != "MatMul":
        wanted += (
            stored["product.bias.int"] * stored["product.bias.scale"].astype(np.float64)
            if runtime == "ort"
            else stored["p1"]
        )
    found = run_graph("x", quantized.SerializeToString(), images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert _relative_error(model, quantized, images) < 0.03


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_keeps_its_features_and_every_rule(
    sample_graph: Sample, images: UInt8Array, kind: str, runtime: Runtime
) -> None:
    graph = sample_graph(kind)
    model = onnx.load_from_string(graph.content)
    quantized = quantize(model, images, (), kind, runtime=runtime)
    check_graph(quantized, graph.expected, kind, for_tensorrt=runtime == "tensorrt")
    content = quantized.SerializeToString()
    found, wanted = (run_graph(kind, each, images) for each in (content, graph.content))
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_only_products_are_in_int8(sample_graph: Sample, images: UInt8Array, kind: str) -> None:
    """What quantize_static of ONNX Runtime does otherwise: norms, softmax and sums in INT8 too."""
    model = onnx.load_from_string(sample_graph(kind).content)
    quantized = Graph(quantize(model, images, (), kind, runtime="tensorrt"), kind)
    takers = Counter(
        taker.op_type
        for node in quantized.nodes
        if node.op_type == "DequantizeLinear"
        for taker in quantized.consumers(node.output[0])
    )
    assert set(takers) <= {"MatMul", "Gemm", "Conv"}
    assert sum(takers.values()) == 2 * len(quantizable(model, kind, runtime="tensorrt"))
    before = Counter(node.op_type for node in model.graph.node)
    after = Counter(node.op_type for node in quantized.nodes)
    assert {kind: after[kind] for kind in before} == before


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_multiplies_integers(sample_graph: Sample, images: UInt8Array, kind: str, tmp_path: Path) -> None:
    """Of its own optimised graph: each product is one of its integer kernels, and no weight is float again."""
    model = onnx.load_from_string(sample_graph(kind).content)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "x.onnx"), 3
    quantized = quantize(model, images, (), kind).SerializeToString()
    onnxruntime.InferenceSession(quantized, options, providers=["CPUExecutionProvider"])
    optimised = Graph(onnx.load(tmp_path / "x.onnx"), kind)
    counts = Counter(node.op_type for node in optimised.nodes)
    integer = counts["MatMulIntegerToFloat"] + counts["QGemm"] + counts["QLinearConv"]
    assert integer == len(quantizable(model, kind))
    sources = [optimised.producers.get(node.input[0]) for node in optimised.nodes if node.op_type == "DequantizeLinear"]
    assert all(source is not None for source in sources)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_take_a_quarter_of_the_bytes(sample_graph: Sample, images: UInt8Array, runtime: Runtime) -> None:
    model = onnx.load_from_string(sample_graph("deit").content)
    chosen = {
        product: node for node in model.graph.node if (product := node.name) in quantizable(model, "x", runtime=runtime)
    }
    before, after = _weights(model), _weights(quantize(model, images, (), "x", runtime=runtime))
    for name, node in chosen.items():
        assert after[f"{name}.weight.int"].nbytes * 4 == before[node.input[1]].nbytes
        assert node.input[1] not in after


def test_tensorrt_gets_zero_points_of_zero_and_scales_that_fp16_holds(sample_graph: Sample, images: UInt8Array) -> None:
    stored = _weights(quantize(onnx.load_from_string(sample_graph("cct").content), images, (), "x", runtime="tensorrt"))
    for name, value in stored.items():
        if name.endswith(".zero"):
            assert value.dtype == np.int8
            assert not value.any()
        if name.endswith(".scale"):
            assert (value.astype(np.float16).astype(np.float32) == value).all()


def test_weights_for_the_cpu_have_seven_bits(sample_graph: Sample, images: UInt8Array) -> None:
    """Two products of 255 and 64 fit into 16 bits, where x86 without VNNI adds them; of 255 and 65 they do not."""
    stored = _weights(quantize(onnx.load_from_string(sample_graph("cct").content), images, (), "x"))
    largest = [np.abs(value.astype(np.int32)).max() for name, value in stored.items() if name.endswith("weight.int")]
    assert max(largest) == 64
    assert 2 * 255 * max(largest) < 2**15


@examples(3)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=12, max_size=12),
    st.sampled_from([0, 1]),
    st.sampled_from(RUNTIMES),
)
def test_a_weight_moves_by_half_a_step_at_most(numbers: list[float], axis: int, runtime: Runtime) -> None:
    weight = np.array(numbers, np.float32).reshape(3, 4)
    product = Product(helper.make_node("MatMul", ["x", "w"], ["y"]), weight, axis, 1 - axis)
    scales = weight_scales(product, runtime)
    assert (scales > 0).all()
    steps = scales.astype(np.float64).reshape((-1, 1) if axis == 0 else (1, -1))
    moved = np.abs(weight_steps(product, scales, runtime) * steps - weight)
    assert (moved <= 0.5001 * steps).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_channel_has_a_scale_of_its_own_and_one_of_zeros_gives_zeros(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without smoothing, which would serve the largest channels best."""
    monkeypatch.setattr(smoothing, "_SHARES", ())
    rng = np.random.default_rng(4)
    weight = (rng.normal(0.0, 1.0, (WIDTH, RESULTS)) * np.geomspace(0.02, 2e3, RESULTS)).astype(np.float32)
    weight[:, 4] = 0.0
    bias = np.ones(RESULTS, np.float32)
    model, images = _toy(weight, np.ones(WIDTH, np.float32), bias, "Gemm"), _toy_images()
    quantized = quantize(model, images, ("embed",), "x", runtime=runtime)
    found, wanted = (run_graph("x", each.SerializeToString(), images) for each in (quantized, model))
    assert found[:, 4] == pytest.approx(1.0, abs=1e-3)
    errors = np.linalg.norm(found - wanted, axis=0) / np.linalg.norm(wanted - bias, axis=0).clip(1e-9)
    assert np.delete(errors, 4).max() < 0.05


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_loud_channel_is_smoothed_or_seen_by_the_check(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """One channel of the norm is 100 times as loud as the others, and its weights are as small."""
    model, images = _random_toy(loud=OUTLIER), _toy_images()
    weight = _weights(model)["p0"].copy()
    weight[7] /= OUTLIER
    (tensor,) = (each for each in model.graph.initializer if each.name == "p0")
    tensor.CopyFrom(numpy_helper.from_array(weight, "p0"))
    smoothed = quantize(model, images, ("embed",), "x", runtime=runtime)
    assert _relative_error(model, smoothed, images) < 0.03
    _check(smoothed, model, images)
    monkeypatch.setattr(smoothing, "_SHARES", ())
    plain = quantize(model, images, ("embed",), "x", runtime=runtime)
    assert _relative_error(model, plain, images) > 0.1
    with pytest.raises(ParityError, match="expected what was trained, found smallest cosine"):
        _check(plain, model, images)


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_changes_no_number_of_the_fp32_graph(sample_graph: Sample, images: UInt8Array, kind: str) -> None:
    model = onnx.load_from_string(sample_graph(kind).content)
    for norm in (node for node in model.graph.node if node.op_type == "LayerNormalization"):
        for tensor in (each for each in model.graph.initializer if each.name == norm.input[1]):
            gain = numpy_helper.to_array(tensor).copy()
            gain[3] *= OUTLIER
            tensor.CopyFrom(numpy_helper.from_array(gain, tensor.name))
    activations = calibrate(model, images, kind)
    smoothed, _ = smoothing.smooth(model, activations, quantizable(model, kind), kind, "ort")
    assert any(".smoothed" in tensor.name for tensor in smoothed.graph.initializer)
    found, wanted = (run_graph(kind, each.SerializeToString(), images) for each in (smoothed, model))
    np.testing.assert_array_equal(found, wanted)


def test_kept_nodes_stay_to_the_bit(sample_graph: Sample, images: UInt8Array) -> None:
    """Their nodes and weights are the same bytes; with all of them kept, the file is."""
    content = sample_graph("deit").content
    model = onnx.load_from_string(content)
    found = quantizable(model, "x")
    assert quantize(model, images, found, "x").SerializeToString(deterministic=True) == content
    keep = found[::2]
    quantized = quantize(model, images, keep, "x")
    before, after = (Graph(each, "x") for each in (model, quantized))
    by_name = {node.name: node for node in after.nodes}
    for node in before.nodes:
        if node.name in keep:
            assert by_name[node.name] == node
            assert [after.constants[name] for name in node.input if name in before.constants] == [
                before.constants[name] for name in node.input if name in before.constants
            ]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_same_bytes_come_each_time(sample_graph: Sample, images: UInt8Array, runtime: Runtime) -> None:
    model = onnx.load_from_string(sample_graph("cct").content)
    first, second = (
        quantize(model, images, (), "x", runtime=runtime).SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second


def test_constant_calibration_images_are_seen_by_the_check() -> None:
    model, images = _random_toy("Gemm"), _toy_images()
    _check(quantize(model, images, (), "x"), model, images)
    with pytest.raises(ParityError, match="expected what was trained, found smallest cosine"):
        _check(quantize(model, np.zeros_like(images), (), "x"), model, images)


def test_swapped_scales_are_seen_by_the_check() -> None:
    model, images = _random_toy("Gemm"), _toy_images()
    quantized = quantize(model, images, (), "x")
    first, second = (each for each in quantized.graph.initializer if each.name.endswith(".scale") and not each.dims)
    first.name, second.name = second.name, first.name
    with pytest.raises(ParityError, match="expected what was trained, found smallest cosine"):
        _check(quantized, model, images)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(number: float) -> None:
    """ONNX Runtime's MinMax calibrator and its ReduceMax lose a NaN."""
    model = _random_toy()
    (shift,) = (each for each in model.graph.initializer if each.name == "shift")
    values = numpy_helper.to_array(shift).copy()
    values[9] = number
    shift.CopyFrom(numpy_helper.from_array(values, "shift"))
    with pytest.raises(ExportError, match=re.escape(f"expected finite numbers in tensor normed, found {number}")):
        quantize(model, _toy_images(), (), "x.onnx")


def test_no_images_are_refused() -> None:
    with pytest.raises(ExportError, match=r"x\.onnx: expected images to find the ranges of INT8 with, found none"):
        quantize(_random_toy(), _toy_images(0), (), "x.onnx")


def test_a_kept_node_that_is_no_product_is_refused() -> None:
    model = _random_toy()
    with pytest.raises(ExportError, match="expected nodes that could be in eight bits to stay as they are, found norm"):
        write(model, calibrate(model, _toy_images(), "x"), ("norm",), "x")
