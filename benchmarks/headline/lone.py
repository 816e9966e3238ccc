"""One model on one device: an engine in a process of its own, on one core, which gets pictures and answers logits."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import numpy as np
from benchmarks.common.measure import Samples, asked
from benchmarks.headline.models import ModelFile
from benchmarks.network.bare import Children, receive

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import decode_image
from devit_engines.engine import EngineSpec
from devit_engines.ort import OrtEngine

_LOAD_S, _SLOWEST_S = 120.0, 60.0
_WARM_UP = 2


class LoneEngine:
    """The process; a context manager."""

    def __init__(self, name: str, model: ModelFile, picture: bytes, core: int) -> None:
        """Start it, and wait until the model is loaded.

        Args:
            name: For messages.
            model: What it runs.
            picture: A picture file, decoded for every answer as an agent does.
            core: The only one that it may use.
        """
        self._children = Children()
        self._connection = self._children.start(_serve, name, model, picture, core)
        receive(self._connection, str, _LOAD_S)

    def __enter__(self) -> LoneEngine:
        """Use it in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._children.__exit__(kind, error, trace)

    def latencies(self, duration_s: float) -> Samples:
        """Have it answer one picture after the other, and give what each took, in microseconds."""
        self._connection.send(duration_s)
        return np.asarray(receive(self._connection, list, duration_s + _SLOWEST_S), np.float64)

    @property
    def resident_mb(self) -> float:
        """What the process holds now."""
        return resident_mb(self._children.pids[0])


def resident_mb(pid: int) -> float:
    """Read how much memory a process holds, in MB of 10^6 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _serve(parent: Connection, name: str, model: ModelFile, picture: bytes, core: int) -> None:
    os.sched_setaffinity(0, {core})
    shape = model.exported.image_shape
    engine = OrtEngine(model.path.read_bytes(), EngineSpec(name, shape, model.exported.output_dim))
    engine.warm_up(_WARM_UP)
    preprocess = Preprocess(shape[0], shape[1], "rgb")

    def answer() -> float:
        start_s = time.perf_counter()
        engine.features(decode_image(picture, preprocess, name)[np.newaxis])  # (H, W, C) -> (1, H, W, C)
        return time.perf_counter() - start_s

    parent.send("ready")
    while True:
        parent.send(asked(answer, 0.0, parent.recv()).tolist())
