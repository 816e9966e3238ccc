"""Another engine without a lost frame: it is loaded and checked beside the serving one, then offered to the node.

::

    idle ── start ──> loading (its own thread) ── good ──> offered (HELLO) ── WELCOME ──> serves
                                └── bad: logged, the old one stays      └── REFUSED: the old one stays

An agent's first engine runs in the loop's thread. Each later one stays in the thread that loaded it, as CUDA requires,
and every inference then costs some 20 us more, see :class:`~devit_engines.thread_bound.ThreadBoundEngine`.
"""

from __future__ import annotations

import os
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from devit_contract.errors import DevitError, EngineError
from devit_contract.service.journal import Log, Priority
from devit_edge_agent.engine.loading import Loaded, Settings, load, read_again, self_check
from devit_engines.engine import Engine

if TYPE_CHECKING:
    from concurrent.futures import Future

    from devit_engines.thread_bound import ThreadBoundEngine


class Swap:
    """At most one engine that may take over."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Start with none."""
        self._settings = settings
        self._log = log
        self._loading: ThreadBoundEngine | None = None
        self._loaded: Loaded | None = None  # by the thread, before its future is done
        self._offered: Loaded | None = None
        self._reader, self._writer = os.pipe()

    @property
    def is_offered(self) -> bool:
        """Whether an engine waits for the node's answer."""
        return self._offered is not None

    def fileno(self) -> int:
        """Give a descriptor that becomes readable when loading has ended."""
        return self._reader

    def start(self) -> None:
        """Load the engine that ``agent.toml`` and the store name now, unless another one is loading or offered."""
        if self._loading is not None or self._offered is not None:
            where = "is being loaded" if self._offered is None else "waits for the node's answer"
            self._log.log(Priority.WARNING, f"no engine is loaded: another one {where} already; try again after it")
            return
        from devit_engines.thread_bound import ThreadBoundEngine  # few agents ever reload

        self._log.log(Priority.INFO, "loading the engine again")
        self._loading = ThreadBoundEngine(self._load)
        self._loading.opened.add_done_callback(self._wake)

    def take_loaded(self) -> Loaded | None:
        """Hand out the engine that has just been loaded and found good, to offer it."""
        if self._loading is None or not self._loading.opened.done():
            return None
        os.read(self._reader, 1)
        engine, self._loading = self._loading, None
        loaded, self._loaded = self._loaded, None
        error = engine.opened.exception()
        if error is not None:
            engine.close()
            self._log.log(Priority.ERROR, f"the old engine keeps serving: {_line(error)}")
            return None
        assert loaded is not None
        self._offered = replace(loaded, engine=engine)
        return self._offered

    def take_over(self) -> Loaded:
        """Hand out the engine on offer for good."""
        assert self._offered is not None
        offered, self._offered = self._offered, None
        return offered

    def refuse(self, why: str) -> None:
        """Give the engine on offer up."""
        refused = self.take_over()
        self._log.log(Priority.ERROR, f"the old engine keeps serving: {why}")
        retire(refused.engine, self._log)

    def close(self) -> None:
        """Close an engine that never served; wait for one that is still loading."""
        if self._offered is not None:
            retire(self.take_over().engine, self._log)
        if self._loading is not None:
            retire(self._loading, self._log)
        os.close(self._reader)
        os.close(self._writer)

    def _load(self) -> Engine:
        settings = read_again(self._settings)
        loaded = load(settings)
        self_check(settings, loaded)
        if loaded.doubt:
            self._log.log(Priority.WARNING, loaded.doubt)
        self._loaded = loaded
        return loaded.engine

    def _wake(self, _opened: Future[Engine]) -> None:
        os.write(self._writer, b".")


def retire(engine: Engine, log: Log) -> None:
    """Close an engine that was replaced or never served; a failure is logged only."""
    try:
        engine.close()
    except EngineError as err:
        log.log(Priority.ERROR, f"an engine that serves no more was not freed: {err}")


def _line(error: BaseException) -> str:
    """Put an error into one line; a bug has its place in it, as its traceback is not shown."""
    if isinstance(error, DevitError):
        return str(error)
    places = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(places[-1].filename).name}, line {places[-1].lineno}" if places else ""
    return f"loading ended with {type(error).__name__}: {error}{place}: this is a bug, report it"
