"""The command ``edge-agent``, which is ``devit agent`` too."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from devit_contract.service import terminal
from devit_contract.service.application_cli import Application

app = Application(no_args_is_help=True)


@app.command()
def agent(
    config: Annotated[Path, typer.Option(help="agent.toml: the node, own name and key, bundle, sensor.")],
    engine: Annotated[
        str,
        typer.Option(
            help="built: what devit build made; built:MS: the same, slowed down; null: answers at once; "
            "paced:MS, busy:MS: waits, or keeps a core busy."
        ),
    ] = "built",
    stop_with_stdin: Annotated[
        bool, typer.Option("--stop-with-stdin", help="Also stop when standard input is closed.")
    ] = False,
) -> None:
    """Run one submodel and send its features to the fusion node, until SIGTERM or Ctrl-C.

    Prints one JSON line when the node has accepted this device; events go to the journal, or to stderr. SIGHUP loads
    the engine again, without a lost frame, and keeps the old one if the new one is not good.
    """
    from devit_contract.service.journal import Log
    from devit_contract.service.lifecycle import ReloadSignal, StopSignal, as_configured
    from devit_edge_agent.start import open_agent

    should_stop = StopSignal(with_stdin=stop_with_stdin)
    should_reload = ReloadSignal()

    def announce() -> None:
        terminal.print_json({"ready": True, "pid": os.getpid(), "config": config}, indent=0)

    with ExitStack() as stack:
        with as_configured():
            opened = stack.enter_context(open_agent(config, engine, log=Log("edge-agent"), on_ready=announce))
        opened.serve(should_stop, should_reload)


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "edge-agent")
