"""The command ``edge-agent``, which is ``devit agent`` too."""

from __future__ import annotations

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
    from devit_edge_agent.start import run_agent

    run_agent(config, engine, stop_with_stdin=stop_with_stdin)


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "edge-agent")
