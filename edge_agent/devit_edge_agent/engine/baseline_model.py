"""The baseline model beside the submodel: loaded, run back to back on golden images and freed, for the profiler.

::

    nothing ── load ──> loading (its own thread) ── good ──> resting <── run, rest ──> running
       ^                        └── bad: failed, with the reason            │
       └──────── free, a lost link, or no question for 30 seconds ──────────┘

All of it happens in a thread of its own, as CUDA requires, so the loop and the serving engine are not disturbed.
"""

from __future__ import annotations

import threading
import time
from itertools import cycle

import numpy as np

from devit_contract.errors import DevitError, EngineError
from devit_contract.service.journal import Log, Priority
from devit_contract.wire.messages import BaselineState
from devit_contract.wire.words import BaselinePhase, BaselineStep
from devit_edge_agent.engine.loading import Loaded, Settings, open_baseline
from devit_engines.accuracy import reference_of
from devit_engines.engine import Engine

_IDLE_TIMEOUT_S = 30.0
"""Without a question for that long, the client that asked for it has gone."""


class BaselineModel:
    """At most one baseline model; to be asked from one thread."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Start with none."""
        self._settings = settings
        self._log = log
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._go = threading.Event()
        self._state: BaselinePhase = "nothing"
        self._engine, self._problem = "", ""
        self._taken_ns: list[int] = []
        self._asked_s = 0.0
        self.inferences = 0
        """Since the agent's start."""
        self.busy_ns = 0
        """Time in its engine since the agent's start."""

    def ask(self, step: BaselineStep, loaded: Loaded) -> BaselineState:
        """Take a step with the baseline model of the serving engine's bundle, and report the state after it.

        Raises:
            EngineError: It is to be loaded, and another one is there.
        """
        self._asked_s = time.monotonic()
        if step == "load":
            self._load(loaded)
        elif step == "run":
            self._taken_ns = []
            self._go.set()
        elif step == "rest":
            self._go.clear()
        elif step == "free":
            self.free()
        return self._report()

    def keep(self) -> None:
        """Note that it is still wanted."""
        self._asked_s = time.monotonic()

    def tend(self) -> None:
        """Free it if no question came for a while."""
        if self._thread is not None and not self._end.is_set() and time.monotonic() - self._asked_s > _IDLE_TIMEOUT_S:
            self._log.log(Priority.WARNING, "the baseline model is freed: no question came for a while")
            self.free()

    def free(self) -> None:
        """End it and free its memory, without waiting for that; twice is allowed."""
        self._end.set()
        self._go.set()

    def close(self) -> None:
        """End it and wait until its memory is free."""
        self.free()
        if self._thread is not None:
            self._thread.join()

    def _load(self, loaded: Loaded) -> None:
        if self._thread is not None and self._thread.is_alive():
            raise EngineError("a baseline model is loaded here already: another profile runs; try again after it")
        self._end.clear()
        self._go.clear()
        self._state, self._engine, self._problem = "loading", "", ""
        self._thread = threading.Thread(target=self._live, args=(loaded,), name="baseline", daemon=True)
        self._thread.start()

    def _live(self, loaded: Loaded) -> None:
        try:
            name, engine = open_baseline(self._settings, loaded.bundle)
            with engine:
                self._engine, self._state = name, "resting"
                self._serve(engine, loaded)
        except DevitError as err:
            self._problem, self._state = " ".join(str(err).split()), "failed"
            self._log.log(Priority.ERROR, f"the baseline model: {self._problem}")
        except Exception as err:  # this thread's traceback would be lost, and the submodel must keep serving
            self._problem, self._state = f"{type(err).__name__}: {err}: this is a bug, report it", "failed"
            self._log.log(Priority.ERROR, f"the baseline model: {self._problem}")

    def _serve(self, engine: Engine, loaded: Loaded) -> None:
        images = cycle(reference_of(loaded.bundle, "baseline").images[:, np.newaxis])  # each (1, H, W, C)
        while not self._end.is_set():
            self._state = "running" if self._go.is_set() else "resting"
            self._go.wait()
            if self._end.is_set():
                return
            start_ns = time.monotonic_ns()
            engine.features(next(images))
            taken_ns = time.monotonic_ns() - start_ns
            self.inferences += 1
            self.busy_ns += taken_ns
            self._taken_ns.append(taken_ns)

    def _report(self) -> BaselineState:
        """Report the state, and the inferences since the last report."""
        taken, self._taken_ns = self._taken_ns, []
        times_ms = np.percentile(np.array(taken) / 1e6, (50, 95, 99)).tolist() if taken else (None, None, None)
        is_alive = self._thread is not None and self._thread.is_alive()
        state = self._state
        if state != "failed" and self._end.is_set():
            state = "freeing" if is_alive else "nothing"
        return BaselineState(state, self._engine, self._problem, len(taken), *times_ms)
