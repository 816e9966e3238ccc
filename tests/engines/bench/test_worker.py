"""The engine in a process of its own: its answers, and how it ends."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from devit_contract.artefacts.manifest import Bundle
from devit_engines.bench.child import Failed, Line, Ready, TimedRun
from devit_engines.bench.worker import timed_run
from devit_engines.building.build_all import build_engines
from devit_engines.building.store import Store
from devit_engines.choice import open_engine
from devit_engines.engine import EngineSpec
from devit_engines.null import NullEngine


def said(bundle: Path, store: Path, asked: str, *more: str) -> tuple[int, list[Line]]:
    """Start it, ask, close its input."""
    command = [
        sys.executable,
        "-m",
        "devit_engines.bench.worker",
        "--bundle",
        str(bundle),
        "--store",
        str(store),
        *more,
    ]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.returncode, [msgspec.json.decode(line, type=Line) for line in done.stdout.splitlines()]


def test_a_built_engine_runs_back_to_back_as_often_as_it_is_asked(tiny: Bundle, store: Store) -> None:
    build_engines(tiny, store, submodels=[0])
    code, (ready, *runs) = said(tiny.folder, store.folder, "0.05\n0.1\n")
    assert code == 0
    assert isinstance(ready, Ready)
    assert ready.engine.startswith("ONNX Runtime CPU ")
    assert ready.image_shape == (6, 8, 1)
    for found, asked_s in zip(runs, (0.05, 0.1), strict=True):
        assert isinstance(found, TimedRun)
        duration_s = (found.end_ns - found.start_ns) / 1e9
        assert duration_s >= asked_s
        assert sum(found.taken_us) / 1e6 == pytest.approx(duration_s, rel=0.01, abs=1e-6 * len(found.taken_us))


def test_a_slowed_engine_gives_the_features_of_the_built_one_and_takes_its_time(tiny: Bundle, store: Store) -> None:
    build_engines(tiny, store, submodels=[0])
    images = tiny.golden()["images"][:2]
    built, slowed = (open_engine(choice, tiny, store, 0) for choice in ("built", "built:30"))
    start_s = time.monotonic()
    features = slowed.engine.features(images)
    assert time.monotonic() - start_s >= 0.03
    np.testing.assert_array_equal(features, built.engine.features(images))
    assert slowed.engine.revision == built.engine.revision
    assert (slowed.model_sha256, slowed.title) == (built.model_sha256, f"{built.title}, slowed to 30 ms")


def test_an_engine_that_was_not_built_is_one_line_that_names_the_command(tiny: Bundle, store: Store) -> None:
    code, (failed,) = said(tiny.folder, store.folder, "")
    assert code == 1
    assert isinstance(failed, Failed)
    assert "devit build" in failed.why
    assert "\n" not in failed.why


@pytest.mark.parametrize("choice", ["fast", "busy:", "paced:x", "built:"])
def test_an_unknown_engine_is_refused_with_the_known_ones(tiny: Bundle, store: Store, choice: str) -> None:
    code, (failed,) = said(tiny.folder, store.folder, "", "--engine", choice)
    assert (code, failed) == (
        1,
        Failed(f"--engine {choice}: expected built, built:MS, null, paced:MS or busy:MS, e.g. paced:5"),
    )


@pytest.mark.parametrize("model", ["0", "baseline"])
def test_a_slowed_engine_is_the_built_one_at_another_pace(tiny: Bundle, store: Store, model: str) -> None:
    build_engines(tiny, store, submodels=[0], baseline=True)
    code, (ready, run) = said(tiny.folder, store.folder, "0.05\n", "--engine", "built:8", "--submodel", model)
    assert code == 0
    assert isinstance(ready, Ready)
    assert isinstance(run, TimedRun)
    assert ready.engine.startswith("ONNX Runtime CPU ")
    assert min(run.taken_us) >= 8000


def test_every_inference_of_a_timed_run_is_timed_and_the_last_one_ends_it(spec: EngineSpec) -> None:
    clock_ns = itertools.count(10**9, 3_000_000)
    found = timed_run(NullEngine(spec), np.zeros((1, 6, 8, 1), np.uint8), 0.01, lambda: next(clock_ns))
    assert found == TimedRun(10**9, 10**9 + 12_000_000, [3000] * 4)


def test_a_timed_run_of_no_time_is_one_inference(spec: EngineSpec) -> None:
    assert len(timed_run(NullEngine(spec), np.zeros((1, 6, 8, 1), np.uint8), 0.0).taken_us) == 1
