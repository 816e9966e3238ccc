"""Compiles graphs by TensorRT-RTX through the adapter: ``python compile_variants.py FOLDER TARGET...``.

It runs in an environment that has NVIDIA's compiler and nothing of the tests'. For each graph and each GPU it prints
one line of JSON. For the first GPU, builds are in processes of their own, as the product's are; for the others, graphs
whose names begin with ``s`` (selftest, shipped) are left out.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from devit_engines.engine import CannotCompileError
from devit_engines.trt.builder import build_plan, node_of_layer
from devit_engines.trt.child import build_in_child
from devit_engines.trt.request import BuildRequest, Built, GraphFile

WORKSPACE_BYTES = 1 << 28
VERSION = [1, 7, 1, 116]


def main(folder: Path, targets: list[str]) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    check_layers(trt, folder)
    for place, target in enumerate(targets):
        for path in sorted(folder.glob("*.onnx" if place == 0 else "[!s]*.onnx")):
            print(json.dumps(compiled(trt, folder, path, target, in_child=place == 0)), flush=True)


def check_layers(trt: Any, folder: Path) -> None:  # noqa: ANN401 - the library's module
    """What the double plays of the network, and its cache, is so."""
    log = trt.Logger()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, log).parse((folder / "vit.fp32.onnx").read_bytes())
    norms = [layer for layer in layers_of(network) if layer.type == trt.LayerType.NORMALIZATION]
    assert norms
    assert all(type(layer) is trt.ILayer for layer in norms)
    norms[0].__class__ = trt.INormalizationLayer
    assert norms[0].epsilon > 0  # a setting of normalisation alone
    network = builder.create_network(0)
    assert trt.OnnxParser(network, log).parse((folder / "selftest.fp32.onnx").read_bytes())
    nodes = tuple(json.loads((folder / "nodes.json").read_text()))
    assert {node_of_layer(layer.name, layer.metadata, nodes) for layer in layers_of(network)} == {*nodes, None}
    assert builder.create_builder_config().get_timing_cache() is None


def layers_of(network: Any) -> list[Any]:  # noqa: ANN401 - the library's
    return [network.get_layer(index) for index in range(network.num_layers)]


def compiled(trt: Any, folder: Path, path: Path, target: str, *, in_child: bool) -> dict[str, Any]:  # noqa: ANN401
    model, _, variant = path.stem.partition(".")
    graph = GraphFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    places = str(folder / "timing.cache"), str(folder / ".draft.")
    order = BuildRequest(path.stem, variant, graph, graph, (), *places, module="tensorrt_rtx", targets=(target,))
    result: dict[str, Any] = {"model": model, "variant": variant, "target": target}
    phases: set[str] = set()
    start_s = time.monotonic()
    try:
        if in_child:
            plan = build_in_child(order, lambda elapsed_s, phase: phases.add(phase), WORKSPACE_BYTES)
            assert "Building engine" in phases, phases
        else:
            plan = build_plan(trt, order, WORKSPACE_BYTES, b"", lambda phase: True)
    except CannotCompileError as err:
        return result | {"refused": str(err)}
    return result | told_by(plan) | {"build_s": round(time.monotonic() - start_s, 1)}


def told_by(plan: Built) -> dict[str, Any]:
    """What the plan says of itself; TensorRT-RTX names a kernel by the operations in it, each by four letters."""
    content = plan.content
    assert content[:4] == b"vtrt", content[:4]  # ftrt in the product for Jetsons
    assert list(content[24:28]) == VERSION, list(content[24:28])
    kernels = set(re.findall(rb"__myl_([A-Za-z]+)(?=_0x|[^A-Za-z0-9_])", content))
    is_int8 = any(b"MinMaxRounCast" in kernel for kernel in kernels)
    return {
        "size_bytes": len(content),
        "warnings": plan.warnings,
        "int8": is_int8,
        "fp8": not is_int8 and any(kernel.endswith(b"MulCast") for kernel in kernels),
        "float_products": sum(b"Fc" in kernel for kernel in kernels),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
