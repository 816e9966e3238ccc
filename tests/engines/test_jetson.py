"""What only a device can show; run on a Jetson with ``pytest -m jetson``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import HostMemory
from devit_engines.board import detect_board
from devit_engines.building.backends import BACKENDS, RunSettings
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.store import Store
from devit_engines.trt.engine import TrtEngine
from devit_engines.trt.inspection import inspect_plan

SHIPPED = Path(__file__).parents[2] / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"
pytestmark = [
    pytest.mark.jetson,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not BACKENDS["tensorrt"].is_installed, reason="there is no TensorRT on this machine"),
    pytest.mark.skipif(detect_board().compute_capability == "cpu", reason="this board is no Jetson that we know"),
]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle(SHIPPED)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Store:
    """The shipped bundle, built by TensorRT."""
    found = Store(tmp_path_factory.mktemp("store"))
    for engine in build_engines(bundle, found, baseline=True, backend="tensorrt"):
        print(engine)
    return found


@pytest.mark.parametrize("cuda", ["ctypes", "cuda-bindings", "pycuda"])
@pytest.mark.parametrize("host_memory", get_args(HostMemory))
def test_features_are_the_golden_ones_by_every_way_to_cuda(
    bundle: Bundle, store: Store, cuda: str, host_memory: str
) -> None:
    if cuda != "ctypes":
        pytest.importorskip("pycuda" if cuda == "pycuda" else "cuda.bindings")
    golden = bundle.golden()
    settings = RunSettings(cuda=cuda, host_memory=host_memory)
    with load_engine(bundle, store, 0, backend="tensorrt", settings=settings) as engine:
        assert isinstance(engine, TrtEngine)
        features = engine.features(golden["images"])
        assert engine.is_replayed, engine.notes
    error = np.linalg.norm(features - golden["features.0"]) / np.linalg.norm(golden["features.0"])
    print(f"{cuda}, {host_memory}: relative L2 error {error:.3%}")
    assert error <= 0.03


def test_attention_is_fused(bundle: Bundle, store: Store) -> None:
    with load_engine(bundle, store, 0, backend="tensorrt") as engine:
        assert isinstance(engine, TrtEngine)
        found = inspect_plan(engine.information(), "submodel 0")
    print(found)
    assert found.fused_attentions == bundle.manifest.submodels[0].attentions


def test_a_store_hit_takes_a_second_and_a_half_at_most(bundle: Bundle, store: Store) -> None:
    words = [sys.executable, "-m", "devit_pipeline.cli", "build", str(bundle.folder), "--store", str(store.folder)]
    start_s = time.monotonic()
    subprocess.run(words, check=True, timeout=60)
    assert time.monotonic() - start_s <= 1.5
