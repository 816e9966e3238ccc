"""From a bundle to a served engine on doubles of TensorRT and CUDA: build, check, store, find, load, refuse."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.engines.build_requests import ENDS
from tests.engines.changes import fewer_images, plant, with_golden
from tests.engines.fakes import fake_tensorrt
from tests.engines.fakes.driver import FakeDriver
from tests.engines.fakes.fake_tensorrt import VERSIONS, make_module

from devit_contract.artefacts.gate import AccuracyResult
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import DeviceLostError, EngineError
from devit_contract.service.progress import no_progress
from devit_engines.accuracy import check_accuracy
from devit_engines.board import Board
from devit_engines.building import build_one, side_by_side
from devit_engines.building.backends import RunSettings
from devit_engines.building.build_all import build_engines, find_engine, load_engine
from devit_engines.building.store import Store
from devit_engines.cli import prune
from devit_engines.selftest.report import as_markdown, run_selftest
from devit_engines.trt.child import workspace_bytes
from devit_engines.trt.engine import TrtEngine
from devit_engines.trt.inspection import inspect_plan

FAKES = Path(__file__).parents[1] / "fakes"
ORIN = Board("NVIDIA Jetson Orin Nano Developer Kit", "sm_87", "36.4.3")
pytestmark = pytest.mark.timeout(120)


@dataclass
class Device:
    """A simulated Jetson: SIMULATED TensorRT of one version, and a SIMULATED CUDA driver."""

    version: str
    driver: FakeDriver
    site: Path
    monkeypatch: pytest.MonkeyPatch
    is_lost: bool = False
    """What a lost GPU held is given back by nobody."""

    def install(self, version: str) -> None:
        """Put a TensorRT there, as its package and for processes that are started."""
        self.version = version
        for old in self.site.glob("*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        info = self.site / f"tensorrt-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n")
        self.monkeypatch.setitem(sys.modules, "tensorrt", make_module(version))
        self.monkeypatch.setenv("FAKE_TRT_VERSION", version)


@pytest.fixture(params=ENDS)
def device(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    yield from _device(request.param, tmp_path, monkeypatch)


@pytest.fixture
def jetpack62(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    yield from _device("10.3.0", tmp_path, monkeypatch)


def _device(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(FAKES / "site"))
    driver = FakeDriver().install(monkeypatch)
    monkeypatch.setattr(fake_tensorrt, "MEMORY", FakeDriver.current)
    found = Device(version, driver, site, monkeypatch)
    found.install(version)
    yield found
    if not found.is_lost:
        driver.check()
        assert driver.alive() == []


@pytest.mark.parametrize("cuda", ["ctypes", "cuda-bindings", "pycuda"])
def test_a_bundle_becomes_engines_that_give_its_features(device: Device, tiny: Bundle, store: Store, cuda: str) -> None:
    settings = RunSettings(cuda=cuda)
    (built,) = build_engines(tiny, store, submodels=[0], board=ORIN, settings=settings)
    assert (built.record.key.variant, built.was_cached) == ("fp16", False)
    golden = tiny.golden()
    with load_engine(tiny, store, 0, board=ORIN, settings=settings) as engine:
        assert isinstance(engine, TrtEngine)
        np.testing.assert_allclose(
            engine.features(golden["images"][:5]), golden["features.0"][:5], rtol=0.02, atol=0.02
        )
        assert engine.notes == ()
        assert device.driver.calls["cuGraphLaunch"] > 0
        found = inspect_plan(engine.information(), "submodel 0")
        assert found.layers > 0
        assert found.by_precision.keys() <= {"FP16", "FP32", "other"}
    record, _ = store.read(built.digest)
    assert record.key.backend_version == device.version
    assert record.precision_method == ("fp16 flag" if device.version == "8.6.1" else "strongly typed")
    assert (record.key.compute_capability, record.l4t) == ("sm_87", "36.4.3")
    assert record.latency.runs >= 10


def test_all_variants_run_in_turns_on_one_gpu_and_the_most_exact_one_is_kept(
    jetpack62: Device, tiny: Bundle, store: Store
) -> None:
    jetpack62.monkeypatch.setattr(side_by_side, "_BLOCK_S", 0.01)
    (built,) = build_engines(tiny, store, submodels=[0], board=ORIN, prefer="accuracy")
    assert [(each.variant, each.verdict) for each in built.tried] == [
        ("fp16", "left"),
        ("fp16-attn32", "left"),
        ("fp32", "kept"),
    ]
    (again,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    assert (again.record.key.variant, again.was_cached) == ("fp32", True)
    with load_engine(tiny, store, 0, board=ORIN) as engine:
        assert isinstance(engine, TrtEngine)


def test_the_second_build_is_a_hit_that_imports_no_tensorrt(
    device: Device, tiny: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_engines(tiny, store, submodels=[], baseline=True, board=ORIN)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # an import would raise
    second = build_engines(tiny, store, submodels=[], baseline=True, board=ORIN)
    assert [engine.digest for engine in second] == [engine.digest for engine in first]
    assert all(engine.was_cached for engine in second)


def test_another_tensorrt_builds_its_own_engine_and_never_loads_the_old_one(
    jetpack62: Device, tiny: Bundle, store: Store
) -> None:
    """An update of JetPack leaves the store behind."""
    old = jetpack62.version
    (before,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    jetpack62.install(next(version for version in VERSIONS if version != old))
    with pytest.raises(EngineError, match=rf"one of tensorrt {old} for .*, this is tensorrt {jetpack62.version} "):
        load_engine(tiny, store, 0, board=ORIN, backend="tensorrt")
    (after,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    assert after.digest != before.digest


def test_a_plan_of_another_tensorrt_under_this_ones_key_gets_a_sentence(
    jetpack62: Device, tiny: Bundle, store: Store
) -> None:
    """Somebody copied the file and mended the digest; TensorRT never sees it."""
    (built,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    _, content = store.read(built.digest)
    plant(store, tiny, built.digest, content[:24] + bytes((10, 7, 0, 23)) + content[28:])
    with pytest.raises(
        EngineError, match=rf"built by TensorRT 10\.7\.0\.23, this device has TensorRT {jetpack62.version}"
    ):
        load_engine(tiny, store, 0, board=ORIN)


@pytest.mark.parametrize("damage", ["flipped", "half"])
def test_a_damaged_plan_is_found_by_its_digest_and_built_again(
    jetpack62: Device, tiny: Bundle, store: Store, damage: str
) -> None:
    (built,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    path = store.folder / built.digest / "engine.plan"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] if damage == "half" else whole[:90] + bytes([whole[90] ^ 1]) + whole[91:])
    with pytest.raises(EngineError, match=r"expected sha256 .* run devit build"):
        load_engine(tiny, store, 0, board=ORIN)
    (again,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    assert not again.was_cached
    assert path.read_bytes() == whole


def test_precision_fp32_takes_that_variant_alone(device: Device, tiny: Bundle, store: Store) -> None:
    (built,) = build_engines(tiny, store, submodels=[0], board=ORIN, precision="fp32")
    assert built.record.key.variant == "fp32"
    assert built.record.accuracy.max_abs_error < 1e-4
    assert find_engine(tiny, store, 0, board=ORIN).key.variant == "fp32"


def test_a_build_that_had_to_be_repeated_says_so_in_its_record(
    jetpack62: Device, tiny: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_KILL_ABOVE", str(workspace_bytes() // 2))
    monkeypatch.setenv("FAKE_TRT_WARN", "Detected layernorm nodes in FP16")
    notes: list[str] = []
    (built,) = build_engines(
        tiny,
        store,
        submodels=[0],
        board=ORIN,
        progress=lambda stage, done, total, note="": notes.append(note),
    )
    record, _ = store.read(built.digest)
    assert "the kernel killed the first build" in record.warnings[0]
    assert record.warnings[1] == "Detected layernorm nodes in FP16"
    assert record.warnings[2].startswith("validated with 64 golden images")
    assert any("the kernel killed the first build" in note for note in notes)


def test_a_failed_build_of_every_variant_stores_nothing(
    jetpack62: Device, tiny: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_FAIL", "no tactic")
    with pytest.raises(EngineError, match=r"no variant passes .*fp16: .*no tactic.*; fp32: .*no tactic"):
        build_engines(tiny, store, board=ORIN)
    assert store.entries() == []
    assert store.leftovers() == []


def test_a_variant_that_cannot_be_compiled_leaves_the_next_one(
    jetpack62: Device, tiny: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_REFUSE", "fp16")
    (built,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    assert built.record.key.variant == "fp32"
    failed = built.record.failed_variants
    assert [(each.variant, each.latency) for each in failed] == [("fp16", None), ("fp16-attn32", None)]


def test_an_engine_that_new_golden_images_refuse_gives_way_to_the_variant_that_passes(
    jetpack62: Device, tiny: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one must neither be loaded nor stand in the way; an agent of the older bundle may need it still."""
    (old,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    newer, calls = with_golden(tiny, fewer_images(48)), []

    def first_fails(*words: Any) -> AccuracyResult:  # noqa: ANN401 - what the check takes
        calls.append(words)
        found = check_accuracy(*words)
        return msgspec.structs.replace(found, cosine_min=0.5) if len(calls) == 1 else found

    monkeypatch.setattr(build_one, "check_accuracy", first_fails)
    (built,) = build_engines(newer, store, submodels=[0], board=ORIN)
    assert built.record.key.variant == "fp16-attn32"
    assert find_engine(newer, store, 0, board=ORIN).key.digest == built.digest
    assert {entry.digest for entry in store.entries()} == {old.digest, built.digest}
    load_engine(newer, store, 0, board=ORIN).close()


def test_precision_chooses_between_stored_variants(jetpack62: Device, tiny: Bundle, store: Store) -> None:
    for precision in ("fp16", "fp32"):
        build_engines(tiny, store, submodels=[0], board=ORIN, precision=precision)
    assert find_engine(tiny, store, 0, board=ORIN).key.variant == "fp16"
    assert find_engine(tiny, store, 0, board=ORIN, precision="fp32").key.variant == "fp32"


def test_timings_that_cannot_be_kept_cost_no_engine(jetpack62: Device, tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "timing").write_text("a file in the way")
    (built,) = build_engines(tiny, Store(tmp_path / "store"), submodels=[0], board=ORIN)
    record, _ = Store(tmp_path / "store").read(built.digest)
    assert any("timing" in words for words in record.warnings)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_self_test_reports_a_device(jetpack62: Device) -> None:
    found, error = run_selftest([], "auto", "fp16", RunSettings(), no_progress)
    assert error is None
    assert [each.engine.record.key.variant for each in found.tested] == ["fp16"] * 3
    assert "| submodel 0 | fp16 | strongly typed |" in as_markdown(found)


def test_a_gpu_lost_in_the_self_test_is_reported_and_told_apart(jetpack62: Device) -> None:
    jetpack62.driver.fail("cuStreamSynchronize", 700)
    found, error = run_selftest([], "auto", "fp16", RunSettings(), no_progress)
    assert isinstance(error, DeviceLostError)
    assert as_markdown(found).startswith("### devit selftest: FAILED")
    jetpack62.is_lost = True


def test_prune_removes_engines_of_a_tensorrt_that_is_gone(jetpack62: Device, tiny: Bundle, store: Store) -> None:
    (old,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    jetpack62.install("10.13.3.9")
    (new,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    prune(keep=[tiny.folder], store=store.folder)
    assert [entry.digest for entry in store.entries()] == [new.digest]
    assert old.digest != new.digest


def test_a_run_that_cannot_be_replayed_is_noted(device: Device, tiny: Bundle, store: Store) -> None:
    device.driver.refuse_capture = True
    (built,) = build_engines(tiny, store, submodels=[0], board=ORIN)
    assert any(words.startswith("no CUDA graph: ") for words in built.record.warnings)


def test_onnx_runtime_stays_an_answer_where_tensorrt_has_no_engine(
    jetpack62: Device, tiny: Bundle, store: Store
) -> None:
    build_engines(tiny, store, submodels=[0], board=ORIN, backend="ort")
    with load_engine(tiny, store, 0, board=ORIN) as engine:
        assert not isinstance(engine, TrtEngine)
