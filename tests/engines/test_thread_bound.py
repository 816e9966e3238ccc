"""An engine whose calls are made in a thread of its own."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from devit_contract.arrays import Float32Array, UInt8Array
from devit_contract.errors import DeviceLostError, EngineError
from devit_engines.engine import Engine, EngineSpec
from devit_engines.null import NullEngine
from devit_engines.thread_bound import OwnThreadEngine

IMAGES = np.zeros((2, 6, 8, 1), np.uint8)


class Bound(NullEngine):
    """Refuses other threads than its own, as CUDA does."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self.owner = threading.current_thread()
        self.failure: EngineError | None = None
        self.closings = 0

    def close(self) -> None:
        self._check()
        self.closings += 1
        super().close()

    def _run(self, images: UInt8Array) -> Float32Array:
        self._check()
        if self.failure is not None:
            raise self.failure
        return super()._run(images)

    def _check(self) -> None:
        if threading.current_thread() is not self.owner:
            raise EngineError("expected the thread that opened it")


def test_an_engine_bound_to_its_thread_serves_another_one(spec: EngineSpec) -> None:
    made: Engine
    with OwnThreadEngine(lambda: Bound(spec)) as made:
        made.warm_up(3)
        assert made.features(IMAGES).shape == (2, 6)
        assert (made.image_shape, made.output_dim, made.revision) == ((6, 8, 1), 6, 7)


def test_closing_frees_the_engine_in_its_thread_and_ends_that(spec: EngineSpec) -> None:
    engine = OwnThreadEngine(lambda: Bound(spec))
    inner = engine.opened.result()
    assert isinstance(inner, Bound)
    engine.close()
    engine.close()
    assert inner.closings == 1
    assert not inner.owner.is_alive()
    with pytest.raises(EngineError, match="found it closed"):
        engine.features(IMAGES)


def test_a_failure_comes_to_the_caller_as_it_is(spec: EngineSpec) -> None:
    """The agent ends with another exit code when the GPU is lost."""
    with OwnThreadEngine(lambda: Bound(spec)) as engine:
        inner = engine.opened.result()
        assert isinstance(inner, Bound)
        inner.failure = DeviceLostError("cuStreamSynchronize")
        with pytest.raises(DeviceLostError, match="cuStreamSynchronize"):
            engine.features(IMAGES)


def test_an_engine_that_could_not_be_made_says_why_and_leaves_no_thread() -> None:
    owners: list[threading.Thread] = []

    def fail() -> Engine:
        owners.append(threading.current_thread())
        raise EngineError("expected a stored engine")

    engine = OwnThreadEngine(fail)
    with pytest.raises(EngineError, match="expected a stored engine"):
        engine.features(IMAGES)
    engine.close()
    assert not owners[0].is_alive()
