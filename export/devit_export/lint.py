"""Refuses nodes, types and opsets that a supported TensorRT lacks, by the tables of its ONNX parser.

The tables are in ``tensorrt_operators.json``, each with its source, and with a note if it is of the nearest release
that was available. They are a selection: an operator in none of them is refused too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import msgspec
import onnx
import onnx.shape_inference
from onnx import TensorProto

from devit_contract.artefacts.files import read_json
from devit_contract.errors import ExportError

ALL = ("8.6", "10.0", "10.3", "10.7", "10.13", "10.15", "11.0")
"""JetPack 6.0 has 8.6, 6.1 and 6.2 have 10.3, 7.0 and 7.1 have 10.13, 7.2 has 10.16 or 11.4."""
FROM_10 = ALL[1:]
"""Those that have FP8: DequantizeLinear of 8.6 takes INT8 alone."""
_FILE = Path(__file__).with_name("tensorrt_operators.json")
_TYPE_NAMES = {"FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "FLOAT8E4M3FN": "FP8"}
"""Where the tables have another name than ONNX."""
_HINT = "this model cannot be exported as it is"


class OperatorTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the ONNX parser of one TensorRT accepts."""

    tensorrt: str
    opset: int
    """The highest."""
    source: str
    headed: str
    """Release in the heading of the source."""
    is_exact: bool
    """Whether the source is of this very release."""
    note: str
    """What it is otherwise."""
    operators: dict[str, str]
    """Operator to the types that it takes, parted by spaces."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    about: str
    tables: tuple[OperatorTable, ...]


@cache
def tables() -> dict[str, OperatorTable]:
    """Read the tables, by TensorRT release."""
    found = read_json(_FILE, _File, schema=1, hint="install the package again")
    return {table.tensorrt: table for table in found.tables}


def lint(model: onnx.ModelProto, name: str, versions: Collection[str] = ALL) -> None:
    """Check a graph, whole in memory, against the operator tables of some TensorRT releases.

    Raises:
        ExportError: One of them lacks an operator, a type that a node computes in, or the opset; the text names it and
            every release that lacks it.
    """
    wanted = [tables()[version] for version in versions]
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    types = _types(model)
    for node in model.graph.node:
        where = f"{name}: node {node.name or '(unnamed)'} ({node.op_type})"
        _refuse(where, "an operator", node.op_type, [table for table in wanted if node.op_type not in table.operators])
        for tensor in _open_tensors(node, opset):
            kind = TensorProto.DataType.Name(types.get(tensor, TensorProto.UNDEFINED))
            kind = _TYPE_NAMES.get(kind, kind)
            row = _row(node.op_type, kind)
            lacking = [table for table in wanted if kind not in table.operators[row].split()]
            _refuse(where, "a type", f"{kind} {tensor}", lacking)
    _refuse(name, "an opset", str(opset), [table for table in wanted if opset > table.opset])


def _row(operator: str, kind: str) -> str:
    """Name the operator that lists a type; each quantizer lists what it takes, and makes what the other one takes."""
    if operator in ("QuantizeLinear", "DequantizeLinear"):
        return "QuantizeLinear" if kind in ("FP32", "FP16", "BF16") else "DequantizeLinear"
    return operator


def _refuse(where: str, what: str, found: str, lacking: list[OperatorTable]) -> None:
    if lacking:
        releases = ", ".join(table.tensorrt for table in lacking)
        raise ExportError(
            f"{where}: expected {what} that every supported TensorRT takes, found {found}, "
            f"which TensorRT {releases} lacks: {_HINT}"
        )


def _open_tensors(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    """Yield the tensors of a node whose type is its choice; a shape is int64 always, and no table lists it."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        yield from filter(None, (*node.input, *node.output))
        return
    for tensors, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, tensor in enumerate(tensors):
            # The last formal input may be repeated.
            if tensor and len(formal[min(index, len(formal) - 1)].types) > 1:
                yield tensor


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}
