"""ONNX Runtime on the tiny bundle, against features that numpy computed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import EngineError
from devit_engines.engine import EngineSpec
from devit_engines.ort import OrtEngine, installed_version

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
MODEL = (TINY / "submodel-0.fp32.onnx").read_bytes()
SPEC = EngineSpec("submodel 0", (6, 8, 1), 6, revision=7)
GOLDEN = Bundle(TINY).golden()


@pytest.mark.parametrize(("device", "dim"), [(0, 6), (1, 4)])
def test_every_submodel_gives_the_golden_features(tiny: Bundle, device: int, dim: int) -> None:
    path = tiny.path("submodel", device=device, variant="fp32")
    with OrtEngine(path.read_bytes(), EngineSpec("submodel", (6, 8, 1), dim)) as engine:
        outputs = engine.features(GOLDEN["images"])
    np.testing.assert_allclose(outputs, GOLDEN[f"features.{device}"], atol=1e-5)


def test_the_baseline_gives_the_golden_logits(tiny: Bundle) -> None:
    with OrtEngine(tiny.path("baseline", variant="fp32").read_bytes(), EngineSpec("baseline", (6, 8, 1), 4)) as engine:
        np.testing.assert_allclose(engine.features(GOLDEN["images"]), GOLDEN["baseline.logits"], atol=1e-5)


@examples(0.25)
@given(st.lists(st.integers(0, 63), min_size=1, max_size=20), st.booleans())
def test_an_image_gives_the_same_feature_in_every_batch(chosen: list[int], is_strided: bool) -> None:
    images = GOLDEN["images"][chosen]
    if is_strided:  # as a camera's cropped buffer would be
        images = np.repeat(images, 2, axis=2)[:, :, ::2]
    with OrtEngine(MODEL, SPEC) as engine:
        np.testing.assert_allclose(engine.features(images), GOLDEN["features.0"][chosen], atol=1e-5)


def test_the_caller_may_change_what_it_got() -> None:
    with OrtEngine(MODEL, SPEC) as engine:
        first = engine.features(GOLDEN["images"][:1])
        first[:] = 0.0
        assert engine.features(GOLDEN["images"][:1]).any()


def test_more_threads_give_the_same_features() -> None:
    with OrtEngine(MODEL, SPEC, threads=2) as engine:
        np.testing.assert_allclose(engine.features(GOLDEN["images"]), GOLDEN["features.0"], atol=1e-5)


@examples(0.6)
@given(st.one_of(st.binary(max_size=64), st.integers(0, len(MODEL) - 1).map(lambda length: MODEL[:length])))
def test_broken_content_is_one_line_and_never_a_crash(content: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        OrtEngine(content, SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"output_dim": 5}, {"image_shape": (8, 6, 1)}, {"image_shape": (6, 8, 3)}])
def test_a_graph_that_is_not_what_the_manifest_says_is_refused_at_load(change: dict[str, object]) -> None:
    with pytest.raises(EngineError, match=r"expected uint8 \(batch, .*found"):
        OrtEngine(MODEL, replace(SPEC, **change))  # type: ignore[arg-type]


def test_an_engine_does_not_hold_the_file_that_it_was_made_of() -> None:
    """ONNX Runtime's session does, beside the weights: 22 MB for a DeiT-Ti."""
    held = sys.getrefcount(MODEL)
    with OrtEngine(MODEL, SPEC) as engine:
        engine.warm_up(1)
        assert sys.getrefcount(MODEL) == held


def test_the_version_is_that_of_the_package() -> None:
    import onnxruntime

    assert installed_version() == onnxruntime.__version__


def test_an_engine_imports_nothing_of_the_workstation_or_the_terminal() -> None:
    """A device has none of these, and starts faster without."""
    script = f"""
import sys
from pathlib import Path
import devit_engines.building.build_all, devit_engines.null
from devit_engines.engine import EngineSpec
from devit_engines.ort import OrtEngine
assert "onnxruntime" not in sys.modules, "imported before it is needed"
OrtEngine(Path({str(TINY / "submodel-0.fp32.onnx")!r}).read_bytes(), EngineSpec("x", (6, 8, 1), 6)).warm_up(1)
print(sorted({{"torch", "onnx", "onnxsim", "typer", "rich"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_onnx_runtime_writes_nothing_beside_and_reports_to_nobody(tmp_path: Path) -> None:
    """Its telemetry starts at import: a device id in the cache, a database of events, an upload thread."""
    code = (
        "from pathlib import Path\n"
        "from devit_engines.engine import EngineSpec\n"
        "from devit_engines.ort import OrtEngine\n"
        f"path = Path({str(TINY / 'submodel-0.fp32.onnx')!r})\n"
        "OrtEngine(path.read_bytes(), EngineSpec('submodel 0', (6, 8, 1), 6)).warm_up(1)"
    )
    places = {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | places
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert list(tmp_path.rglob("*")) == []
