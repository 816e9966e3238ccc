"""Exported graphs give the trained model's numbers, by torch and by a second implementation in numpy."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from devit_contract.arrays import Float64Array, UInt8Array
from devit_contract.errors import ExportError
from devit_decompose.models.model import Model
from devit_decompose.pruning.cost import parameters
from devit_export.graph import ExportedGraph, export_features, lower, named, strip

ARITHMETIC = {
    *("Cast", "Sub", "Div", "Conv", "Relu", "MaxPool", "Add", "Mul", "MatMul", "Gemm", "Softmax", "Erf"),
    *("LayerNormalization", "Reshape", "Transpose", "Split", "Pad", "Slice"),
}
"""All that these models need; Shape, Expand, Gather and their like would be arithmetic on shapes at run time."""


@dataclass(frozen=True)
class Case:
    """A submodel and its graph."""

    kind: str
    model: Model
    graph: ExportedGraph

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load_from_string(self.graph.content)


@pytest.fixture(scope="module", params=["vit", "deit", "cct", "pruned"])
def case(
    request: pytest.FixtureRequest,
    sample_model: Callable[[str], Model],
    sample_graph: Callable[[str], ExportedGraph],
) -> Case:
    return Case(request.param, sample_model(request.param), sample_graph(request.param))


def _images(count: int, model: Model) -> UInt8Array:
    return np.random.default_rng(count).integers(0, 256, (count, *model.config.image_size), np.uint8)


def _by_onnx_runtime(graph: ExportedGraph, images: UInt8Array) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph.content, providers=["CPUExecutionProvider"])
    answer: npt.NDArray[np.float32] = session.run(None, {"images": images})[0]
    return answer


class NumpyModel:
    """A forward pass in float64, written from the papers' descriptions and sharing no code with torch's."""

    def __init__(self, model: Model) -> None:
        """Take over the numbers alone."""
        self.config = model.config
        self.is_cct = model.config.backbone == "cct"
        self.weights = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}

    def features(self, images: UInt8Array) -> Float64Array:
        pixels = (images / 255.0 - np.array(self.config.mean)) / np.array(self.config.std)
        maps = self._stem(pixels)  # (B, rows, columns, D)
        tokens = maps.reshape(len(maps), -1, maps.shape[-1])
        prefix = self.weights.get("prefix", np.zeros((1, 0, tokens.shape[-1])))
        tokens = np.concatenate([np.repeat(prefix, len(maps), axis=0), tokens], axis=1) + self.weights["positions"]
        for index in range(len(self.config.heads)):
            tokens = self._block(tokens, index)
        tokens = self._norm(tokens, "norm")
        if not self.is_cct:
            kept: Float64Array = np.concatenate([tokens[:, token] for token in range(prefix.shape[1])], axis=1)
            return kept
        weights = _softmax(self._linear(tokens, "pool")[..., 0])  # (B, T)
        pooled: Float64Array = np.einsum("bt,btd->bd", weights, tokens)
        return pooled

    def logits(self, images: UInt8Array) -> Float64Array:
        return self._linear(self.features(images), "head")

    def _stem(self, maps: Float64Array) -> Float64Array:
        position = 0
        for layer in self.config.stem:
            padding = layer.kernel // 2 if self.is_cct else 0
            name = f"tokenizer.layers.{position}"
            kernel = self.weights[f"{name}.weight"]  # (out, in, k, k)
            windows = _windows(maps, layer.kernel, layer.stride, padding, filling=0.0)
            maps = np.einsum("brcikl,oikl->brco", windows, kernel) + self.weights.get(f"{name}.bias", 0.0)
            position += 1
            if layer.batch_norm:
                maps = self._batch_norm(maps, f"tokenizer.layers.{position}")
                position += 1
            if self.is_cct:
                maps = np.maximum(maps, 0.0)
                position += 1
            if layer.max_pool:
                maps = _windows(maps, 3, 2, 1, filling=-np.inf).max(axis=(-2, -1))
                position += 1
        return maps

    def _block(self, tokens: Float64Array, index: int) -> Float64Array:
        name = f"blocks.{index}"
        attended = self._attention(self._norm(tokens, f"{name}.attention_norm"), index)
        normed = self._norm(tokens + attended, f"{name}.mlp_norm")
        stream = normed if self.is_cct else tokens + attended
        return stream + self._linear(_gelu(self._linear(normed, f"{name}.expand")), f"{name}.contract")

    def _attention(self, tokens: Float64Array, index: int) -> Float64Array:
        name, width = f"blocks.{index}.attention", self.config.head_widths[index]
        query, key, value = (self._linear(tokens, f"{name}.{part}") for part in ("query", "key", "value"))
        mixed = []
        for head in range(self.config.heads[index]):
            part = slice(head * width, (head + 1) * width)
            scores = np.einsum("bqk,bpk->bqp", query[..., part], key[..., part])
            mixed.append(_softmax(scores * self.config.softmax_scales[index]) @ value[..., part])
        return self._linear(np.concatenate(mixed, axis=-1), f"{name}.project")

    def _linear(self, values: Float64Array, name: str) -> Float64Array:
        answer: Float64Array = values @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)
        return answer

    def _norm(self, tokens: Float64Array, name: str) -> Float64Array:
        centred = tokens - tokens.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + (1e-5 if self.is_cct else 1e-6))
        normed: Float64Array = centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return normed

    def _batch_norm(self, maps: Float64Array, name: str) -> Float64Array:
        slope = self.weights[f"{name}.weight"] / np.sqrt(self.weights[f"{name}.running_var"] + 1e-5)
        normed: Float64Array = (maps - self.weights[f"{name}.running_mean"]) * slope + self.weights[f"{name}.bias"]
        return normed


def _windows(maps: Float64Array, size: int, stride: int, padding: int, *, filling: float) -> Float64Array:
    """Cut (B, rows, columns, C) into (B, rows', columns', C, size, size)."""
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(maps, sides, constant_values=filling)
    windows: Float64Array = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return windows[:, ::stride, ::stride]


def _softmax(scores: Float64Array) -> Float64Array:
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    answer: Float64Array = shares / shares.sum(axis=-1, keepdims=True)
    return answer


def _gelu(values: Float64Array) -> Float64Array:
    normal: Float64Array = np.vectorize(lambda value: 0.5 * (1.0 + math.erf(value / math.sqrt(2.0))))(values)
    return values * normal


def test_a_whole_teacher_in_numpy_agrees_with_onnx_runtime(teacher: Model, exported_teacher: ExportedGraph) -> None:
    """Torch wrote the graph, so a misreading shared by torch and the exporter needs a witness from outside."""
    images = _images(4, teacher)
    expected = NumpyModel(teacher).logits(images)
    assert expected.std() > 0.1  # else everything agrees
    np.testing.assert_allclose(_by_onnx_runtime(exported_teacher, images), expected, atol=2e-5)


def test_onnx_runtime_makes_one_operator_of_every_gelu(case: Case, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # of a file that is for this machine alone
    onnxruntime.InferenceSession(case.graph.content, options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert found["Gelu"] == len(case.model.config.neurons)
    assert found["Erf"] == 0


def test_a_whole_submodel_in_numpy_agrees_with_onnx_runtime(case: Case) -> None:
    images = _images(4, case.model)
    expected = NumpyModel(case.model).features(images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(_by_onnx_runtime(case.graph, images), expected, atol=2e-5)


@pytest.mark.parametrize("batch", [1, 7])
def test_every_batch_size_gives_the_features_of_torch(case: Case, batch: int) -> None:
    """The graph was traced at two images; none of its shapes may remember that."""
    images = _images(batch, case.model)
    with torch.inference_mode():
        features = case.model.features(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(_by_onnx_runtime(case.graph, images), features, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 7])
def test_every_batch_size_gives_the_logits_of_torch(
    teacher: Model, exported_teacher: ExportedGraph, batch: int
) -> None:
    images = _images(batch, teacher)
    with torch.inference_mode():
        logits = teacher(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(_by_onnx_runtime(exported_teacher, images), logits, atol=1e-5)


def test_the_graph_is_valid_and_has_opset_17_alone(case: Case) -> None:
    onnx.checker.check_model(case.proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in case.proto.opset_import] == [("", 17)]


def test_the_graph_computes_numbers_and_no_shapes(case: Case) -> None:
    """A class token that is expanded to the batch would bring Shape, Expand and what lies between them."""
    counts = Counter(node.op_type for node in case.proto.graph.node)
    assert counts.keys() <= ARITHMETIC
    has_prefix = case.model.config.prefix_tokens > 0
    assert (counts["Pad"], counts["Slice"]) == ((1, 1) if has_prefix else (0, 0))


def test_names_types_and_shapes_at_the_ends_are_the_contract(case: Case) -> None:
    session = onnxruntime.InferenceSession(case.graph.content, providers=["CPUExecutionProvider"])
    (entry,), (answer,) = session.get_inputs(), session.get_outputs()
    dim = {"vit": 16, "deit": 2 * 16, "cct": 24, "pruned": 2 * 176}[case.kind]
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(uint8)", ["batch", 10, 14, 3])
    assert (answer.name, answer.type, answer.shape) == ("features", "tensor(float)", ["batch", dim])


def test_only_the_numbers_that_are_left_travel(case: Case) -> None:
    """Nothing that was pruned is in the file, nor a mask: no more numbers than the configuration counts."""
    config = case.model.config
    heads = sum(part.numel() for name, part in case.model.named_parameters() if "head." in name)
    found = sum(math.prod(tensor.dims) for tensor in case.proto.graph.initializer)
    added_up = config.prefix_tokens * config.width  # prefix tokens and their positions are one constant
    folded = sum(layer.width for layer in config.stem if layer.batch_norm)  # a BatchNorm becomes the bias before it
    small = found - (parameters(config) - heads - added_up - folded)
    assert 0 < small < 100  # mean and std of pixels, scales, the shapes to reshape to


def test_a_submodel_leaves_its_own_head_behind(exported_submodel: ExportedGraph) -> None:
    """Its weights would travel to the device for nothing."""
    shapes = [tuple(tensor.dims) for tensor in onnx.load_from_string(exported_submodel.content).graph.initializer]
    assert not [shape for shape in shapes if len(shape) == 2 and 2 in shape]  # it knows two classes


def test_nothing_of_this_machine_is_in_the_file(exported_submodel: ExportedGraph) -> None:
    for place in (Path.home(), Path.cwd(), Path(sys.prefix), Path(torch.__file__).parent):
        assert str(place).encode() not in exported_submodel.content
    assert not re.search(rb"\.py\b|onnxsim|pytorch", exported_submodel.content)


def test_strip_removes_notes_and_keeps_the_meaning(exported_submodel: ExportedGraph) -> None:
    model = onnx.load_from_string(exported_submodel.content)
    model.doc_string = "made by hand"
    model.graph.node[0].doc_string = "at line 7"
    model.graph.node[0].metadata_props.add(key="stack", value="trace")
    model.metadata_props.add(key="date", value="today")
    model.producer_name, model.producer_version, model.model_version = "pytorch", "2.13.0+cu130", 7
    assert strip(model).SerializeToString(deterministic=True) == exported_submodel.content


def test_names_and_order_of_weights_are_the_same_however_the_tools_choose_them(case: Case) -> None:
    """Engines are stored under the digest of the graph: another build of torch must not rebuild a fleet of them."""
    model = case.proto
    ends = {end.name for end in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        node.name = f"node_{node.name}_{len(node.name)}"
        for tensors in (node.input, node.output):
            tensors[:] = [name if name in ends or not name else f"val_{name[::-1]}" for name in tensors]
    weights = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    for weight in weights[::-1]:
        weight.name = f"val_{weight.name[::-1]}"
        model.graph.initializer.append(weight)
    onnx.checker.check_model(model)
    assert named(model).SerializeToString(deterministic=True) == case.graph.content
    assert case.proto.graph.node[0].name == "Cast_0"


def _padded(*inputs: str) -> onnx.ModelProto:
    """One Pad of opset 18."""
    node = helper.make_node("Pad", ["images", *inputs], ["features"], name="pad")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("images", "features")]
    constants = [helper.make_tensor(name, TensorProto.INT64, [2], [1, 0]) for name in inputs if name]
    graph = helper.make_graph([node], "toy", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_a_pad_of_all_axes_is_the_same_in_opset_17() -> None:
    written = _padded("pads")
    lowered = lower(written, "toy.onnx")
    assert list(lowered.graph.node) == list(written.graph.node)
    assert [entry.version for entry in (*lowered.opset_import, *written.opset_import)] == [17, 18]


def test_a_pad_of_chosen_axes_has_no_way_down_to_opset_17() -> None:
    with pytest.raises(ExportError, match=r"node pad \(Pad\): expected .* in opset 17 and 18, found one changed in 18"):
        lower(_padded("pads", "", "axes"), "toy.onnx")


def test_an_operator_that_opset_18_changed_has_no_way_down() -> None:
    """Split counts its outputs by an attribute since."""
    written = _padded("pads")
    written.graph.node[0].op_type = "Split"
    with pytest.raises(ExportError, match=r"node pad \(Split\)"):
        lower(written, "toy.onnx")


def test_onnxsim_changes_rounding_at_most(exported_teacher: ExportedGraph) -> None:
    assert exported_teacher.nodes_before > 0
    assert exported_teacher.nodes_after > 0
    assert exported_teacher.simplify_max_abs_error < 1e-5


def test_the_exporters_remarks_reach_nobody(
    submodels: tuple[Model, ...], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Warnings are errors in these tests, so a leaking one would end this call."""
    with caplog.at_level(logging.WARNING):
        export_features(submodels[1], "submodel-1.fp32.onnx")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_without_onnxsim_the_error_says_what_to_install(
    submodels: tuple[Model, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no wheels for Python 3.10, which is what a Jetson has."""
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(ExportError, match=r"onnxsim to be installed.*Python 3\.11.*pip install 'devit\[export\]'"):
        export_features(submodels[0], "submodel-0.fp32.onnx")
