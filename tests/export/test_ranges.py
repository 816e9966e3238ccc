"""The range scan finds what FP16 cannot hold, where no parity on this machine would."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from devit_contract.arrays import UInt8Array
from devit_contract.artefacts.gate import Reference
from devit_contract.errors import ExportError
from devit_export.graph import ExportedGraph
from devit_export.parity import measure_variant, run_graph
from devit_export.precision import lower_precision
from devit_export.ranges import scan_ranges
from devit_export.rules import Graph, check_norms
from devit_export.variants import kept_nodes

BROKEN = Path(__file__).with_name("broken.py")


@pytest.fixture(scope="module")
def broken() -> tuple[onnx.ModelProto, UInt8Array]:
    made: tuple[onnx.ModelProto, UInt8Array] = runpy.run_path(str(BROKEN))["broken_graph"]()
    return made


@pytest.mark.parametrize("kind", ["vit", "cct"])
def test_maxima_are_those_of_every_tensor_over_all_images(
    kind: str, sample_graph: Callable[[str], ExportedGraph]
) -> None:
    """Against all tensors as outputs at once, which no large model could afford; 37 images are three batches."""
    graph = sample_graph(kind)
    content = graph.content
    images = np.random.default_rng(3).integers(0, 256, (37, *graph.expected.image_shape), np.uint8)
    proto = onnx.load_from_string(content)
    tensors = [output for node in proto.graph.node for output in node.output]
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(tensor) for tensor in tensors)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = dict(zip(tensors, session.run(None, {"images": images}), strict=True))
    found = scan_ranges("x.onnx", content, images)
    assert found.overflows == ()
    assert found.maxima.keys() == expected.keys()
    for tensor, largest in found.maxima.items():
        assert largest == pytest.approx(float(np.abs(expected[tensor]).max()), rel=1e-4), tensor


def _toy(nodes: list[onnx.NodeProto], shape: tuple[str | int, ...] = ("batch", 2, 3, 4)) -> bytes:
    """Numbers up to 255, then whatever ``nodes`` make of tensor ``x``."""
    cast = helper.make_node("Cast", ["images"], ["x"], name="cast", to=TensorProto.FLOAT)
    ends = [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    weights = {"cube": 3.0, "two": 2.0, "root": 0.5, "hundred": 100.0, "minus": -300.0}
    constants = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array([1, 2], np.int64), "middle"))
    graph = helper.make_graph([cast, *nodes], "toy", ends, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def _node(kind: str, inputs: str, **attributes: int | list[int]) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), ["y"], name="under_test", **attributes)


IMAGES: UInt8Array = np.full((3, 2, 3, 4), 200, np.uint8)
IMAGES[1, 1, 2, 3] = 255


@pytest.mark.parametrize(
    ("node", "overflows"),
    [
        (_node("Mul", "x x"), ()),  # 65,025
        (_node("Pow", "x two"), ()),
        (_node("Pow", "x cube"), ("x", "y")),  # 16.6 million
        (_node("Pow", "x root"), ()),
        (_node("Mul", "x hundred"), ()),  # 25,500
        (_node("Mul", "x minus"), ("y",)),  # -76,500
        (_node("ReduceSum", "x"), ("x",)),  # over the batch too: no bound is safe
        (_node("ReduceSum", "x middle"), ()),  # 255 * 6
        (_node("ReduceMean", "x", axes=[1, 2, 3]), ()),  # 255 * 24 before a device divides
        (_node("ReduceL2", "x", axes=[3]), ("x",)),  # 65,025 * 4
        (_node("ReduceSumSquare", "x", axes=[3]), ("x", "y")),
        (_node("GlobalAveragePool", "x"), ()),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else None,
)
def test_a_square_or_a_sum_counts_by_its_bound(node: onnx.NodeProto, overflows: tuple[str, ...]) -> None:
    found = scan_ranges("toy.onnx", _toy([node]), IMAGES)
    assert found.maxima["x"] == 255.0
    assert found.overflows == overflows


def test_a_mean_of_many_loud_numbers_counts_by_their_sum() -> None:
    """255 * 300 is above 65,504, and a device may add before it divides."""
    node = _node("ReduceMean", "x", axes=[1])
    found = scan_ranges("toy.onnx", _toy([node], ("batch", 300)), np.full((2, 300), 255, np.uint8))
    assert found.maxima == {"x": 255.0, "y": 255.0}
    assert found.overflows == ("x",)


def test_numbers_that_are_not_finite_in_fp32_are_refused_with_their_tensor() -> None:
    nodes = [
        helper.make_node("Sub", ["x", "x"], ["nothing"], name="cancel"),
        helper.make_node("Div", ["x", "nothing"], ["y"], name="divide"),
    ]
    with pytest.raises(ExportError, match=r"toy\.onnx: expected finite numbers in tensor y, found inf"):
        scan_ranges("toy.onnx", _toy(nodes), IMAGES)


def test_a_nan_in_the_middle_is_refused_with_the_tensor_that_it_comes_from() -> None:
    """ONNX Runtime's ReduceMax forgets a NaN that is not the first number."""
    nodes = [
        helper.make_node("Sub", ["x", "hundred"], ["shifted"], name="shift"),
        helper.make_node("Sqrt", ["shifted"], ["root_of"], name="root_of"),
    ]
    images = IMAGES.copy()
    images[1, 0, 1, 2] = 99
    with pytest.raises(ExportError, match=r"toy\.onnx: expected finite numbers in tensor root_of, found nan: look for"):
        scan_ranges("toy.onnx", _toy(nodes), images)


@pytest.mark.parametrize(
    ("node", "headroom", "overflows"),
    [
        (_node("Mul", "x hundred"), 2.0, ()),  # 51,000
        (_node("Mul", "x hundred"), 4.0, ("y",)),  # 102,000
        (_node("Mul", "x x"), 1.01, ("x", "y")),  # 65,025 times 1.01, and 1.01 squared in between
        (_node("ReduceMean", "x", axes=[1, 2, 3]), 4.0, ()),
        (_node("ReduceMean", "x", axes=[1, 2, 3]), 11.0, ("x",)),  # 6,120 before a device divides
    ],
    ids=["held twice", "not four times", "squared", "summed", "summed up too high"],
)
def test_a_brighter_image_is_allowed_for(node: onnx.NodeProto, headroom: float, overflows: tuple[str, ...]) -> None:
    found = scan_ranges("toy.onnx", _toy([node]), IMAGES, headroom)
    assert found.maxima["x"] == 255.0
    assert found.overflows == overflows


def test_the_rules_refuse_the_broken_graph(broken: tuple[onnx.ModelProto, UInt8Array]) -> None:
    with pytest.raises(ExportError, match=r"node mean \(ReduceMean\): expected LayerNormalization as one node"):
        check_norms(Graph(broken[0], "broken.onnx"), 1)


def test_the_scan_names_the_squared_tensor_of_the_broken_graph(broken: tuple[onnx.ModelProto, UInt8Array]) -> None:
    model, images = broken
    found = scan_ranges("broken.onnx", model.SerializeToString(), images)
    assert 1300.0 < found.maxima["centred"] < 1400.0 < found.maxima["stream"] < 1500.0
    assert found.maxima["squares"] > 1e6
    assert {"centred", "squares"} <= set(found.overflows)


def _by_reference(model: onnx.ModelProto, images: UInt8Array) -> dict[str, npt.NDArray[np.float32]]:
    """Every float tensor, by onnx's own implementation, which computes FP16 in FP16."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    names = [output for node in model.graph.node for output in node.output]
    del whole.graph.output[:]
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    with np.errstate(all="ignore"):
        tensors = ReferenceEvaluator(whole).run(None, {"images": images})
    return {name: np.asarray(tensor, np.float32) for name, tensor in zip(names, tensors, strict=True)}


def test_the_broken_graph_overflows_in_fp16_and_not_with_the_named_nodes_in_fp32(
    broken: tuple[onnx.ModelProto, UInt8Array],
) -> None:
    """ONNX Runtime sees no difference between the two, as its CPU provider computes FP16 in FP32."""
    model, images = broken
    right = _by_reference(model, images)["features"]
    assert right.std(axis=0).min() > 0.1  # images differ

    blind = _by_reference(lower_precision(model, (), "broken.onnx"), images)
    assert np.isinf(blind["squares.fp16"]).any()
    assert np.isfinite(blind["features"]).all()  # nothing would tell but the answers
    assert blind["features"].std(axis=0).max() == 0.0

    overflows = scan_ranges("broken.onnx", model.SerializeToString(), images).overflows
    kept = list(kept_nodes(Graph(model, "broken.onnx"), "fp16", overflows))
    lowered = lower_precision(model, kept, "broken.onnx")
    tensors = _by_reference(lowered, images)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    np.testing.assert_allclose(tensors["features"], right, atol=0.02 * right.std())
    assert any(name.endswith(".fp16") for name in tensors)  # not all of it is in FP32

    forced = lower_precision(model, (), "broken.onnx").SerializeToString()
    assert run_graph("forced", forced, images).std(axis=0).max() == pytest.approx(right.std(axis=0).max(), rel=0.05)
    expected = Reference(images, right, right, lambda outputs: outputs)
    measure_variant("broken.fp16.onnx", "fp16", lowered.SerializeToString(), expected)


def test_an_image_brighter_than_every_golden_one_overflows_only_without_headroom() -> None:
    """60,000 on the golden images, 69,000 on another."""
    nodes = [
        helper.make_node("Mul", ["x", "minus"], ["loud"], name="raise"),
        helper.make_node("Div", ["loud", "minus"], ["y"], name="lower"),
    ]
    model = onnx.load_from_string(_toy(nodes))
    golden, brighter = np.full_like(IMAGES, 200), np.full_like(IMAGES, 230)
    for headroom, holds in ((1.0, False), (4.0, True)):
        overflows = scan_ranges("toy.onnx", model.SerializeToString(), golden, headroom).overflows
        lowered = lower_precision(model, set(kept_nodes(Graph(model, "toy"), "fp16", overflows)), "toy.onnx")
        assert np.allclose(_by_reference(lowered, golden)["y"], 200.0)
        assert np.allclose(_by_reference(lowered, brighter)["y"], 230.0) == holds
