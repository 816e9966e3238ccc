"""What every engine refuses, and how the engines without a model behave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.errors import EngineError
from devit_engines.engine import CheckedEngine, Engine, EngineSpec
from devit_engines.null import NullEngine, PacedEngine, busy

SPEC = EngineSpec("submodel 3", (6, 8, 1), 5, revision=9)
IMAGES = np.zeros((2, 6, 8, 1), np.uint8)


class Fixed(CheckedEngine):
    """Answers one and the same array."""

    def __init__(self, outputs: Float32Array) -> None:
        """Keep the answer."""
        super().__init__(SPEC)
        self.outputs = outputs

    def _run(self, images: UInt8Array) -> Float32Array:
        return self.outputs


class VirtualTime:
    """A clock that moves when somebody waits."""

    def __init__(self, step_s: float) -> None:
        """Move by at most ``step_s`` for every wait."""
        self.now_s = 100.0
        self.step_s = step_s

    def clock(self) -> float:
        return self.now_s

    def wait(self, left_s: float) -> None:
        self.now_s += min(left_s, self.step_s)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 6, 8, 1), np.float32),
        np.zeros((6, 8, 1), np.uint8),
        np.zeros((2, 8, 6, 1), np.uint8),
        np.zeros((2, 6, 8, 3), np.uint8),
        np.zeros((0, 6, 8, 1), np.uint8),
    ],
    ids=["float", "no batch axis", "turned", "colour", "empty"],
)
def test_images_of_another_kind_are_refused_with_expected_and_found(images: UInt8Array) -> None:
    with pytest.raises(EngineError) as caught:
        NullEngine(SPEC).features(images)
    text = str(caught.value)
    assert "submodel 3: expected uint8 images (batch, 6, 8, 1)" in text
    assert f"found {images.dtype} {images.shape}" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_an_error_and_says_how_many(value: float) -> None:
    outputs = np.zeros((2, 5), np.float32)
    outputs[1, 2] = value
    with pytest.raises(EngineError, match="found 1 of 10 numbers"):
        Fixed(outputs).features(IMAGES)


def test_the_gate_sees_outputs_that_are_not_finite() -> None:
    """It has to count them, so it asks past the check."""
    outputs = np.full((2, 5), np.nan, np.float32)
    assert np.isnan(Fixed(outputs).unchecked_features(IMAGES)).all()


@pytest.mark.parametrize("outputs", [np.zeros((2, 4), np.float32), np.zeros((1, 5), np.float32), np.zeros((2, 5))])
def test_an_output_of_another_shape_or_type_is_an_error(outputs: Float32Array) -> None:
    with pytest.raises(EngineError, match=r"expected float32 outputs \(2, 5\)"):
        Fixed(outputs).features(IMAGES)


def test_a_closed_engine_says_so_and_may_be_closed_twice() -> None:
    with NullEngine(SPEC) as engine:
        assert engine.features(IMAGES).shape == (2, 5)
    engine.close()
    with pytest.raises(EngineError, match="found it closed"):
        engine.features(IMAGES)


@settings(deadline=None)
@given(st.integers(1, 40))
def test_the_null_engine_answers_zeros_for_every_batch(batch: int) -> None:
    outputs = NullEngine(SPEC).features(np.full((batch, 6, 8, 1), 255, np.uint8))
    assert outputs.dtype == np.float32
    assert outputs.shape == (batch, 5)
    assert not outputs.any()


@settings(deadline=None)
@given(call_ms=st.floats(0.0, 1000.0), step_s=st.floats(0.01, 1.0))
def test_a_paced_call_takes_its_time_however_short_the_naps(call_ms: float, step_s: float) -> None:
    time = VirtualTime(step_s)
    engine: Engine = PacedEngine(NullEngine(SPEC), call_ms, clock=time.clock, wait=time.wait)
    engine.features(IMAGES)
    assert time.now_s - 100.0 == pytest.approx(call_ms / 1000.0, abs=1e-9)


def test_a_paced_engine_counts_the_time_of_the_inner_engine() -> None:
    """50 ms are from call to answer, not 50 ms more than the model takes."""
    time = VirtualTime(1.0)
    inner = PacedEngine(NullEngine(SPEC), 30.0, clock=time.clock, wait=time.wait)
    PacedEngine(inner, 50.0, clock=time.clock, wait=time.wait).features(IMAGES)
    assert time.now_s == pytest.approx(100.05)


def test_a_busy_engine_asks_the_clock_until_the_time_is_over() -> None:
    seconds = iter(range(100))
    engine = PacedEngine(NullEngine(SPEC), 5000.0, clock=lambda: float(next(seconds)), wait=busy)
    engine.features(IMAGES)
    assert next(seconds) == 6  # 0 at the call, then 1, 2, 3, 4 too early, 5 on time


def test_a_paced_engine_is_what_its_inner_engine_is_and_closes_it() -> None:
    inner = NullEngine(SPEC)
    with PacedEngine(inner, 0.0) as engine:
        assert (engine.image_shape, engine.output_dim, engine.revision) == ((6, 8, 1), 5, 9)
        engine.warm_up(3)
    with pytest.raises(EngineError, match="closed"):
        inner.features(IMAGES)
