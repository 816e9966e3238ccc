"""From ``agent.toml`` to an agent that connects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from devit_contract.service.journal import Log, Supervisor
from devit_edge_agent.agent import EdgeAgent
from devit_edge_agent.loading import load, read_settings
from devit_edge_agent.sources.open import open_source


@contextmanager
def open_agent(
    path: Path, engine_choice: str, *, log: Log, on_ready: Callable[[], None] = lambda: None
) -> Iterator[EdgeAgent]:
    """Load and warm the engine that ``agent.toml`` names, open the source, connect.

    ``on_ready`` is called once, when the node has accepted this device. It raises what :func:`read_settings`,
    :func:`load` and :func:`open_source` do.
    """
    settings = read_settings(path, engine_choice)
    loaded = load(settings, Supervisor().starting)
    with loaded.engine:
        line = settings.config.source
        source = open_source(line, loaded.preprocess, base=path.parent.absolute()) if line else None
        with EdgeAgent(settings, loaded, source, log=log, on_ready=on_ready) as agent:
            yield agent
