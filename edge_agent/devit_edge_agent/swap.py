"""Another engine without a lost frame: it is loaded and checked beside the one that serves, then offered to the node.

::

    idle ── start ──> loading (a thread) ── good ──> offered (HELLO) ── WELCOME ──> serves
                          └── bad: logged, the old one goes on    └── REFUSED: the old one goes on
"""

from __future__ import annotations

import os
import threading

from devit_contract.errors import DevitError
from devit_contract.journal import Log, Priority
from devit_edge_agent.loading import Loaded, Settings, load, rehearse


class Swap:
    """At most one engine that may take over."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Start with none."""
        self._settings = settings
        self._log = log
        self._thread: threading.Thread | None = None
        self._result: Loaded | DevitError | None = None
        self._offered: Loaded | None = None
        self._reader, self._writer = os.pipe()

    @property
    def is_offered(self) -> bool:
        """Whether an engine waits for the node's word."""
        return self._offered is not None

    def fileno(self) -> int:
        """Give a descriptor that becomes readable when loading has ended."""
        return self._reader

    def start(self) -> None:
        """Load what ``agent.toml`` and the store say now; nothing happens where that is under way already."""
        if self._thread is None and self._offered is None:
            self._log.say(Priority.INFO, "loading the engine anew")
            self._thread = threading.Thread(target=self._load, daemon=True)
            self._thread.start()

    def take_loaded(self) -> Loaded | None:
        """Hand out the engine that has just been loaded and found good, to be offered."""
        if self._thread is None or self._result is None:
            return None
        os.read(self._reader, 1)
        self._thread.join()
        self._thread = None
        result, self._result = self._result, None
        if isinstance(result, DevitError):
            self._log.say(Priority.ERROR, f"the engine that serves goes on: {result}")
            return None
        self._offered = result
        return result

    def take_over(self) -> Loaded:
        """Hand out the engine on offer for good."""
        assert self._offered is not None
        offered, self._offered = self._offered, None
        return offered

    def refuse(self, why: str) -> None:
        """Give the engine on offer up."""
        self.take_over().engine.close()
        self._log.say(Priority.ERROR, f"the engine that serves goes on: {why}")

    def close(self) -> None:
        """Close what was loaded and never served; one that is still loading ends with the process."""
        if self._offered is not None:
            self.take_over().engine.close()
        if self._thread is None:
            os.close(self._reader)
            os.close(self._writer)

    def _load(self) -> None:
        try:
            loaded = load(self._settings)
            rehearse(self._settings, loaded)
            self._result = loaded
        except DevitError as err:
            self._result = err
        os.write(self._writer, b".")
