"""Plans on doubles of TensorRT and of the CUDA driver: one image at a time, replayed, and closed in order."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
from tests.engines.build_requests import graph_of, tiny_request
from tests.engines.fakes import fake_tensorrt
from tests.engines.fakes.driver import FakeDriver
from tests.engines.fakes.fake_tensorrt import VERSIONS, make_module

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import CudaChoice, HostMemory
from devit_contract.errors import DeviceLostError, EngineError
from devit_engines.cuda.open import open_cuda
from devit_engines.engine import EngineSpec
from devit_engines.trt.builder import build_plan
from devit_engines.trt.engine import TrtEngine

TINY = Path(__file__).parents[2] / "data" / "tiny-bundle"


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> ModuleType:
    return make_module(request.param)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """A strict driver; at the end nothing may be left over, and nothing have been misused."""
    found = FakeDriver().install(monkeypatch)
    monkeypatch.setattr(fake_tensorrt, "MEMORY", FakeDriver.current)
    yield found
    found.check()
    assert found.alive() == []


@pytest.fixture
def bundle() -> Bundle:
    return Bundle(TINY)


def plan_of(trt: ModuleType, bundle: Bundle, variant: str = "fp32") -> bytes:
    nodes = bundle.manifest.submodels[0].fp32_nodes.get(variant, ())
    request = tiny_request(Path("not written"), variant=variant, graph=graph_of(variant), fp32_nodes=nodes)
    return build_plan(trt, request, 1 << 26, b"", lambda phase: True).content


def engine_of(
    trt: ModuleType, content: bytes, spec: EngineSpec, cuda: CudaChoice = "ctypes", **settings: object
) -> TrtEngine:
    return TrtEngine(content, spec, lambda: open_cuda(cuda), trt=trt, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "cuda", "host_memory", "use_graph"),
    [
        (version, cuda, get_args(HostMemory)[(i + j) % 2], bool((i // 2 + j) % 2))
        for i, version in enumerate(VERSIONS)
        for j, cuda in enumerate(get_args(CudaChoice)[1:])
    ],
)
def test_features_are_the_golden_ones_however_it_is_run(
    driver: FakeDriver,
    bundle: Bundle,
    spec: EngineSpec,
    version: str,
    cuda: CudaChoice,
    host_memory: HostMemory,
    use_graph: bool,
) -> None:
    """Every pair of two settings once."""
    trt, golden = make_module(version), bundle.golden()
    content = plan_of(trt, bundle)
    with engine_of(trt, content, spec, cuda, host_memory=host_memory, use_graph=use_graph) as engine:
        for _ in range(2):  # the second time replayed from the first image on
            np.testing.assert_allclose(engine.features(golden["images"][:9]), golden["features.0"][:9], atol=1e-5)
        assert (driver.calls["cuGraphLaunch"] > 0) == use_graph
        assert engine.notes == ()


def test_features_belong_to_the_caller(trt: ModuleType, driver: FakeDriver, bundle: Bundle, spec: EngineSpec) -> None:
    golden = bundle.golden()
    with engine_of(trt, plan_of(trt, bundle), spec) as engine:
        first = engine.features(golden["images"][:1])
        kept = first.copy()
        engine.features(golden["images"][1:2])
        np.testing.assert_array_equal(first, kept)


def test_what_is_freed_is_freed_in_order(trt: ModuleType, driver: FakeDriver, bundle: Bundle, spec: EngineSpec) -> None:
    content = plan_of(trt, bundle)
    gc.collect()
    fake_tensorrt.FREED.clear()
    engine = engine_of(trt, content, spec)
    engine.warm_up(2)
    engine.close()
    assert fake_tensorrt.FREED == ["IExecutionContext", "ICudaEngine", "Runtime"]
    assert driver.alive() == []
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.features(np.zeros((1, *spec.image_shape), np.uint8))


def test_a_capture_that_fails_leaves_the_engine_running_and_is_noted(
    trt: ModuleType, driver: FakeDriver, bundle: Bundle, spec: EngineSpec
) -> None:
    golden = bundle.golden()
    driver.refuse_capture = True
    with engine_of(trt, plan_of(trt, bundle), spec) as engine:
        for _ in range(2):
            np.testing.assert_allclose(engine.features(golden["images"][:3]), golden["features.0"][:3], atol=1e-5)
        assert driver.calls["cuGraphLaunch"] == 0
        (note,) = engine.notes
        assert note.startswith("no CUDA graph: ")


def test_a_run_that_tensorrt_refuses_while_it_is_captured_leaves_nothing_behind(
    driver: FakeDriver, bundle: Bundle, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(make_module("10.3.0"), plan_of(make_module("10.3.0"), bundle), spec)
    plan, runs = engine._plan, []

    def second_fails(stream: int) -> None:
        runs.append(stream)
        if len(runs) == 2:
            raise EngineError("not while capturing")
        type(plan).enqueue(plan, stream)

    monkeypatch.setattr(plan, "enqueue", second_fails)
    with engine:
        engine.warm_up(3)
        assert engine.notes == ("no CUDA graph: not while capturing",)


def test_an_error_in_the_middle_of_closing_frees_the_rest_and_is_told(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, spec: EngineSpec
) -> None:
    driver = FakeDriver().install(monkeypatch)
    trt = make_module("10.3.0")
    engine = engine_of(trt, plan_of(trt, bundle), spec)
    driver.fail("cuMemFree", 1)
    with pytest.raises(EngineError, match="cuMemFree"):
        engine.close()
    assert driver.alive() == ["24 bytes of device memory"]


@pytest.mark.parametrize("code", [700, 719, 999])
def test_a_lost_context_is_an_error_of_its_own_and_closing_still_works(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, spec: EngineSpec, code: int
) -> None:
    """What was allocated is lost with it: only the end of the process gives it back."""
    driver = FakeDriver().install(monkeypatch)
    monkeypatch.setattr(fake_tensorrt, "MEMORY", FakeDriver.current)
    trt = make_module("10.3.0")
    engine = engine_of(trt, plan_of(trt, bundle), spec)
    engine.warm_up(1)
    driver.fail("cuStreamSynchronize", code)
    with pytest.raises(DeviceLostError, match=str(code)):
        engine.warm_up(1)
    engine.close()


def test_another_thread_is_refused(driver: FakeDriver, bundle: Bundle, spec: EngineSpec) -> None:
    trt = make_module("10.3.0")
    caught: list[BaseException] = []
    with engine_of(trt, plan_of(trt, bundle), spec) as engine:

        def run() -> None:
            try:
                engine.warm_up(1)
            except EngineError as err:
                caught.append(err)

        thread = threading.Thread(target=run, name="stranger")
        thread.start()
        thread.join(10)
    assert "stranger" in str(caught[0])


def test_a_plan_of_another_model_is_refused_and_nothing_stays(
    trt: ModuleType, driver: FakeDriver, bundle: Bundle
) -> None:
    other = EngineSpec("submodel 1", (6, 8, 1), 4, revision=7)
    with pytest.raises(EngineError, match=r"submodel 1: expected a plan of .*\(1, 4\)\), found .*\(1, 6\)\)"):
        engine_of(trt, plan_of(trt, bundle), other)


def test_device_memory_that_runs_out_is_one_line_and_nothing_stays(
    driver: FakeDriver, bundle: Bundle, spec: EngineSpec
) -> None:
    trt = make_module("10.3.0")
    content = plan_of(trt, bundle)
    driver.fail("cuMemAlloc", 2)
    with pytest.raises(EngineError, match="OUT_OF_MEMORY"):
        engine_of(trt, content, spec)


def test_fp16_overflows_here_as_on_a_gpu(driver: FakeDriver, bundle: Bundle, spec: EngineSpec) -> None:
    """ONNX Runtime's CPU would compute the FP16 graph in FP32 and hide it."""
    trt = make_module("10.3.0")
    with engine_of(trt, plan_of(trt, bundle, "fp16"), spec) as engine:
        features = engine.unchecked_features(bundle.golden()["images"][:5])
    difference = np.abs(features - bundle.golden()["features.0"][:5]).max()
    assert 1e-6 < difference < 0.05
