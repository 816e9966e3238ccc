"""``edge-agent`` and ``devit agent``: what they take and what they print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from devit_contract import terminal

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def agent(
    config: Annotated[Path, typer.Option(help="agent.toml: the node, own name and key, bundle, sensor.")],
    engine: Annotated[
        str, typer.Option(help="built: what devit build made; null: answers at once; paced:MS: takes MS milliseconds.")
    ] = "built",
    stop_with_stdin: Annotated[
        bool, typer.Option("--stop-with-stdin", help="Stop too when standard input is closed.")
    ] = False,
) -> None:
    """Run one submodel and send its features to the fusion node, until SIGTERM or Ctrl-C.

    Prints one JSON line when the node has accepted this device; changes of the link go to stderr.
    """
    from devit_contract.stopping import StopSignal
    from devit_edge_agent.start import open_agent

    should_stop = StopSignal(with_stdin=stop_with_stdin)
    is_announced = False

    def report(text: str) -> None:
        nonlocal is_announced
        typer.echo(f"edge-agent: {text}", err=True)
        if text.startswith("ready") and not is_announced:
            is_announced = True
            typer.echo(json.dumps({"ready": True, "pid": os.getpid(), "config": str(config)}))

    with open_agent(config, engine, report) as opened:
        opened.serve(should_stop)


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "edge-agent")
