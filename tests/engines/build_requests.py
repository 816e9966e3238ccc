"""Build requests for submodel 0 of the tiny bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.engines.fakes.fake_tensorrt import VERSIONS

from devit_engines.trt.request import BuildRequest, GraphFile

ENDS = [VERSIONS[0], *(pytest.param(each, marks=pytest.mark.system) for each in VERSIONS[1:-1]), VERSIONS[-1]]
"""All TensorRTs; those between the oldest and the newest only in system tests, as each build takes seconds."""
TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"


def graph_file(path: Path) -> GraphFile:
    """Describe a graph as it is."""
    return GraphFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def graph_of(variant: str) -> GraphFile:
    """Describe the graph of a variant."""
    return graph_file(TINY / f"submodel-0.{variant}.onnx")


def tiny_request(folder: Path, **changes: Any) -> BuildRequest:  # noqa: ANN401 - any field
    """Ask for variant fp16, with everything that is written below ``folder``."""
    request = BuildRequest(
        name="submodel 0",
        variant="fp16",
        graph=graph_of("fp16"),
        fp32_graph=graph_of("fp32"),
        fp32_nodes=(),
        timing_cache=str(folder / "timing" / "cache"),
        temp_prefix=str(folder / "store" / ".key."),
    )
    return msgspec.structs.replace(request, **changes)
