"""Each variant keeps in FP32 what it says, and its graph is held against all rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.gate import Reference, compare
from devit_contract.choices import Variant
from devit_contract.errors import ExportError
from devit_decompose.models.inference import run
from devit_decompose.models.model import Model
from devit_export.graph import ExportedGraph
from devit_export.int8.products import Runtime
from devit_export.int8.quantize import quantizable
from devit_export.parity import ParityError, measure_variant, run_graph
from devit_export.rules import Expected, Graph
from devit_export.variants import kept_nodes, make_variant

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module", params=["vit", "deit", "cct", "pruned"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, sample_model: Callable[[str], Model]) -> Model:
    return sample_model(kind)


@pytest.fixture(scope="module")
def exported(kind: str, sample_graph: Callable[[str], ExportedGraph]) -> ExportedGraph:
    return sample_graph(kind)


def _graph(exported: ExportedGraph, variant: str, overflows: tuple[str, ...] = ()) -> Graph:
    return Graph(
        onnx.load_from_string(make_variant(exported, variant, overflows, f"x.{variant}.onnx").content), variant
    )


def _type_of(graph: Graph, node: onnx.NodeProto) -> int:
    return graph.types[node.output[0]]


def test_fp16_keeps_the_norms_in_fp32_and_nothing_else_that_computes(exported: ExportedGraph) -> None:
    graph = _graph(exported, "fp16")
    moving = {"Cast", "Reshape"}  # the last norm's output may be reshaped on its way out
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            assert {graph.types[tensor] for tensor in (*node.input, *node.output)} == {FULL}
        elif node.op_type not in moving:
            assert _type_of(graph, node) == HALF, node.name


def test_fp16_has_no_cast_inside_an_attention(exported: ExportedGraph) -> None:
    """It would keep TensorRT from fusing the two products and the softmax."""
    graph = _graph(exported, "fp16")
    for attention in graph.attentions():
        assert graph.consumers(attention.product.output[0]) == [attention.softmax]
        assert graph.consumers(attention.softmax.output[0]) == list(attention.mixers)


def test_fp16_attn32_keeps_scaling_products_and_softmax_in_fp32_too(exported: ExportedGraph, model: Model) -> None:
    graph = _graph(exported, "fp16-attn32")
    attentions = list(graph.attentions())
    assert len(attentions) == len(model.config.heads)
    for attention in attentions:
        assert attention.query is not None
        assert attention.query.op_type == "Mul"
        assert len(attention.mixers) == 1
        for node in (attention.query, attention.product, attention.softmax, *attention.mixers):
            assert {graph.types[tensor] for tensor in (*node.input, *node.output)} == {FULL}
    assert all(_type_of(graph, node) == HALF for node in graph.nodes if node.op_type in ("Gemm", "Conv", "Erf"))


def test_the_nodes_named_are_those_that_are_in_fp32(exported: ExportedGraph) -> None:
    for variant in ("fp16", "fp16-attn32"):
        made = make_variant(exported, variant, (), "x.onnx")
        graph = Graph(onnx.load_from_string(made.content), "x.onnx")
        in_full = {node.name for node in graph.nodes if node.op_type != "Cast" and _type_of(graph, node) == FULL}
        assert set(made.fp32_nodes) == in_full


def test_fp32_is_the_exported_graph(exported: ExportedGraph) -> None:
    made = make_variant(exported, "fp32", (), "x.fp32.onnx")
    assert made.content == exported.content
    assert (made.fp32_nodes, made.casts) == ((), 1)


def test_what_makes_or_takes_a_tensor_that_may_overflow_stays_in_fp32(exported: ExportedGraph) -> None:
    plain = Graph(onnx.load_from_string(exported.content), "x.fp32.onnx")
    softmax = next(node for node in plain.nodes if node.op_type == "Softmax")
    tensor = softmax.input[0]
    kept = set(kept_nodes(plain, "fp16", (tensor,)))
    norms = {node.name for node in plain.nodes if node.op_type == "LayerNormalization"}
    assert kept - norms == {plain.producers[tensor].name, softmax.name}
    graph = _graph(exported, "fp16", (tensor,))
    assert graph.types[tensor] == FULL  # and nowhere in FP16
    assert f"{tensor}.fp16" not in graph.types


def test_every_variant_answers_as_torch_does(exported: ExportedGraph, model: Model) -> None:
    images = np.random.default_rng(5).integers(0, 256, (30, *model.config.image_size), np.uint8)
    reference = run(model.features, images)
    for variant in ("fp16", "fp16-attn32"):
        content = make_variant(exported, variant, (), "x").content
        expected = Reference(images, reference, reference, lambda outputs: outputs)
        difference = measure_variant(f"x.{variant}.onnx", variant, content, expected)
        assert 0.0 < difference.mean_abs < 0.01 * np.abs(reference).mean()


def test_a_variant_is_the_same_bytes_twice(exported: ExportedGraph) -> None:
    assert make_variant(exported, "fp16", (), "x").content == make_variant(exported, "fp16", (), "x").content


def test_a_variant_that_breaks_a_rule_is_refused_under_its_own_name(exported: ExportedGraph) -> None:
    expected: Expected = replace(exported.expected, norms=exported.expected.norms + 1)
    with pytest.raises(ExportError, match=r"^x\.fp16\.onnx: expected \d+ LayerNormalization nodes"):
        make_variant(replace(exported, expected=expected), "fp16", (), "x.fp16.onnx")


def test_weights_take_half_the_space(exported: ExportedGraph) -> None:
    """But those of the norms."""
    sizes = []
    for variant in ("fp16", "fp32"):
        model = onnx.load_from_string(make_variant(exported, variant, (), "x").content)
        arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
        sizes.append(sum(array.nbytes for array in arrays if array.dtype != np.int64))
    assert sizes[0] < 0.56 * sizes[1]


def calibration_images(model: Model, count: int = 24) -> UInt8Array:
    return np.random.default_rng(6).integers(0, 256, (count, *model.config.image_size), np.uint8)


@pytest.mark.parametrize("variant", ["int8-fp16", "int8"])
def test_a_product_in_int8_takes_and_gives_what_the_rest_is_in(
    exported: ExportedGraph, model: Model, variant: Variant
) -> None:
    """TensorRT 8.6 to 11 take quantizers of float32 in opset 17; Casts around them vanish in its kernels."""
    made = make_variant(exported, variant, (), "x.onnx", calibration_images(model))
    graph = Graph(onnx.load_from_string(made.content), "x.onnx")
    rest = HALF if variant == "int8-fp16" else FULL
    products = [node for node in graph.nodes if is_quantized(graph, node)]
    runtime: Runtime = "tensorrt" if variant == "int8-fp16" else "ort"
    wanted = quantizable(onnx.load_from_string(exported.content), "x", runtime=runtime)
    assert [node.name for node in products] == list(wanted)
    assert {_type_of(graph, node) for node in products} == {rest}
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            assert graph.types[node.input[0]] == FULL
        elif node.op_type in ("Softmax", "Erf"):
            assert _type_of(graph, node) == rest
        elif node.op_type == "LayerNormalization":
            assert _type_of(graph, node) == FULL


def is_quantized(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    source = graph.producers.get(graph.uncast(node.input[1]))
    return source is not None and source.op_type == "DequantizeLinear"


def test_a_number_that_fp16_cannot_hold_stays_in_fp32_behind_int8_too(exported: ExportedGraph, model: Model) -> None:
    """What comes out of a DequantizeLinear is as large as what went in."""
    images = calibration_images(model)
    plain = Graph(onnx.load_from_string(make_variant(exported, "int8-fp16", (), "x", images).content), "x")
    product = [node for node in plain.nodes if is_quantized(plain, node)][-1]
    tensor = plain.origin(product.input[0]).removesuffix(".fp16")
    made = make_variant(exported, "int8-fp16", (tensor,), "x", images)
    graph = Graph(onnx.load_from_string(made.content), "x")
    (same,) = [node for node in graph.nodes if node.name == product.name]
    assert {graph.types[each] for each in (same.input[0], same.output[0])} == {FULL}
    assert product.name in made.fp32_nodes


SPOILED: dict[str, Callable[[UInt8Array], UInt8Array]] = {
    "constant images": lambda images: np.full_like(images, 128),
    "one dark image": lambda images: np.zeros_like(images[:1]),
}


@pytest.mark.parametrize("kind", ["vit", "cct"], indirect=True)
@pytest.mark.parametrize("how", SPOILED)
def test_a_calibration_that_saw_nothing_is_stopped_with_its_reason(
    exported: ExportedGraph, model: Model, how: str
) -> None:
    images = calibration_images(model)
    reference = run(model.features, images)
    expected = Reference(images, reference, reference, lambda outputs: outputs)
    tried: list[str] = []

    def accept(content: bytes) -> bool:
        found = compare(run_graph("x", content, images), expected).failures("int8")
        tried.append("; ".join(found))
        return not found

    with pytest.raises(ParityError, match=r"^x: expected a graph that passes with at least 25% of its products"):
        make_variant(exported, "int8", (), "x", SPOILED[how](images), accept)
    assert "smallest cosine" in tried[0]
