"""Exports a trained model to one ONNX file: same weights, same bytes, and checked against every rule.

torch's newer exporter writes the graph, since its shapes are constants and its names are those of the model. Its lowest
opset is 18, in which every operator that these models use means the same as in 17; see :func:`lower`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from devit_contract.arrays import UInt8Array
from devit_contract.errors import ExportError
from devit_decompose.models.model import Attention, Model
from devit_export.centring import centred
from devit_export.parity import check_same, run_graph
from devit_export.rules import INPUT_NAME, IR_VERSION, MODEL_HINT, OPSET, Expected, Graph, check_graph

_TOOLS_HINT = "exporting belongs on a workstation with Python 3.11 or later: pip install 'devit[export]' there"
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
_TRIAL_IMAGES = 3
_WRITTEN_OPSET = 18
_SAME_UP_TO_INPUT = {"Pad": 3}
"""Operators to which opset 18 only added inputs after this many."""


@dataclass(frozen=True)
class ExportedGraph:
    """One ONNX file and how it came about."""

    content: bytes
    expected: Expected
    """What the rules expect of it, and of every variant made of it."""
    nodes_before: int
    """Graph nodes as torch exports them, before onnxsim."""
    nodes_after: int
    simplify_max_abs_error: float
    """Largest change of any output number by onnxsim, over a few images of noise."""


def export_features(model: Model, name: str) -> ExportedGraph:
    """Export a trained submodel: uint8 ``images`` ``(batch, H, W, C)`` to float32 ``features`` ``(batch, dim)``.

    Raises:
        ExportError: A tool is missing, or the graph breaks a rule.
    """
    return _export(_Features(centred(model)).eval(), _expected(model, "features", model.config.feature_dim), name)


def export_logits(model: Model, name: str) -> ExportedGraph:
    """Export a baseline model: uint8 ``images`` to float32 ``logits`` ``(batch, K)``; see :func:`export_features`."""
    return _export(centred(model), _expected(model, "logits", len(model.config.classes)), name)


class _Features(nn.Module):
    """A model without its own head."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.features(images)


def _expected(model: Model, output_name: str, output_dim: int) -> Expected:
    modules = list(model.modules())
    return Expected(
        image_shape=model.config.image_size,
        output_name=output_name,
        output_dim=output_dim,
        norms=sum(isinstance(module, nn.LayerNorm) for module in modules),
        attentions=sum(isinstance(module, Attention) for module in modules),
    )


def _export(module: nn.Module, expected: Expected, name: str) -> ExportedGraph:
    try:  # before any long work starts
        import onnxsim
    except ImportError as err:
        raise ExportError(f"expected onnxsim to be installed, found: {err}: {_TOOLS_HINT}") from err
    raw = lower(_trace(module, expected, name), name)
    simple = named(with_known_gelus(strip(onnxsim.simplify(raw)[0]), name))
    check_graph(simple, expected, name)
    content = simple.SerializeToString(deterministic=True)
    change = _change(name, raw.SerializeToString(), content, expected.image_shape)
    return ExportedGraph(content, expected, len(raw.graph.node), len(simple.graph.node), change)


def _trace(module: nn.Module, expected: Expected, name: str) -> onnx.ModelProto:
    """Write a module as a graph, with a free batch dimension."""
    sample = torch.zeros((2, *expected.image_shape), dtype=torch.uint8)  # 1 would be taken for a fixed batch
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (sample,),
                dynamo=True,
                opset_version=_WRITTEN_OPSET,
                input_names=[INPUT_NAME],
                output_names=[expected.output_name],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except ImportError as err:
        raise ExportError(f"{name}: expected onnxscript to be installed, found: {err}: {_TOOLS_HINT}") from err
    except torch.onnx.OnnxExporterError as err:
        reason = str(err.__cause__ or err).strip().splitlines()[0]
        raise ExportError(f"{name}: expected a model that torch.onnx.export takes, found: {reason}") from err
    if program is None:
        raise AssertionError("torch.onnx.export returns a program where no file is named")
    proto: onnx.ModelProto = program.model_proto
    return proto


def lower(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Copy a graph of opset 18 as one of opset 17, where both mean the same by each of its nodes.

    ONNX's own converter has no way down for Pad, although nothing has changed about it but one more optional input.

    Raises:
        ExportError: A node means something else in opset 17.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    (standard,) = (entry for entry in lowered.opset_import if entry.domain in ("", "ai.onnx"))
    for node in lowered.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue  # refused with all other broken rules
        found, wanted = (onnx.defs.get_schema(node.op_type, opset).since_version for opset in (standard.version, OPSET))
        if found != wanted and len(node.input) > _SAME_UP_TO_INPUT.get(node.op_type, -1):
            raise ExportError(
                f"{name}: node {node.name or '(unnamed)'} ({node.op_type}): expected an operator that means the same "
                f"in opset {OPSET} and {standard.version}, found one changed in {found}: {MODEL_HINT}"
            )
    standard.version = OPSET
    return lowered


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph without notes, traces, inferred shapes, and what the tools say of themselves."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.ir_version = IR_VERSION
    for field in ("producer_name", "producer_version", "domain", "model_version"):
        bare.ClearField(field)
    graph = bare.graph
    graph.name = "devit"
    del graph.value_info[:]
    for part in (bare, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    return bare


def with_known_gelus(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Copy a graph with each GELU as ``(0.5 x) (1 + erf)``, the form that ONNX Runtime makes one operator of.

    Of ``x (0.5 (1 + erf))``, as torch writes it, it makes none. To halve a number is exact, so both are the same.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = Graph(copied, name)
    for erf in [node for node in graph.nodes if node.op_type == "Erf"]:
        chain = [erf]
        while len(chain) < 4 and len(followers := graph.consumers(chain[-1].output[0])) == 1:
            chain += followers
        if [node.op_type for node in chain] != ["Erf", "Add", "Mul", "Mul"]:
            continue
        _, add, half, last = chain
        (factor,) = set(half.input) - set(add.output)
        (value,) = set(last.input) - set(half.output)
        if factor in graph.constants:
            half.input[:], last.input[:] = [value, factor], [half.output[0], add.output[0]]
    return copied


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph whose nodes are called by operator and place, and tensors by the node that they come from or go to.

    The exporter's own names and order of weights are counters of its insides, which another build of it may not share.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    names = {end.name: end.name for end in (*graph.input, *graph.output)} | {"": ""}  # an absent input has no name
    for place, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{place}"
        for kind, tensors in (("in", node.input), ("out", node.output)):
            for index, tensor in enumerate(tensors):
                tensors[index] = names.setdefault(tensor, f"{node.name}.{kind}{index}")
    weights = {weight.name: weight for weight in model.graph.initializer}
    del graph.initializer[:]
    for used in [tensor for tensor in names if tensor in weights]:  # in the order of their first use
        graph.initializer.add().CopyFrom(weights[used])
        graph.initializer[-1].name = names[used]
    return copied


def _change(name: str, before: bytes, after: bytes, image_shape: tuple[int, int, int]) -> float:
    noise: UInt8Array = np.random.default_rng(0).integers(0, 256, (_TRIAL_IMAGES, *image_shape), np.uint8)
    found, expected = (run_graph(name, graph, noise) for graph in (after, before))
    return check_same(f"{name}, simplified by onnxsim", found, expected, "the numbers before").max_abs


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings about itself, e.g. deprecations."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
