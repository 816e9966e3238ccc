"""What the tests of the engines share: the tiny bundle, an empty store, and a board without a GPU."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from devit_contract.artefacts.manifest import Bundle
from devit_engines.board import Board
from devit_engines.building.store import Store
from devit_engines.engine import EngineSpec

collect_ignore = ["fakes"]  # doubles of libraries, which are no tests
if importlib.util.find_spec("onnx") is None:  # as on a device: the double of TensorRT reads graphs with it
    names = ("builder", "child", "engine", "trt_chain", "trt_overflow", "real_wheels")
    collect_ignore += [f"trt/test_{name}.py" for name in names]
TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle that a test may change."""
    return Bundle(Path(shutil.copytree(TINY, tmp_path / "bundle")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def board() -> Board:
    return Board("test machine", "cpu", None)


@pytest.fixture
def spec() -> EngineSpec:
    return EngineSpec("submodel 0", (6, 8, 1), 6, revision=7)
