"""FP8 from a bundle to a loaded engine, or refused by name, on doubles of TensorRT and CUDA: SIMULATED."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from tests.engines.build_requests import TINY
from tests.engines.changes import rewrite
from tests.engines.fakes import fake_tensorrt
from tests.engines.fakes.driver import FakeDriver
from tests.engines.fakes.fake_tensorrt import VERSIONS, make_module

from devit_contract.artefacts.file_list import describe_file
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import NotBuiltError
from devit_engines.board import Board
from devit_engines.building.build_all import build_engines, find_engine
from devit_engines.building.prefer import Measuring
from devit_engines.building.store import Store
from devit_export.int8.quantize import quantize
from devit_export.precision import lower_precision

FAKES = Path(__file__).parents[1] / "fakes"
ORIN = Board("NVIDIA Jetson Orin Nano Developer Kit", "sm_87", "36.4.3")
THOR = Board("NVIDIA Jetson AGX Thor Developer Kit", "sm_110", "38.4.0")
UNKNOWN = Board("x86_64, some CPU", "cpu", None)
NAME = "submodel-0.fp8-fp16.onnx"
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a TensorRT of some version on this device."""

    def install(version: str) -> None:
        monkeypatch.setenv("PYTHONPATH", str(FAKES / "site"))
        monkeypatch.setenv("FAKE_TRT_VERSION", version)
        monkeypatch.setitem(sys.modules, "tensorrt", make_module(version))
        monkeypatch.setattr("devit_engines.trt.plan.package_version", lambda package: version)
        FakeDriver().install(monkeypatch)
        monkeypatch.setattr(fake_tensorrt, "MEMORY", FakeDriver.current)

    return install


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The tiny bundle with submodel 0 in FP8 too."""
    bundle = Bundle(Path(shutil.copytree(TINY, tmp_path / "bundle")))
    plain = onnx.load(TINY / "submodel-0.fp32.onnx")
    model = quantize(plain, bundle.golden()["images"], (), "tiny", runtime="tensorrt-fp8")
    onnx.save(lower_precision(model, (), "tiny"), bundle.folder / NAME)
    entry = describe_file(bundle.folder, NAME, "submodel", device=0, variant="fp8-fp16")
    first, *others = bundle.manifest.submodels
    first = msgspec.structs.replace(first, variants=("fp8-fp16", *first.variants))
    return rewrite(bundle, files=(*bundle.manifest.files, entry), submodels=(first, *others))


@pytest.mark.parametrize("version", [version for version in VERSIONS if not version.startswith("8.")])
def test_a_thor_builds_checks_stores_and_loads_fp8(
    version: str, tensorrt: Callable[[str], None], bundle: Bundle, store: Store
) -> None:
    tensorrt(version)
    (built,) = build_engines(bundle, store, submodels=[0], board=THOR, precision="fp8")
    record = built.record
    assert (record.key.variant, record.failed_variants) == ("fp8-fp16", ())
    assert record.precision_method == "strongly typed"
    assert 0 < record.accuracy.relative_l2 < 0.1
    golden = bundle.golden()
    with find_engine(bundle, store, 0, board=THOR, precision="fp8").load() as engine:
        features = engine.features(golden["images"])
    assert np.linalg.norm(features - golden["features.0"]) < 0.1 * np.linalg.norm(golden["features.0"])


@pytest.mark.parametrize(
    ("board", "version", "words"),
    [
        (ORIN, "10.13.3.9", "expected a GPU from SM 8.9 on for variant fp8-fp16, found sm_87, which has no FP8"),
        (ORIN, "8.6.1", "expected a GPU from SM 8.9 on for variant fp8-fp16, found sm_87, which has no FP8"),
        (UNKNOWN, "8.6.1", "expected TensorRT 10 or later for variant fp8-fp16, found 8.6.1, which has no FP8"),
    ],
)
def test_where_there_is_no_fp8_it_is_refused_by_name_and_the_next_variant_taken(
    board: Board, version: str, words: str, tensorrt: Callable[[str], None], bundle: Bundle, store: Store
) -> None:
    """TensorRT 8.6 would read the FP32 graph, and build FP16 of it."""
    tensorrt(version)
    (built,) = build_engines(bundle, store, submodels=[0], board=board, precision="fp8")
    assert built.record.key.variant == "fp16"
    (failed,) = built.record.failed_variants
    assert (failed.variant, failed.failures) == (
        "fp8-fp16",
        (f"submodel 0: {words}: devices take the next variant",),
    )


def test_where_the_gpu_is_not_known_tensorrt_refuses_it_in_its_own_words(
    tensorrt: Callable[[str], None], bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt("10.13.3.9")
    monkeypatch.setenv("FAKE_TRT_REFUSE", "fp8")
    (built,) = build_engines(bundle, store, submodels=[0], board=UNKNOWN, precision="fp8")
    assert built.record.key.variant == "fp16"
    assert "the model contains HW-specific datatypes: fp8_e4m3" in built.record.failed_variants[0].failures[0]


@pytest.mark.system
def test_a_preference_takes_fp8_along_and_lists_it_where_it_is_refused(
    tensorrt: Callable[[str], None], bundle: Bundle, store: Store
) -> None:
    tensorrt("10.13.3.9")
    measuring = Measuring(clock_s=map(float, count()).__next__)  # on which each run takes a second
    for board, verdicts in ((THOR, {"kept", "left"}), (ORIN, {"not built"})):
        (built,) = build_engines(bundle, store, submodels=[0], board=board, prefer="accuracy", measuring=measuring)
        (tried,) = (each for each in built.tried if each.variant == "fp8-fp16")
        assert tried.verdict in verdicts
    assert "found sm_87" in tried.why


@pytest.mark.parametrize("precision", [None, "int8"])
def test_fp8_is_not_taken_unasked(
    precision: str | None, tensorrt: Callable[[str], None], bundle: Bundle, store: Store
) -> None:
    tensorrt("10.13.3.9")
    build_engines(bundle, store, submodels=[0], board=THOR, precision="fp8")
    with pytest.raises(NotBuiltError, match=r'found one in FP8 alone, which precision = "fp8" in agent\.toml takes'):
        find_engine(bundle, store, 0, backend="tensorrt", board=THOR, precision=precision)  # type: ignore[arg-type]
    (built,) = build_engines(bundle, store, submodels=[0], board=THOR, precision=precision)  # type: ignore[arg-type]
    assert built.record.key.variant == "fp16"


def test_onnx_runtime_is_not_offered_fp8(bundle: Bundle, store: Store) -> None:
    (built,) = build_engines(bundle, store, submodels=[0], backend="ort", board=THOR, precision="fp8")
    assert (built.record.key.variant, built.record.failed_variants) == ("fp32", ())
