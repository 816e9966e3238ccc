"""Each rule lets a small right graph pass and refuses the same graph with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from devit_contract.errors import ExportError
from devit_export import rules
from devit_export.rules import Expected, Graph, check_graph

EXPECTED = Expected(image_shape=(2, 2, 3), output_name="features", output_dim=12, norms=1, attentions=1)
Nodes = dict[str, NodeProto]


def _node(name: str, kind: str, inputs: str, **attributes: Any) -> NodeProto:  # noqa: ANN401 - as onnx.helper takes them
    """A node whose only output has its own name."""
    return helper.make_node(kind, inputs.split(), [name], name=name, **attributes)


def _right_nodes() -> Nodes:
    """One attention over the four pixels of an image: (B, 2, 2, 3) uint8 to (B, 12)."""
    nodes = [
        _node("pixels", "Cast", "images", to=TensorProto.FLOAT),
        _node("tokens", "Reshape", "pixels to_tokens"),  # (B, 4, 3)
        _node("normed", "LayerNormalization", "tokens ones zeros"),
        _node("query", "MatMul", "normed weight"),
        _node("key", "MatMul", "normed weight"),
        _node("value", "MatMul", "normed weight"),
        _node("scaled", "Mul", "query half"),
        _node("turned", "Transpose", "key", perm=[0, 2, 1]),
        _node("scores", "MatMul", "scaled turned"),  # (B, 4, 4)
        _node("shares", "Softmax", "scores", axis=-1),
        _node("mixed", "MatMul", "shares value"),  # (B, 4, 3)
        _node("features", "Reshape", "mixed to_features"),
    ]
    return {node.name: node for node in nodes}


def _model(nodes: Nodes, *, opset: int = 17, batch: str | int = "batch") -> onnx.ModelProto:
    constants: dict[str, npt.NDArray[Any]] = {
        "to_tokens": np.array([0, 4, 3], np.int64),
        "to_features": np.array([0, 12], np.int64),
        "to_five": np.array([0, 2, 2, 3, 1], np.int64),
        "ones": np.ones(3, np.float32),
        "zeros": np.zeros(3, np.float32),
        "half": np.array(0.5, np.float32),
        "two": np.array(2.0, np.float32),
        "weight": np.eye(3, dtype=np.float32),
        "step": np.array(0.1, np.float32),
        "steps": np.full(3, 0.1, np.float32),
        "naught": np.array(0, np.int8),
        "naughts": np.zeros(3, np.int8),
        "one": np.array(1, np.int8),
    }
    graph = helper.make_graph(
        list(nodes.values()),
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 2, 2, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, 12])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    domains = sorted({node.domain for node in nodes.values()} - {""})
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _inserted(nodes: Nodes, before: str, position: int, new: NodeProto) -> Nodes:
    """Put a node in front of input ``position`` of the node ``before``."""
    nodes[before].input[position] = new.name
    ordered: Nodes = {}
    for name, node in nodes.items():
        if name == before:
            ordered[new.name] = new
        ordered[name] = node
    return ordered


def _refusal(model: onnx.ModelProto, expected: Expected = EXPECTED) -> str:
    with pytest.raises(ExportError) as refused:
        check_graph(model, expected, "toy.onnx")
    message = str(refused.value)
    assert message.startswith("toy.onnx: ")
    assert "\n" not in message
    return message


def test_the_right_graph_passes_every_rule() -> None:
    """Otherwise the refusals below could have another cause than the one they name."""
    check_graph(_model(_right_nodes()), EXPECTED, "toy.onnx")


def test_another_opset_is_refused() -> None:
    assert "expected opset 17 alone, found ai.onnx 18" in _refusal(_model(_right_nodes(), opset=18))


def test_an_operator_of_a_foreign_domain_is_refused() -> None:
    """ONNX Runtime's contrib operators are unknown to TensorRT's parser."""
    nodes = _right_nodes()
    nodes["shares"].domain = "com.microsoft"
    assert "com.microsoft" in _refusal(_model(nodes))


def test_a_function_of_the_models_own_is_refused() -> None:
    model = _model(_right_nodes())
    model.functions.append(
        helper.make_function("own", "Twice", ["x"], ["y"], [_node("y", "Add", "x x")], [helper.make_opsetid("", 17)])
    )
    assert "1 functions" in _refusal(model)


def test_a_branch_inside_the_graph_is_refused() -> None:
    branch = helper.make_graph([], "branch", [], [])
    nodes = _right_nodes()
    nodes["shares"].attribute.append(helper.make_attribute("then_branch", branch))
    assert "node shares (Softmax): expected no branch or loop" in _refusal(_model(nodes))


def test_types_that_do_not_fit_are_refused_by_the_full_check() -> None:
    nodes = _right_nodes()
    nodes["scaled"].input[1] = "to_tokens"
    assert "onnx.checker" in _refusal(_model(nodes))


def test_a_fused_attention_operator_is_refused() -> None:
    """Opset 17 has none; it would come with opset 23."""
    nodes = _right_nodes()
    nodes["mixed"] = _node("mixed", "Attention", "query key value")
    assert "onnx.checker" in _refusal(_model(nodes))


def test_a_fixed_batch_is_refused() -> None:
    assert "free batch, found UINT8 (1, 2, 2, 3)" in _refusal(_model(_right_nodes(), batch=1))


def test_a_batch_that_has_another_name_at_the_output_is_refused() -> None:
    model = _model(_right_nodes())
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    assert "found batch and rows" in _refusal(model)


def test_another_image_shape_is_refused() -> None:
    model = _model(_right_nodes())
    channels_first = Expected((3, 2, 2), "features", 12, norms=1, attentions=1)
    assert "expected images as UINT8 (batch, 3, 2, 2)" in _refusal(model, channels_first)


def test_a_second_output_is_refused() -> None:
    model = _model(_right_nodes())
    model.graph.output.append(helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["batch", 4, 4]))
    assert "found features, shares" in _refusal(model)


def test_a_transpose_of_the_uint8_input_is_refused() -> None:
    """TensorRT builds no uint8 layers: the Cast has to come first."""
    nodes = _right_nodes()
    nodes = _inserted(nodes, "pixels", 0, _node("early", "Transpose", "images", perm=[0, 2, 1, 3]))
    assert "node early (Transpose): expected a Cast to FLOAT" in _refusal(_model(nodes))


def test_a_cast_of_the_input_to_another_type_is_refused() -> None:
    nodes = _right_nodes()
    nodes["pixels"] = _node("wide", "Cast", "images", to=TensorProto.DOUBLE)
    nodes = _inserted({"wide": nodes.pop("pixels"), **nodes}, "tokens", 0, _node("pixels", "Cast", "wide", to=1))
    assert (
        "node wide (Cast): expected a Cast to FLOAT or FLOAT16 as consumer of images, found Cast to DOUBLE"
        in _refusal(_model(nodes))
    )


def _half(nodes: Nodes) -> onnx.ModelProto:
    """The graph in FP16, but its norm; Casts before and behind that, and at the output."""
    nodes["pixels"].attribute[0].i = TensorProto.FLOAT16
    nodes = _inserted(nodes, "normed", 0, _node("widened", "Cast", "tokens", to=TensorProto.FLOAT))
    nodes = _inserted(nodes, "query", 0, _node("narrowed", "Cast", "normed", to=TensorProto.FLOAT16))
    for name in ("key", "value"):
        nodes[name].input[0] = "narrowed"
    nodes["features"].output[0] = "features_in_half"
    nodes["wide_features"] = helper.make_node("Cast", ["features_in_half"], ["features"], name="wide_features", to=1)
    model = _model(nodes)
    _lower(model, "half", "weight")
    return model


def _lower(model: onnx.ModelProto, *weights: str) -> None:
    for weight in model.graph.initializer:
        if weight.name in weights:
            lowered = numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(lowered, weight.name))


def test_the_right_graph_in_half_precision_passes_every_rule() -> None:
    check_graph(_half(_right_nodes()), EXPECTED, "toy.onnx")


def test_a_norm_in_half_precision_is_refused() -> None:
    """Its attribute stash_type says float32 all along, by default."""
    model = _half(_right_nodes())
    next(node for node in model.graph.node if node.name == "normed").input[0] = "tokens"
    _lower(model, "ones", "zeros")
    with pytest.raises(ExportError, match=r"node normed \(.*\): expected a norm in FLOAT, found FLOAT16"):
        rules.check_norm_types(Graph(model, "toy.onnx"))


def _cast_between(nodes: Nodes, before: str, position: int) -> Nodes:
    """Another type between two nodes of an attention."""
    source = nodes[before].input[position]
    nodes = _inserted(nodes, before, position, _node("there", "Cast", source, to=TensorProto.FLOAT16))
    return _inserted(nodes, before, position, _node("back", "Cast", "there", to=TensorProto.FLOAT))


@pytest.mark.parametrize(
    ("before", "position"), [("scaled", 0), ("scores", 0), ("turned", 0), ("shares", 0), ("mixed", 0), ("mixed", 1)]
)
def test_attention_is_seen_through_casts(before: str, position: int) -> None:
    check_graph(_model(_cast_between(_right_nodes(), before, position)), EXPECTED, "toy.onnx")


def test_a_scale_on_the_key_is_seen_through_casts() -> None:
    nodes = _cast_between(_with_scaled_key(_right_nodes()), "turned", 0)
    assert "expected a key without scale, found Mul also on it" in _refusal(_model(nodes))


def test_a_type_that_the_operator_does_not_mix_is_refused() -> None:
    """What one forgotten Cast looks like."""
    model = _half(_right_nodes())
    for node in model.graph.node:
        if node.name == "value":
            node.input[0] = "normed"
    assert "onnx.checker" in _refusal(model)


def test_an_operator_that_no_tensorrt_has_is_refused_by_the_lint() -> None:
    nodes = _inserted(_right_nodes(), "query", 0, _node("folded", "Hardmax", "normed"))
    assert "node folded (Hardmax): expected an operator that every supported TensorRT takes" in _refusal(_model(nodes))


def test_a_second_uint8_tensor_is_refused() -> None:
    nodes = _right_nodes()
    nodes["back"] = _node("back", "Cast", "mixed", to=TensorProto.UINT8)
    assert "node back (Cast): expected no uint8 tensor but images" in _refusal(_model(nodes))


def test_a_uint8_weight_is_refused() -> None:
    model = _model(_right_nodes())
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.uint8), "table"))
    assert "found table" in _refusal(model)


def test_a_tensor_of_five_dimensions_is_refused() -> None:
    nodes = _right_nodes()
    nodes = _inserted(nodes, "tokens", 0, _node("deep", "Reshape", "pixels to_five"))
    assert "node deep (Reshape): expected at most 4 dimensions, found 5 in deep" in _refusal(_model(nodes))


def test_a_weight_of_five_dimensions_is_refused() -> None:
    model = _model(_right_nodes())
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1,) * 5, np.float32), "deep"))
    assert "5 in weight deep" in _refusal(model)


def test_a_tensor_whose_shape_is_unknown_is_refused() -> None:
    """A rank that nobody knows cannot be held to be four."""
    model = _model(_right_nodes())
    model.graph.input.append(helper.make_tensor_value_info("wish", TensorProto.INT64, ["n"]))
    model.graph.node.append(_node("guess", "Reshape", "mixed wish"))
    with pytest.raises(ExportError, match=r"node guess \(Reshape\): expected a shape for guess, found none"):
        rules.check_ranks(Graph(model, "toy.onnx"))


def test_a_norm_written_out_is_refused() -> None:
    nodes = _right_nodes()
    nodes = _inserted(nodes, "normed", 0, _node("mean", "ReduceMean", "tokens", axes=[-1], keepdims=1))
    nodes["normed"] = _node("normed", "Sub", "tokens mean")
    assert "node mean (ReduceMean): expected LayerNormalization as one node" in _refusal(_model(nodes))


def test_a_square_in_fp32_is_refused_as_part_of_a_norm() -> None:
    nodes = _inserted(_right_nodes(), "normed", 0, _node("square", "Pow", "tokens two"))
    assert "node square (Pow)" in _refusal(_model(nodes))


def test_a_missing_norm_is_refused() -> None:
    two = Expected((2, 2, 3), "features", 12, norms=2, attentions=1)
    assert "expected 2 LayerNormalization nodes, found 1" in _refusal(_model(_right_nodes()), two)


def test_a_norm_over_two_axes_is_refused() -> None:
    nodes = _right_nodes()
    del nodes["normed"].attribute[:]
    nodes["normed"].attribute.append(helper.make_attribute("axis", 1))
    model = _model(nodes)
    with pytest.raises(ExportError, match=r"node normed .* found axis 1"):
        rules.check_norms(Graph(model, "toy.onnx"), 1)


def _with_scaled_key(nodes: Nodes) -> Nodes:
    return _inserted(nodes, "turned", 0, _node("also", "Mul", "key half"))


def _with_divided_key(nodes: Nodes) -> Nodes:
    return _inserted(nodes, "scores", 1, _node("also", "Div", "turned two"))


def _with_two_scales_on_the_query(nodes: Nodes) -> Nodes:
    return _inserted(nodes, "scaled", 0, _node("also", "Mul", "query half"))


def _with_scale_behind_the_product(nodes: Nodes) -> Nodes:
    nodes["scores"].input[0] = "query"
    return _inserted(nodes, "shares", 0, _node("late", "Mul", "scores half"))


def _without_scale(nodes: Nodes) -> Nodes:
    nodes["scores"].input[0] = "query"
    del nodes["scaled"]
    return nodes


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_with_scaled_key, "node scores (MatMul): expected a key without scale, found Mul also on it"),
        (_with_divided_key, "expected a key without scale, found Div also on it"),
        (_with_two_scales_on_the_query, "expected one scale on the query, found Mul also on it"),
        (_with_scale_behind_the_product, "expected a Softmax right before or after a product"),
        (_without_scale, "expected a query multiplied by one constant, found MatMul"),
    ],
)
def test_attention_with_the_scale_in_another_place_is_refused(change: Callable[[Nodes], Nodes], text: str) -> None:
    """Scaling both sides is what exported SDPA does and TensorRT 10.3 to 10.7 compiled wrongly."""
    assert text in _refusal(_model(change(_right_nodes())))


def test_a_scale_that_is_a_constant_node_counts_as_constant() -> None:
    """Some exporters write weights as nodes."""
    nodes = _right_nodes()
    half = helper.make_node("Constant", [], ["late"], name="late", value=helper.make_tensor("t", 1, [], [0.5]))
    nodes["scaled"].input[1] = "late"
    check_graph(_model({"late": half, **nodes}), EXPECTED, "toy.onnx")


def test_another_number_of_attentions_is_refused() -> None:
    two = Expected((2, 2, 3), "features", 12, norms=1, attentions=2)
    assert "expected 2 attention products, found 1" in _refusal(_model(_right_nodes()), two)


def _quantized(nodes: Nodes, before: str, position: int, constants: str = "step naught", **axis: int) -> Nodes:
    """Another type between two nodes, this time int8."""
    source, names = nodes[before].input[position], (f"{before}{position}_q", f"{before}{position}_dq")
    for name, kind, entry in zip(names, ("QuantizeLinear", "DequantizeLinear"), (source, names[0]), strict=True):
        nodes = _inserted(nodes, before, position, _node(name, kind, f"{entry} {constants}", **axis))
    return nodes


@pytest.mark.parametrize("axis", [1, -1])
def test_products_of_quantized_numbers_are_what_they_are_without(axis: int) -> None:
    """A weight that is quantized is no computed factor, and an attention is one in whatever type."""
    nodes = _quantized(_right_nodes(), "query", 0)
    nodes = _quantized(nodes, "query", 1, "steps naughts", axis=axis)
    for before, position in (("scores", 0), ("scores", 1), ("mixed", 0), ("mixed", 1), ("value", 1)):
        nodes = _quantized(nodes, before, position)
    check_graph(_model(nodes), EXPECTED, "toy.onnx")


def test_a_zero_point_that_is_not_zero_is_refused() -> None:
    said = _refusal(_model(_quantized(_right_nodes(), "query", 0, "step one")))
    assert "node query0_q (QuantizeLinear): expected a zero point of 0, found another" in said


@pytest.mark.parametrize(("axis", "found"), [({"axis": 0}, "axis 0"), ({"axis": -2}, "axis -2"), ({}, "none")])
def test_scales_along_the_summed_axis_of_a_weight_are_refused(axis: dict[str, int], found: str) -> None:
    """TensorRT-RTX 1.7.1 builds such a product, in FP32; an axis left out is another one for TensorRT 8.6."""
    said = _refusal(_model(_quantized(_right_nodes(), "query", 1, "steps naughts", **axis)))
    wanted = "expected the scales of the weight of query along axis 1"
    assert f"node query1_dq (DequantizeLinear): {wanted}, found {found}:" in said


def test_quantized_numbers_of_uint8_pass_where_tensorrt_need_not_take_them() -> None:
    """Left out, a zero point means uint8; TensorRT-RTX 1.7.1 takes that for int8."""
    model = _model(_quantized(_right_nodes(), "query", 0, "step"))
    assert "expected no uint8 tensor but images, found query0_q" in _refusal(model)
    check_graph(model, EXPECTED, "toy.onnx", for_tensorrt=False)
