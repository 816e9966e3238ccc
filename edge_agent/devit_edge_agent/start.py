"""From ``agent.toml`` to an agent that connects and serves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from devit_contract.machine import process_start_ns
from devit_contract.service.journal import Log, Priority, Supervisor
from devit_contract.service.lifecycle import ReloadSignal, StopSignal, as_configured
from devit_contract.service.terminal import print_json
from devit_edge_agent.agent import EdgeAgent
from devit_edge_agent.engine.loading import load, read_settings

NO_SOURCE = (
    "expected a camera, since each device of this bundle uses its own, found no source in agent.toml: until you set it "
    "and restart the agent, its features are missing from all answers"
)


def run_agent(config: Path, engine: str = "built", *, stop_with_stdin: bool = False) -> None:
    """Serve until SIGTERM, Ctrl-C or, with ``stop_with_stdin``, the end of standard input."""
    should_stop = StopSignal(with_stdin=stop_with_stdin)
    should_reload = ReloadSignal()

    def announce() -> None:
        print_json({"ready": True, "pid": os.getpid(), "config": config}, indent=0)

    with ExitStack() as stack:
        with as_configured():
            started_ns = process_start_ns()
            agent = open_agent(config, engine, log=Log("edge-agent"), on_ready=announce, started_ns=started_ns)
            opened = stack.enter_context(agent)
        opened.serve(should_stop, should_reload)


@contextmanager
def open_agent(
    path: Path,
    engine_choice: str,
    *,
    log: Log,
    on_ready: Callable[[], None] = lambda: None,
    started_ns: int | None = None,
) -> Iterator[EdgeAgent]:
    """Load and warm the engine that ``agent.toml`` names, open the source, connect.

    ``on_ready`` is called once, when the node has accepted this device. It raises what :func:`read_settings`,
    :func:`load` and :func:`~devit_edge_agent.sources.open.open_source` do.
    """
    settings = read_settings(path, engine_choice)
    loaded = load(settings, Supervisor().starting)
    with loaded.engine:
        if loaded.doubt:
            log.log(Priority.WARNING, loaded.doubt)
        line = settings.config.source
        source = None
        if loaded.hello.lacks_source:
            log.log(Priority.WARNING, NO_SOURCE)
        if line:
            from devit_edge_agent.sources.open import open_source

            source = open_source(line, loaded.preprocess, base=path.parent.absolute())
        with EdgeAgent(settings, loaded, source, log=log, on_ready=on_ready, started_ns=started_ns) as agent:
            yield agent
