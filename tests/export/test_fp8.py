"""Products in FP8 are what its 256 numbers make of them, and the check sees what ONNX Runtime itself would hide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.support.properties import examples

from devit_contract.arrays import Float32Array, Float64Array, UInt8Array
from devit_contract.artefacts.gate import Reference, compare
from devit_contract.errors import ExportError
from devit_decompose.models.model import Model
from devit_export.graph import ExportedGraph
from devit_export.int8 import smooth as smoothing
from devit_export.int8.products import Product, Runtime
from devit_export.int8.quantize import quantizable, quantize
from devit_export.int8.scales import weight_scales, weight_steps
from devit_export.parity import run_graph
from devit_export.precision import lower_precision
from devit_export.rules import Graph, check_graph
from devit_export.variants import make_variant

Sample = Callable[[str], ExportedGraph]
LARGEST = 448.0
SIDE, WIDTH, RESULTS = 4, 24, 10
KINDS = ("vit", "deit", "cct")


def decoded(code: int) -> float:
    """E4M3 without infinities, by its bits (OCP 8-bit floating point specification, section 5)."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 0xF, code & 0x7
    if exponent == 0xF and mantissa == 0x7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1.0 + mantissa / 8.0) * 2.0 ** (exponent - 7)


NUMBERS = np.array([decoded(code) for code in range(256)])
POSITIVE = NUMBERS[:0x7F]
"""In rising order; the place of each is its code, so that an even place is an even last bit."""


def rounded(values: npt.ArrayLike) -> Float64Array:
    """Take the nearest of the numbers, the even one of two, and the largest of all that are larger."""
    wanted = np.abs(np.asarray(values, np.float64))
    above = np.searchsorted(POSITIVE, wanted).clip(1, len(POSITIVE) - 1)
    low, high = wanted - POSITIVE[above - 1], POSITIVE[above] - wanted
    places = np.where((low < high) | ((low == high) & (above % 2 == 1)), above - 1, above)
    found: Float64Array = np.copysign(POSITIVE[places], values)
    return np.where(np.isnan(values), np.nan, found)


def stored(model: onnx.ModelProto, name: str) -> Float64Array:
    """Read a tensor by the bytes in the file."""
    (tensor,) = (each for each in model.graph.initializer if each.name == name)
    if tensor.data_type == TensorProto.FLOAT8E4M3FN:
        codes: UInt8Array = np.frombuffer(tensor.raw_data, np.uint8).reshape(tensor.dims)
        return NUMBERS[codes]
    return numpy_helper.to_array(tensor).astype(np.float64)


def toy(operator: str, *, loud: float = 1.0, relu: bool = False) -> onnx.ModelProto:
    """Pixels, a norm, perhaps a ReLU, and one product: ``images`` ``(batch, 4, 4, 3)`` to ``(batch, results)``."""
    rng = np.random.default_rng(3)
    weight = rng.normal(0.0, 0.1, (WIDTH, RESULTS)).astype(np.float32)
    weight[:, 4] = 0.0
    taken = "active" if relu else "normed"
    inputs = [taken, "weight", *(["bias"] if operator != "MatMul" else [])]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "flat"], ["row"], name="flatten"),
        helper.make_node("MatMul", ["row", "spread"], ["spread_row"], name="embed"),
        helper.make_node("LayerNormalization", ["spread_row", "gain", "shift"], ["normed"], name="norm", axis=-1),
        *([helper.make_node("Relu", ["normed"], ["active"], name="relu")] if relu else []),
        helper.make_node(operator.removesuffix("T"), inputs, ["features"], name="product"),
    ]
    if operator == "GemmT":
        nodes[-1].attribute.append(helper.make_attribute("transB", 1))
    values: dict[str, npt.NDArray[np.generic]] = {
        "flat": np.array([0, SIDE * SIDE * 3], np.int64),
        "spread": rng.normal(0.0, 0.01, (SIDE * SIDE * 3, WIDTH)).astype(np.float32),
        "gain": np.full(WIDTH, loud, np.float32),
        "shift": np.full(WIDTH, 0.1, np.float32),
        "weight": weight.T.copy() if operator == "GemmT" else weight,
        "bias": rng.normal(0.0, 0.5, RESULTS).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", RESULTS])],
        [numpy_helper.from_array(value, name) for name, value in values.items() if name != "bias" or "bias" in inputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def toy_images(count: int = 32) -> UInt8Array:
    return np.random.default_rng(2).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def in_fp8(model: onnx.ModelProto, images: UInt8Array) -> onnx.ModelProto:
    return quantize(model, images, ("embed",), "x", runtime="tensorrt-fp8")


def run(model: onnx.ModelProto, images: UInt8Array) -> Float32Array:
    return run_graph("x", model.SerializeToString(), images)


def rows_of(model: onnx.ModelProto, images: UInt8Array, tensor: str = "normed") -> Float64Array:
    """What a tensor holds, ``(n, width)``: the norm may be smoothed."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    cut.graph.output[0].CopyFrom(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", WIDTH]))
    return run(cut, images).astype(np.float64)


def by_hand(model: onnx.ModelProto, rows: Float64Array, taken: str = "normed", *, transposed: bool = False) -> object:
    """Multiply what the file stores, without its bias."""
    scale, weight = stored(model, f"{taken}.scale"), stored(model, "product.weight.fp8")
    kept = rounded((rows / scale).astype(np.float32)) * scale
    return kept @ (weight.T if transposed else weight) * stored(model, "product.weight.scale")


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "GemmT"])
def test_a_product_is_what_the_numbers_of_fp8_make_of_it(operator: str) -> None:
    images = toy_images()
    model = in_fp8(toy(operator), images)
    wanted = np.asarray(by_hand(model, rows_of(model, images), transposed=operator == "GemmT"))
    if operator != "MatMul":
        wanted = wanted + stored(model, "bias")
    found = run(model, images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    plain = run(toy(operator), images)
    assert 0.01 < np.linalg.norm(found - plain) / np.linalg.norm(plain) < 0.05
    assert (found[:, 4] == (0.0 if operator == "MatMul" else stored(model, "bias")[4].astype(np.float32))).all()


def test_a_number_beyond_the_calibrated_range_becomes_the_largest_one_and_no_nan() -> None:
    """Calibrated by rows of a tenth of the size."""
    images = toy_images()
    model = in_fp8(toy("MatMul"), images)
    (gain,) = (each for each in model.graph.initializer if each.name.startswith(("gain", "norm.smoothed1")))
    gain.CopyFrom(numpy_helper.from_array(10.0 * numpy_helper.to_array(gain), gain.name))
    rows = rows_of(model, images)
    assert np.abs(rows / stored(model, "normed.scale")).max() > 1.2 * LARGEST
    wanted = np.asarray(by_hand(model, rows))
    np.testing.assert_allclose(run(model, images), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_channel_a_hundred_times_as_loud_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of INT8 it leaves the others a step; no smoothing hides that here."""
    monkeypatch.setattr(smoothing, "_SHARES", ())
    images, model = toy_images(), toy("MatMul")
    for name, factor in (("gain", 100.0), ("shift", 100.0), ("weight", 0.01)):
        (tensor,) = (each for each in model.graph.initializer if each.name == name)
        loud = numpy_helper.to_array(tensor).copy()
        loud[7] *= np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(loud, name))
    plain = run(model, images)
    runtimes: tuple[Runtime, ...] = ("tensorrt-fp8", "tensorrt")
    fp8, int8 = (
        float(np.linalg.norm(run(quantize(model, images, ("embed",), "x", runtime=each), images) - plain))
        for each in runtimes
    )
    assert fp8 < 0.06 * np.linalg.norm(plain) < 0.1 * np.linalg.norm(plain) < int8


def test_a_nan_stays_one_and_is_refused_by_the_gate() -> None:
    images = toy_images()
    wanted = run(toy("MatMul"), images)
    model = in_fp8(toy("MatMul"), images)
    (gain,) = (each for each in model.graph.initializer if each.name.startswith(("gain", "norm.smoothed1")))
    broken = numpy_helper.to_array(gain).copy()
    broken[5] = np.nan
    gain.CopyFrom(numpy_helper.from_array(broken, gain.name))
    found = run(model, images)
    assert np.isnan(found).all()
    reference = Reference(images, wanted, wanted, lambda outputs: outputs)
    assert compare(found, reference).failures("fp8-fp16") == ["320 output numbers are NaN or infinite, expected none"]


@examples(3)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=12, max_size=12), st.sampled_from([0, 1]))
def test_a_weight_is_the_nearest_number_times_its_scale(numbers: list[float], axis: int) -> None:
    weight = np.array(numbers, np.float32).reshape(3, 4)
    product = Product(helper.make_node("MatMul", ["x", "w"], ["y"]), weight, axis, 1 - axis)
    scales = weight_scales(product, "tensorrt-fp8")
    assert (scales > 0).all()
    steps = weight / scales.reshape((-1, 1) if axis == 0 else (1, -1))
    found = weight_steps(product, scales, "tensorrt-fp8")
    assert found.dtype.name == "float8_e4m3fn"
    np.testing.assert_array_equal(found.astype(np.float64), rounded(steps))


def test_every_border_between_two_numbers_is_rounded_as_the_standard_says() -> None:
    """Halfway and one step of float32 beside it; 464, halfway to what would be 480, is NaN by numpy's cast alone."""
    middles = ((POSITIVE[:-1] + POSITIVE[1:]) / 2.0).astype(np.float32)
    tried = np.concatenate(
        [
            NUMBERS[~np.isnan(NUMBERS)].astype(np.float32),
            middles,
            np.nextafter(middles, np.float32(0)),
            np.nextafter(middles, np.float32(np.inf)),
            np.array([449.0, 463.9, 464.0, 465.0, 1e30, np.inf], np.float32),
        ]
    )
    tried = np.concatenate([tried, -tried])[None]
    product = Product(helper.make_node("MatMul", ["x", "w"], ["y"]), tried, 0, 1)
    found = weight_steps(product, np.ones(1, np.float32), "tensorrt-fp8")
    np.testing.assert_array_equal(found.astype(np.float64), rounded(tried))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_keeps_its_features_and_every_rule(kind: str, sample_graph: Sample) -> None:
    exported = sample_graph(kind)
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (24, *exported.expected.image_shape), np.uint8)
    made = make_variant(exported, "fp8-fp16", (), kind, images)
    model = onnx.load_from_string(made.content)
    graph = Graph(model, kind)
    assert (graph.opset, model.ir_version, made.kept_products) == (19, 9, ())
    found, wanted = (run_graph(kind, each, images) for each in (made.content, exported.content))
    assert np.linalg.norm(found - wanted) < 0.08 * np.linalg.norm(wanted)
    plain = onnx.load_from_string(exported.content)
    names = [node.name for node in graph.nodes if node.op_type not in ("Cast", "QuantizeLinear", "DequantizeLinear")]
    assert names == [node.name for node in plain.graph.node if node.name in set(names)]
    quantizers = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    types = {graph.types[tensor] for node in quantizers for tensor in (*node.input, *node.output)}
    assert types <= {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT16, TensorProto.FLOAT}
    products = quantizable(plain, kind, runtime="tensorrt-fp8")
    assert sum(
        tensor.data_type == TensorProto.FLOAT8E4M3FN and len(tensor.dims) > 1 for tensor in model.graph.initializer
    ) == len(products)
    with pytest.raises(ExportError, match=r"expected opset 17 alone, found ai\.onnx 19"):
        check_graph(model, exported.expected, kind)


def test_fp16_around_fp8_needs_no_cast(sample_graph: Sample) -> None:
    """From opset 19 on, quantizers take FP16; each Cast that INT8 needs there is one more for a kernel to hide."""
    exported = sample_graph("deit")
    images = np.random.default_rng(5).integers(0, 256, (8, *exported.expected.image_shape), np.uint8)
    fp8, int8, fp16 = (
        make_variant(exported, variant, (), "x", images).casts for variant in ("fp8-fp16", "int8-fp16", "fp16")
    )
    assert fp8 <= fp16 + 1 < int8


def plainly(model: onnx.ModelProto, images: UInt8Array) -> Float32Array:
    """Run a graph as it stands, no node of it changed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Float32Array = session.run(None, {"images": images})[0]
    return found


def test_a_relu_before_fp8_stays_in_the_check() -> None:
    """ONNX Runtime 1.32 drops it."""
    images = toy_images()
    model = in_fp8(toy("MatMul", relu=True), images)
    rows = rows_of(model, images, "active")
    assert rows.min() == 0.0
    np.testing.assert_allclose(run(model, images), np.asarray(by_hand(model, rows, "active")), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(run(model, images), plainly(model, images))


def test_a_bias_in_fp16_beside_fp8_stays_in_the_check(
    sample_model: Callable[[str], Model], sample_graph: Sample
) -> None:
    """ONNX Runtime 1.32 divides it by the product of both scales in FP16, which is beyond 65504 there."""
    exported = sample_graph("cct")
    images = np.random.default_rng(5).integers(0, 256, (8, *exported.expected.image_shape), np.uint8)
    model = quantize(onnx.load_from_string(exported.content), images, (), "cct", runtime="tensorrt-fp8")
    model = lower_precision(model, (), "cct")
    found, wanted = run(model, images), plainly(model, images)
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
