"""A graph that TensorRT's parser of some release would refuse on the device is refused on the workstation."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from devit_contract.choices import VARIANTS
from devit_contract.errors import ExportError
from devit_export.graph import ExportedGraph
from devit_export.lint import ALL, FROM_10, lint, tables
from devit_export.variants import make_variant

TYPES = {"FP32", "FP16", "BF16", "FP8", "FP4", "INT64", "INT32", "INT8", "INT4", "UINT8", "BOOL"}


def _node(kind: str, **attributes: int) -> NodeProto:
    return helper.make_node(kind, ["x"], ["y"], name="under_test", **attributes)


def _graph(node: NodeProto, *, opset: int = 17, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, kind, ["batch", 4, 6, 2]) for name in ("x", "y")]
    nodes = [helper.make_node("Identity", ["input"], ["x"], name="first"), node]
    entry = helper.make_tensor_value_info("input", kind, ["batch", 4, 6, 2])
    return helper.make_model(
        helper.make_graph(nodes, "toy", [entry], ends[1:]), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )


def _refusal(model: onnx.ModelProto, versions: tuple[str, ...] = ALL) -> str:
    with pytest.raises(ExportError) as refused:
        lint(model, "toy.onnx", versions)
    message = str(refused.value)
    assert message.startswith("toy.onnx: ")
    assert "\n" not in message
    return message


def test_gelu_of_opset_20_is_refused_with_the_releases_that_lack_it() -> None:
    """TensorRT-RTX accepts it, so a build there says nothing about JetPack 6."""
    said = _refusal(_graph(_node("Gelu"), opset=20))
    assert "node under_test (Gelu): expected an operator" in said
    assert "found Gelu, which TensorRT 8.6, 10.0, 10.3 lacks" in said


def test_opset_18_is_refused_for_the_oldest_release_alone() -> None:
    assert "expected an opset that every supported TensorRT takes, found 18, which TensorRT 8.6 lacks" in _refusal(
        _graph(_node("Relu"), opset=18)
    )
    lint(_graph(_node("Relu"), opset=18), "toy.onnx", ALL[1:])
    assert "TensorRT 8.6, 10.0, 10.3, 10.7, 10.13, 10.15, 11.0 lacks" in _refusal(_graph(_node("Relu"), opset=25))


@pytest.mark.parametrize("kind", ["DFT", "Det", "MadeUp"])
def test_an_operator_of_no_table_is_refused_for_every_release(kind: str) -> None:
    assert f"found {kind}, which TensorRT {', '.join(ALL)} lacks" in _refusal(_graph(_node(kind)))


def test_a_bfloat16_tensor_is_refused_for_the_oldest_release_alone() -> None:
    model = _graph(_node("Softmax"), kind=TensorProto.BFLOAT16)
    assert "node first (Identity): expected a type" in _refusal(model)
    assert "found BF16 input, which TensorRT 8.6 lacks" in _refusal(model)
    lint(model, "toy.onnx", ALL[1:])


@pytest.mark.parametrize(
    ("kind", "operator", "name"),
    [
        (TensorProto.DOUBLE, "Relu", "DOUBLE"),
        (TensorProto.INT32, "Relu", "INT32"),
        (TensorProto.UINT8, "Flatten", "UINT8"),
    ],
)
def test_a_type_that_an_operator_does_not_take_is_refused(kind: int, operator: str, name: str) -> None:
    model = _graph(_node(operator), kind=kind)
    del model.graph.node[0]
    model.graph.node[0].input[0] = "input"
    assert (
        f"node under_test ({operator}): expected a type that every supported TensorRT takes, found {name}"
        in _refusal(model)
    )


@pytest.mark.parametrize(
    ("kind", "opset", "found"),
    [
        (TensorProto.INT8, 17, ""),
        (TensorProto.UINT8, 17, "UINT8 zero, which TensorRT 8.6, 10.0, 10.3, 10.7, 10.13, 10.15, 11.0 lacks"),
        (TensorProto.FLOAT8E4M3FN, 19, "FP8 zero, which TensorRT 8.6 lacks"),
    ],
)
def test_a_quantizer_makes_what_the_other_one_takes(kind: int, opset: int, found: str) -> None:
    """The tables list inputs alone; FP8 came with 10.0 and needs opset 19."""
    model = _graph(helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"], name="under_test"), opset=opset)
    model.graph.node.append(helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"], name="back"))
    model.graph.initializer.append(helper.make_tensor("step", TensorProto.FLOAT, [], [0.1]))
    model.graph.initializer.append(helper.make_tensor("zero", kind, [], [0]))
    if found:
        assert (
            f"node under_test (QuantizeLinear): expected a type that every supported TensorRT takes, found {found}"
            in _refusal(model)
        )
    lint(model, "toy.onnx", ALL[1:] if kind != TensorProto.UINT8 else ())


def test_shapes_are_int64_whatever_the_tables_say() -> None:
    """ReduceSum's axes are an input of a fixed type; 8.6 lists floats alone for it."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    model = _graph(helper.make_node("ReduceSum", ["x", "axes"], ["y"], name="sum", keepdims=1))
    model.graph.initializer.append(axes)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    lint(model, "toy.onnx")


def test_only_the_asked_releases_are_held_against() -> None:
    lint(_graph(_node("Gelu"), opset=20), "toy.onnx", ("10.7", "11.0"))


@pytest.mark.parametrize("kind", ["vit", "deit", "cct"])
def test_every_variant_of_our_models_passes_in_every_release(
    kind: str, sample_graph: Callable[[str], ExportedGraph]
) -> None:
    graph = sample_graph(kind)
    images = np.random.default_rng(1).integers(0, 256, (8, *graph.expected.image_shape), np.uint8)
    for variant in VARIANTS:
        if variant != "int8":  # which TensorRT is not offered
            model = onnx.load_from_string(make_variant(graph, variant, (), "x.onnx", images).content)
            lint(model, "x.onnx", FROM_10 if variant == "fp8-fp16" else ALL)


def test_fp8_is_what_tensorrt_8_6_lacks(sample_graph: Callable[[str], ExportedGraph]) -> None:
    graph = sample_graph("deit")
    images = np.random.default_rng(1).integers(0, 256, (8, *graph.expected.image_shape), np.uint8)
    model = onnx.load_from_string(make_variant(graph, "fp8-fp16", (), "x.onnx", images).content)
    with pytest.raises(ExportError, match=r"a type that every supported TensorRT takes, found FP8 .* 8\.6 lacks"):
        lint(model, "x.onnx")


def test_each_table_says_where_it_is_from_and_whether_it_is_that_releases_own() -> None:
    assert tuple(tables()) == ALL
    for version, table in tables().items():
        assert re.fullmatch(
            r"https://github\.com/onnx/onnx-tensorrt/blob/[0-9a-f]{40}/docs/operators\.md", table.source
        )
        assert table.is_exact == (table.headed == version and not table.note)
        assert {kind for types in table.operators.values() for kind in types.split()} <= TYPES


def test_every_operator_of_the_tables_is_one_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert {operator for table in tables().values() for operator in table.operators} <= known


def test_what_the_releases_have_told_of_themselves_stands_in_the_tables() -> None:
    assert [table.opset for table in tables().values()] == [17, 20, 20, 22, 23, 24, 24]
    assert all("LayerNormalization" in table.operators for table in tables().values())
    assert [version for version, table in tables().items() if "BF16" in table.operators["MatMul"]] == list(ALL[1:])
    assert [version for version, table in tables().items() if "Gelu" in table.operators] == list(ALL[3:])
    assert [version for version, table in tables().items() if "Attention" in table.operators] == list(ALL[5:])
