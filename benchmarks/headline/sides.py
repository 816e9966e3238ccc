"""What the headline measures in turns: cells of four devices, and models that one device runs."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks.common.machine import pin, two_cores
from benchmarks.common.measure import Samples, asked
from benchmarks.headline.lone import LoneEngine, resident_mb
from benchmarks.headline.models import DEVICES, Cell, ModelFile
from PIL import Image

from devit_contract.arrays import UInt8Array
from devit_contract.errors import InputError
from devit_contract.wire.client import Client, Picture
from devit_contract.wire.codec import State
from devit_pipeline.local_cell import LocalCell, LocalDevice

ALONE, RAW, TOGETHER = "alone", "alone, raw", "together"
"""Cells: each agent alone on a core; the same with raw images; all agents at once on this machine's cores."""
DEADLINE_MS = 20_000.0
_TRIES = 9
_QUALITY = 90


class Sides:
    """The sides by name, with their memory; a context manager."""

    def __init__(self, four: Cell) -> None:
        """Bring both cells up."""
        self.latencies: dict[str, Callable[[float], Samples]] = {}
        """Each measures for some seconds, and gives microseconds."""
        self.resident_mb: dict[str, Callable[[], float]] = {}
        """Memory of one device."""
        self._stack = ExitStack()
        self._place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="devit-")))
        self._node_core, self._device_core = two_cores()
        try:
            self._add_cells(four)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Sides:
        """Use them in a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes."""
        self._stack.close()

    def add(self, name: str, model: ModelFile) -> None:
        """Add a model that one device runs, on the core of the agent that is alone."""
        _, picture = photo(model.exported.image_shape)
        engine = self._stack.enter_context(LoneEngine(name, model, picture, self._device_core))
        self.latencies[name] = engine.latencies
        self.resident_mb[name] = lambda: engine.resident_mb

    def _add_cells(self, four: Cell) -> None:
        image, picture = photo(four.image_shape)
        # A device that sleeps as long as a real one computes leaves the core to it, as if it had one of its own.
        others = [f"paced:{self._pace_ms(four, picture):.2f}"] * (DEVICES - 1)
        alone = self._cell(self._stack, four, ["built", *others])
        for name, pid in alone.pids.items():
            pin(pid, self._device_core if name == "device0" else self._node_core)
        together = self._cell(self._stack, four, ["built"] * DEVICES)
        clients = [self._stack.enter_context(cell.client()) for cell in (alone, together)]
        self.latencies[ALONE] = partial(asked, partial(_latency_s, clients[0], picture), 0.0)
        self.latencies[RAW] = partial(asked, partial(_latency_s, clients[0], image), 0.0)
        self.latencies[TOGETHER] = partial(asked, partial(_latency_s, clients[1], picture), 0.0)
        self.resident_mb[ALONE] = lambda: resident_mb(alone.pid("device0"))

    def _pace_ms(self, four: Cell, picture: bytes) -> float:
        """Find how long a submodel computes on a core of its own."""
        with ExitStack() as stack:
            cell = self._cell(stack, four, ["built", *["null"] * (DEVICES - 1)])
            pin(cell.pid("device0"), self._device_core)
            client = stack.enter_context(cell.client())
            answers = [client.classify(picture, policy="all") for _ in range(_TRIES)]
        taken_us = [timing.inference_us for answer in answers for timing in answer.devices if timing.device == 0]
        return float(np.median(taken_us)) / 1000

    def _cell(self, stack: ExitStack, four: Cell, engines: Sequence[str]) -> LocalCell:
        devices = [LocalDevice(f"device{index}", index, engine=engine) for index, engine in enumerate(engines)]
        folder = Path(tempfile.mkdtemp(dir=self._place))
        return stack.enter_context(LocalCell(four.bundle, folder, devices, store=four.store, deadline_ms=DEADLINE_MS))


def photo(shape: tuple[int, int, int]) -> tuple[UInt8Array, bytes]:
    """Draw an image as smooth and as noisy as a photograph, and write it as JPEG: about 20 kB at 224 px."""
    height, width, channels = shape
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, channels), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    image: UInt8Array = np.clip(smooth + rng.normal(0.0, 4.0, shape), 0, 255).astype(np.uint8)
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=_QUALITY)
    return image, written.getvalue()


def _latency_s(client: Client, picture: Picture) -> float:
    start_s = time.perf_counter()
    answer = client.classify(picture, policy="all")
    if answer.state is not State.FULL:
        raise InputError(f"expected an answer of all devices, found {answer.state.name.lower()}: {answer.why}")
    return time.perf_counter() - start_s
