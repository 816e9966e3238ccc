"""Engines that somebody who may write to the store has put there: under the right key, with a record that fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.changes import fewer_images, plant, spoil, with_golden
from tests.support.properties import examples

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.artefacts.gate import compare
from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import NotBuiltError
from devit_engines.accuracy import reference_of, spot_check
from devit_engines.board import Board
from devit_engines.building import backends
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.store import Store
from devit_engines.engine import CheckedEngine, EngineSpec

TINY = Bundle(Path(__file__).parents[2] / "data" / "tiny-bundle")


class Prepared(CheckedEngine):
    """Gives prepared outputs for the golden images, one image a call."""

    def __init__(self, outputs: Float32Array) -> None:
        super().__init__(EngineSpec("submodel 0", TINY.manifest.preprocess.shape, outputs.shape[1]))
        self.known = dict(zip((image.tobytes() for image in TINY.golden()["images"]), outputs, strict=True))
        self.calls = 0

    def _run(self, images: UInt8Array) -> Float32Array:
        self.calls += 1
        (image,) = images
        return np.asarray(self.known[image.tobytes()])[np.newaxis]


def test_an_onnx_file_that_is_not_the_bundles_is_never_loaded_and_the_next_build_replaces_it(
    tiny: Bundle, store: Store, board: Board
) -> None:
    """The baseline takes and gives what submodel 1 does."""
    (built,) = build_engines(tiny, store, submodels=[1], board=board)
    plant(store, tiny, built.digest, tiny.read("baseline", variant="fp32"))
    with pytest.raises(NotBuiltError, match=r"the engine is another graph than that of .*: run devit build"):
        load_engine(tiny, store, 1, board=board)
    (again,) = build_engines(tiny, store, submodels=[1], board=board)
    assert (again.was_cached, again.record.file) == (False, built.record.file)
    load_engine(tiny, store, 1, board=board).close()


def test_an_engine_whose_digest_nobody_knows_is_found_out_by_the_golden_images(
    tiny: Bundle, store: Store, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a TensorRT plan, which every device builds for itself."""
    monkeypatch.setitem(backends.BACKENDS, "ort", replace(backends.BACKENDS["ort"], is_onnx=False))
    (built,) = build_engines(tiny, store, submodels=[1], board=board)
    plant(store, tiny, built.digest, tiny.read("baseline", variant="fp32"))
    words = r"expected an engine that computes what was trained, found smallest cosine .*: remove that folder, then run"
    with pytest.raises(NotBuiltError, match=words) as caught:
        load_engine(tiny, store, 1, board=board)
    assert str(caught.value).startswith(str(store.folder / built.digest))


def test_an_engine_is_not_loaded_with_the_verdict_of_another_one(
    tiny: Bundle, store: Store, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "ort", replace(backends.BACKENDS["ort"], is_onnx=False))
    (built,) = build_engines(tiny, store, submodels=[1], board=board)
    (verdict,) = built.record.validated_against
    plant(store, tiny, built.digest, tiny.read("baseline", variant="fp32"))
    path = store.folder / built.digest / "engine.json"
    path.write_text(path.read_text().replace(store.read(built.digest)[0].validated_against[0], verdict))
    with pytest.raises(NotBuiltError, match="was not validated with the golden images of"):
        load_engine(tiny, store, 1, board=board)


def test_a_machine_that_computes_otherwise_than_at_the_build_serves_nothing(
    tiny: Bundle, store: Store, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engines(tiny, store, submodels=[0], board=board)
    spoil(monkeypatch, lambda outputs: outputs[:, ::-1].copy())
    with pytest.raises(NotBuiltError, match="computes what was trained"):
        load_engine(tiny, store, 0, board=board)


@pytest.mark.parametrize(("images", "calls"), [(64, 16), (16, 16), (3, 3), (1, 1)])
def test_a_start_costs_at_most_sixteen_images(tiny: Bundle, images: int, calls: int) -> None:
    fewer = with_golden(tiny, fewer_images(images))
    engine = Prepared(reference_of(TINY, 0).outputs)
    assert spot_check(engine, fewer, 0, "fp32") == []
    assert engine.calls == calls


@examples(2)
@given(seed=st.integers(0, 1 << 32), size=st.floats(1e-4, 0.05))
def test_an_engine_that_passes_with_all_images_passes_with_some(seed: int, size: float) -> None:
    """Else a device would refuse at its start what it has just built."""
    reference = reference_of(TINY, 0)
    noise = np.random.default_rng(seed).normal(0.0, size, reference.outputs.shape)
    outputs = (reference.outputs * (1.0 + noise)).astype(np.float32)
    if not compare(outputs, reference).failures("fp32"):
        assert spot_check(Prepared(outputs), TINY, 0, "fp32") == []
