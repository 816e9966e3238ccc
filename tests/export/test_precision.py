"""Mixed graphs have one type a tensor, few Casts, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.support.properties import examples

from devit_contract.arrays import UInt8Array
from devit_contract.errors import ExportError
from devit_decompose.models.model import Model, StemLayer, uniform_config
from devit_export.graph import ExportedGraph, export_features
from devit_export.precision import count_casts, full_nodes, lower_precision
from devit_export.rules import Graph
from devit_export.variants import kept_nodes

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
MOVERS = {"Reshape", "Transpose", "Split", "Slice", "Identity", "Concat", "Pad", "Flatten"}
SIDE = 4


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Walk the graph by its own rules, not by ONNX's: a Cast gives what it says, a node has one float type.

    Returns:
        Element type of each tensor.
    """
    types = {end.name: end.type.tensor_type.elem_type for end in model.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Cast":
            types[node.output[0]] = next(entry.i for entry in node.attribute if entry.name == "to")
            continue
        taken = {types[tensor] for tensor in node.input if tensor} & {HALF, FULL, TensorProto.UINT8}
        assert len(taken) == 1, f"{node.name} takes {taken}"
        types |= dict.fromkeys(node.output, taken.pop())
    for end in model.graph.output:
        assert types[end.name] == end.type.tensor_type.elem_type == FULL
    return types


def check_casts(model: onnx.ModelProto) -> None:
    """No Cast behind a Cast, none to the type that is there, one for each tensor and type."""
    types = tensor_types(model)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    made = {node.output[0] for node in casts}
    for node in casts:
        assert node.input[0] not in made, f"{node.name} stands behind a Cast"
        assert types[node.input[0]] != types[node.output[0]]
    assert len({(node.input[0], types[node.output[0]]) for node in casts}) == len(casts)
    taken = {tensor for node in model.graph.node for tensor in node.input} | {end.name for end in model.graph.output}
    assert made <= taken  # none for nothing


def casts_with(model: onnx.ModelProto, keep_fp32: Collection[str], movers: int) -> int:
    """Count the Casts needed if all nodes that only move numbers had one type."""
    floats = [node for node in model.graph.node if node.op_type != "Cast"]
    kinds = {node.name: movers if node.op_type in MOVERS else HALF for node in floats} | dict.fromkeys(keep_fp32, FULL)
    return sum(_casts_of(model, floats, kinds, tensor) for tensor in ("pixels", *_outputs(floats)))


def _outputs(nodes: list[onnx.NodeProto]) -> list[str]:
    return [output for node in nodes for output in node.output]


def _casts_of(model: onnx.ModelProto, nodes: list[onnx.NodeProto], kinds: dict[str, int], tensor: str) -> int:
    """Types in which a tensor is wanted and not made; ``pixels`` are made of uint8, so each of theirs is a Cast."""
    wanted = {kinds[node.name] for node in nodes if tensor in node.input}
    wanted |= {FULL for end in model.graph.output if end.name == tensor}
    return len(wanted - {kinds[node.name] for node in nodes if tensor in node.output})


class Builder:
    """A random graph over numbers of shape (batch, 4, 4) that keeps them tame: no step makes them grow."""

    def __init__(self, seed: int) -> None:
        """Start with pixels in 0 to 1."""
        self.rng = np.random.default_rng(seed)
        self.nodes = [helper.make_node("Cast", ["images"], ["pixels"], name="cast", to=FULL)]
        self.weights = {"unit": np.full((), 1.0 / 255.0, np.float32), "shape": np.array([0, SIDE, SIDE], np.int64)}
        self.weights |= {"gain": np.ones(SIDE, np.float32), "bias": np.zeros(SIDE, np.float32)}
        self.tensors = ["pixels"]
        self.add("Mul", "pixels", "unit")

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: int | float | list[int]) -> list[str]:
        name = f"n{len(self.nodes)}"
        made = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attributes))
        self.tensors += made
        return made

    def step(self, kind: str, first: int, second: int) -> None:
        one, other = (self.tensors[index % len(self.tensors)] for index in (first, second))
        one = one if one != "pixels" else self.tensors[1]
        other = other if other != "pixels" else self.tensors[1]
        if kind == "weigh":
            weight = f"w{len(self.nodes)}"
            self.weights[weight] = (self.rng.uniform(-0.5, 0.5, (SIDE, SIDE)) / 2).astype(np.float32)
            self.add("MatMul", one, weight)
        elif kind == "mix":
            self.add("MatMul", self.add("Softmax", one, axis=-1)[0], other)
        elif kind == "norm":
            self.add("LayerNormalization", one, "gain", "bias", epsilon=1.0)
        elif kind == "turn":
            self.add("Transpose", one, perm=[0, 2, 1])
        elif kind == "shape":
            self.add("Reshape", one, "shape")
        elif kind == "halves":
            left, right = self.add("Split", one, outputs=2, axis=1)
            self.tensors = self.tensors[:-2]  # they have another shape
            self.add("Concat", right, left, axis=1)
        elif kind == "max":
            self.add("Max", one, other)
        else:
            self.add("Sub", one, other)
            self.add("Tanh", self.tensors[-1])

    def model(self, *, loose_ends: bool) -> onnx.ModelProto:
        """Add up all that nobody took, so that every node counts; with ``loose_ends`` only the last."""
        taken = {tensor for node in self.nodes for tensor in node.input}
        ends = [tensor for tensor in self.tensors[1:] if tensor not in taken]
        last = ends[-1]
        for end in [] if loose_ends else ends[:-1]:
            (last,) = self.add("Max", last, end)
        images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE])
        answer = helper.make_tensor_value_info(last, FULL, ["batch", SIDE, SIDE])
        constants = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        graph = helper.make_graph(self.nodes, "random", [images], [answer], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass(frozen=True)
class Drawn:
    """A graph and which of its nodes are to stay in FP32."""

    model: onnx.ModelProto
    keep_fp32: frozenset[str]


@st.composite
def drawn_graphs(draw: st.DrawFn) -> Drawn:
    builder = Builder(draw(st.integers(0, 1000)))
    kinds = st.sampled_from(["weigh", "mix", "norm", "turn", "shape", "halves", "max", "differ"])
    for kind, first, second in draw(st.lists(st.tuples(kinds, st.integers(0, 20), st.integers(0, 20)), max_size=8)):
        builder.step(kind, first, second)
    model = builder.model(loose_ends=draw(st.booleans()))
    names = [node.name for node in model.graph.node]
    return Drawn(model, draw(st.frozensets(st.sampled_from(names))))


def by_reference(model: onnx.ModelProto, images: UInt8Array) -> npt.NDArray[np.float32]:
    """By onnx's own implementation, which computes FP16 in FP16."""
    answer: npt.NDArray[np.float32] = ReferenceEvaluator(model).run(None, {"images": images})[0]
    return answer


@examples(0.8)
@given(drawn_graphs())
def test_any_graph_has_one_type_a_tensor_and_the_same_numbers(drawn: Drawn) -> None:
    lowered = lower_precision(drawn.model, drawn.keep_fp32, "random.onnx")
    onnx.checker.check_model(lowered, full_check=True)
    check_casts(lowered)
    images = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE), np.uint8)
    np.testing.assert_allclose(by_reference(lowered, images), by_reference(drawn.model, images), atol=0.02)


@examples(0.8)
@given(drawn_graphs())
def test_named_nodes_stay_in_fp32_and_others_that_compute_do_not(drawn: Drawn) -> None:
    lowered = lower_precision(drawn.model, drawn.keep_fp32, "random.onnx")
    types = tensor_types(lowered)
    for node in lowered.graph.node:
        if node.op_type != "Cast" and (node.name in drawn.keep_fp32 or node.op_type not in MOVERS):
            expected = FULL if node.name in drawn.keep_fp32 else HALF
            assert {types[tensor] for tensor in (*node.input, *node.output)} - {TensorProto.INT64} == {expected}


@examples(0.8)
@given(drawn_graphs())
def test_movers_that_share_a_tensor_have_one_type_and_save_casts(drawn: Drawn) -> None:
    keep = drawn.keep_fp32 - {"cast"}  # then it would be cast to FP32 and on from there
    full = set(full_nodes(drawn.model, keep, "random.onnx"))
    for tensor in _outputs(list(drawn.model.graph.node)):
        nodes = [node for node in drawn.model.graph.node if tensor in (*node.input, *node.output)]
        movers = {node.name for node in nodes if node.op_type in MOVERS} - keep
        assert not movers & full or movers <= full
    found = count_casts(lower_precision(drawn.model, keep, "random.onnx"))
    assert found <= min(casts_with(drawn.model, keep, kind) for kind in (HALF, FULL))


@examples(0.4)
@given(drawn_graphs())
def test_nodes_that_are_told_to_be_in_fp32_are(drawn: Drawn) -> None:
    lowered = lower_precision(drawn.model, drawn.keep_fp32, "random.onnx")
    types = tensor_types(lowered)
    told = set(full_nodes(drawn.model, drawn.keep_fp32, "random.onnx"))
    nodes = [node for node in lowered.graph.node if node.op_type != "Cast"]
    assert told - {"cast"} == {node.name for node in nodes if types[node.output[0]] == FULL}


def _chain(*steps: tuple[str, int, int]) -> onnx.ModelProto:
    builder = Builder(0)
    for step in steps:
        builder.step(*step)
    return builder.model(loose_ends=False)


def test_pixels_are_cast_straight_to_fp16() -> None:
    lowered = lower_precision(_chain(("weigh", 1, 0)), (), "x.onnx")
    assert [(node.op_type, node.input[0]) for node in lowered.graph.node][:2] == [
        ("Cast", "images"),
        ("Mul", "pixels.fp16"),
    ]
    assert count_casts(lowered) == 2  # and one to the output


def test_pixels_that_both_types_want_are_cast_twice_from_the_input() -> None:
    builder = Builder(0)
    builder.nodes.append(helper.make_node("Mul", ["pixels", "unit"], ["n2"], name="n2"))
    builder.tensors.append("n2")
    lowered = lower_precision(builder.model(loose_ends=False), ("n2",), "x.onnx")
    casts = [node for node in lowered.graph.node if node.op_type == "Cast"]
    assert sorted(node.output[0] for node in casts if node.input[0] == "images") == ["pixels", "pixels.fp16"]


def test_a_weight_that_both_types_take_is_stored_in_both() -> None:
    builder = Builder(0)
    builder.nodes.append(helper.make_node("Mul", ["n1", "unit"], ["n2"], name="n2"))
    builder.tensors.append("n2")
    lowered = lower_precision(builder.model(loose_ends=False), ("n2",), "x.onnx")
    stored = {tensor.name: tensor.data_type for tensor in lowered.graph.initializer}
    assert stored == {"unit": FULL, "unit.fp16": HALF}
    assert numpy_helper.to_array(lowered.graph.initializer[0]) == np.float16(1.0 / 255.0)


@pytest.mark.parametrize(("largest", "kind"), [(65504.0, HALF), (65505.0, FULL), (-70000.0, FULL), (np.inf, FULL)])
def test_a_weight_beyond_fp16_keeps_its_node_in_fp32(largest: float, kind: int) -> None:
    """65,504 is its largest number."""
    model = _chain(("weigh", 1, 0), ("weigh", 2, 0))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    array = numpy_helper.to_array(weight).copy()
    array[0, 0] = largest
    weight.CopyFrom(numpy_helper.from_array(array, "w2"))
    lowered = lower_precision(model, (), "x.onnx")
    types = tensor_types(lowered)
    node = next(node for node in lowered.graph.node if node.name == "n2")
    assert {types[tensor] for tensor in (*node.input, *node.output)} == {kind}
    assert full_nodes(model, (), "x.onnx") == (("n2",) if kind == FULL else ())
    assert lowered.graph.node[-2].name == "n3"
    assert types[lowered.graph.node[-2].output[0]] == HALF


def test_an_output_that_is_taken_inside_too_keeps_its_name_and_type() -> None:
    builder = Builder(0)
    builder.step("turn", 1, 0)
    model = builder.model(loose_ends=False)
    model.graph.output[0].name = "n1"
    model.graph.node.append(helper.make_node("Softmax", ["n2"], ["n3"], name="n3"))
    lowered = lower_precision(model, (), "x.onnx")
    assert tensor_types(lowered)["n1"] == FULL
    assert tensor_types(lowered)["n2.fp16"] == HALF


def test_an_optional_output_that_fp16_does_not_know_keeps_its_node_in_fp32() -> None:
    """The mean of a LayerNormalization is float32 whatever goes in."""
    builder = Builder(0)
    builder.step("norm", 1, 0)
    model = builder.model(loose_ends=False)
    assert full_nodes(model, (), "x.onnx") == ()
    model.graph.node[-1].output.append("mean")
    assert full_nodes(model, (), "x.onnx") == ("n2",)


def test_integers_keep_their_type() -> None:
    builder = Builder(0)
    builder.nodes += [
        helper.make_node("Shape", ["n1"], ["size"], name="n2"),
        helper.make_node("Reshape", ["n1", "size"], ["n3"], name="n3"),
    ]
    builder.tensors.append("n3")
    model = builder.model(loose_ends=True)
    lowered = lower_precision(model, (), "x.onnx")
    onnx.checker.check_model(lowered, full_check=True)
    assert [list(node.input) for node in lowered.graph.node if node.name == "n3"] == [["n1.fp16", "size"]]


def test_numbers_whose_type_an_attribute_says_keep_it() -> None:
    """Only what comes behind them can be in FP16."""
    builder = Builder(0)
    builder.nodes += [
        helper.make_node("Shape", ["n1"], ["size"], name="n2"),
        helper.make_node("ConstantOfShape", ["size"], ["n3"], name="n3"),
        helper.make_node("Max", ["n1", "n3"], ["n4"], name="n4"),
    ]
    builder.tensors.append("n4")
    model = builder.model(loose_ends=True)
    assert full_nodes(model, (), "x.onnx") == ("n3",)
    lowered = lower_precision(model, (), "x.onnx")
    onnx.checker.check_model(lowered, full_check=True)
    assert [list(node.input) for node in lowered.graph.node if node.name == "n4"] == [["n1.fp16", "n3.fp16"]]


def test_a_name_that_is_not_of_this_graph_is_refused() -> None:
    with pytest.raises(ExportError, match=r"x\.onnx: expected nodes of this graph to stay in FP32, found n77"):
        lower_precision(_chain(("turn", 1, 0)), ("n1", "n77"), "x.onnx")


def test_two_nodes_of_one_name_are_refused() -> None:
    """The list of those in FP32 would say nothing."""
    model = _chain(("turn", 1, 0))
    model.graph.node[2].name = "n1"
    with pytest.raises(ExportError, match="expected nodes with names of their own, found 3 nodes with 2 names"):
        lower_precision(model, (), "x.onnx")


def test_a_graph_that_is_not_of_float32_alone_is_refused() -> None:
    lowered = lower_precision(_chain(("turn", 1, 0)), (), "x.onnx")
    with pytest.raises(ExportError, match=r"expected a graph of float32, found FLOAT16 "):
        lower_precision(lowered, (), "x.onnx")


def test_a_cast_that_does_nothing_is_refused() -> None:
    builder = Builder(0)
    builder.add("Cast", "n1", to=FULL)
    with pytest.raises(ExportError, match=r"node n2 \(Cast\): expected a Cast to another type"):
        lower_precision(builder.model(loose_ends=False), (), "x.onnx")


@dataclass(frozen=True)
class Deep:
    """A ViT of 12 blocks, small in everything else, and what each variant keeps in FP32."""

    model: onnx.ModelProto

    def kept(self, variant: str) -> set[str]:
        return set(kept_nodes(Graph(self.model, "x.onnx"), variant, ()))

    def casts(self, keep_fp32: set[str]) -> int:
        lowered = lower_precision(self.model, keep_fp32, "x.onnx")
        check_casts(lowered)
        return count_casts(lowered)

    def residual_adds(self) -> set[str]:
        """What a LayerNorm takes, and what is added to that."""
        graph = Graph(self.model, "x.onnx")
        normed = {node.input[0] for node in graph.nodes if node.op_type == "LayerNormalization"}
        normed |= {node.input[0] for node in graph.nodes if node.output[0] in normed and node.op_type == "Slice"}
        return {graph.producers[tensor].name for tensor in normed if graph.producers[tensor].op_type == "Add"}


@pytest.fixture(scope="module")
def deep() -> Deep:
    config = uniform_config(
        backbone="vit",
        image_size=(8, 8, 3),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        stem=(StemLayer(32, kernel=4, stride=4, batch_norm=False),),
        depth=12,
        heads=2,
        mlp_ratio=2.0,
        classes=(0, 1),
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Model(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))  # biases of zero would be left out of the graph
    return Deep(onnx.load_from_string(export_features(model, "x.onnx").content))


@pytest.mark.system
def test_a_vit_of_12_blocks_needs_two_casts_a_norm(deep: Deep) -> None:
    """24 norms of 2, the last of 1, and the uint8 input; a generic converter made 78."""
    assert deep.casts(deep.kept("fp16")) == 2 * 24 + 1 + 1


@pytest.mark.system
def test_attention_in_fp32_needs_four_more_a_block(deep: Deep) -> None:
    """Query, key and value, and back."""
    assert deep.casts(deep.kept("fp16-attn32")) == 50 + 4 * 12


@pytest.mark.system
def test_the_residual_stream_costs_as_many_casts_in_either_type(deep: Deep) -> None:
    """So it stays in FP16, which moves half the bytes."""
    adds = deep.residual_adds()
    assert len(adds) == 2 * 12 + 1
    assert deep.casts(deep.kept("fp16") | adds) == deep.casts(deep.kept("fp16"))


@pytest.mark.parametrize(("kind", "fp16", "attn32"), [("vit", 10, 18), ("deit", 10, 18), ("cct", 12, 16)])
def test_the_least_numbers_of_casts_of_small_models(
    kind: str, fp16: int, attn32: int, sample_graph: Callable[[str], ExportedGraph]
) -> None:
    """A CCT's query, key and value come from one product without bias and are cast as one; its pooling is in FP16."""
    small = Deep(onnx.load_from_string(sample_graph(kind).content))
    assert (small.casts(small.kept("fp16")), small.casts(small.kept("fp16-attn32"))) == (fp16, attn32)


@pytest.mark.parametrize("kind", ["vit", "deit", "cct"])
def test_small_models_compute_in_real_fp16_what_they_compute_in_fp32(
    kind: str, sample_graph: Callable[[str], ExportedGraph]
) -> None:
    """ONNX Runtime's CPU provider would compute in FP32."""
    model = onnx.load_from_string(sample_graph(kind).content)
    images = np.random.default_rng(2).integers(0, 256, (4, 10, 14, 3), np.uint8)
    expected = by_reference(model, images)
    for variant in ("fp16", "fp16-attn32"):
        lowered = lower_precision(model, set(kept_nodes(Graph(model, "x.onnx"), variant, ())), "x.onnx")
        found = by_reference(lowered, images)
        assert 0.0 < np.abs(found - expected).mean() < 0.01 * np.abs(expected).mean()
