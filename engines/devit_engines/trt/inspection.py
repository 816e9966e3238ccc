"""What TensorRT made of a graph, from its inspector's JSON: fused attention, Casts, layers of each precision."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from devit_contract.errors import EngineError
from devit_engines.engine import CheckedEngine
from devit_engines.trt.engine import TrtEngine

_FUSED_ATTENTION = re.compile(r"_mha|fused_mha|_gemm_mha_v2|flash_?attention", re.IGNORECASE)
"""Kernel or layer names of fused attention (NVIDIA/TensorRT issues 3243 and 3643)."""
_CASTS = re.compile(r"\bcast\b|reformat", re.IGNORECASE)
_QUANTIZED = (("INT8", re.compile("(?<!u)int8", re.IGNORECASE)), ("FP8", re.compile("fp8|float8", re.IGNORECASE)))
_PRECISIONS = (("FP16", re.compile("half|fp16", re.IGNORECASE)), ("FP32", re.compile("float|fp32", re.IGNORECASE)))


@dataclass(frozen=True)
class Inspection:
    """Counted over the layers of one plan."""

    layers: int
    fused_attentions: int
    casts: int
    """Layers that only change type or layout."""
    by_precision: dict[str, int]
    """``INT8`` and ``FP8``: layers that take or make such numbers; ``FP16``, ``FP32``, ``other``: of all others, by the
    type of their first output."""


def inspect_engine(engine: CheckedEngine) -> Inspection | None:
    """Inspect a loaded engine as :func:`inspect_plan` does; None where TensorRT did not make it."""
    return inspect_plan(engine.information(), engine.spec.name) if isinstance(engine, TrtEngine) else None


def inspect_plan(text: str, name: str) -> Inspection:
    """Count the layers that ``get_engine_information`` lists; its schema changed with TensorRT 11, both are read."""
    try:
        found = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as err:
        raise EngineError(f"{name}: expected the inspector's layers as JSON, found {text[:60]!r}") from err
    # Without details, a layer is its name alone.
    layers = [layer if isinstance(layer, dict) else {"Name": layer} for layer in found]
    precisions = Counter(_precision(layer) for layer in layers)
    return Inspection(
        layers=len(layers),
        fused_attentions=sum(1 for layer in layers if _FUSED_ATTENTION.search(json.dumps(layer))),
        casts=sum(1 for layer in layers if _CASTS.search(f"{layer.get('LayerType', '')} {layer.get('Name', '')}")),
        by_precision=dict(sorted(precisions.items())),
    )


def _precision(layer: dict[str, Any]) -> str:
    taken, made = (_types(layer.get(side)) for side in ("Inputs", "Outputs"))
    for name, pattern in _QUANTIZED:
        if any(pattern.search(kind) for kind in (*taken, *made)):
            return name
    return next((name for name, pattern in _PRECISIONS if made and pattern.search(made[0])), "other")


def _types(tensors: object) -> list[str]:
    """TensorRT 8 and 10 say ``Format/Datatype``, 11 has a ``Datatype`` of its own; without details there is neither."""
    found = [tensor for tensor in tensors if isinstance(tensor, dict)] if isinstance(tensors, list) else []
    return [str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "") for tensor in found]
