"""Engines without a model: what is left to measure is everything else."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from devit_contract.arrays import Float32Array, UInt8Array
from devit_engines.engine import CheckedEngine, Engine, EngineSpec


class NullEngine(CheckedEngine):
    """Answers at once, with zeros on purpose: it measures wire, queues and fusion, and its answers mean nothing."""

    def _run(self, images: UInt8Array) -> Float32Array:
        return np.zeros((len(images), self.output_dim), np.float32)


class PacedEngine(CheckedEngine):
    """Gives the answers of another engine, each call taking at least a given time: a stand-in for a slower device.

    A call that takes the inner engine longer than that is not shortened.
    """

    def __init__(
        self,
        inner: Engine,
        call_ms: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Slow ``inner`` down to ``call_ms`` from call to answer, whatever the batch; closing this one closes it.

        ``wait`` passes at most the given seconds; :func:`busy` keeps the core occupied instead of sleeping.
        """
        super().__init__(EngineSpec("paced engine", inner.image_shape, inner.output_dim, inner.revision))
        self._inner = inner
        self._call_s = call_ms / 1000.0
        self._clock = clock
        self._wait = wait

    def close(self) -> None:
        """Close the inner engine too."""
        super().close()
        self._inner.close()

    def _run(self, images: UInt8Array) -> Float32Array:
        deadline_s = self._clock() + self._call_s
        outputs = self._inner.features(images)
        while (left_s := deadline_s - self._clock()) > 0.0:
            self._wait(left_s)
        return outputs


def busy(_left_s: float) -> None:
    """Return at once, so that a :class:`PacedEngine` asks the clock again and again, as a busy CPU would."""
