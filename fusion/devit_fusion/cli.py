"""The command ``fusion-node``, which is ``devit fuse`` too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from devit_contract.service import terminal
from devit_contract.service.application_cli import Application

app = Application(no_args_is_help=True)


@app.command()
def fuse(
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")],
    fleet: Annotated[Path, typer.Option(help="Fleet file: devices, clients, addresses, deadline.")],
    key: Annotated[Path | None, typer.Option(help="The node's secret key file; none without encryption.")] = None,
    name: Annotated[str, typer.Option(help="Of several nodes without keys: which one this is in the fleet file.")] = "",
    stop_with_stdin: Annotated[
        bool, typer.Option("--stop-with-stdin", help="Also stop when standard input is closed.")
    ] = False,
) -> None:
    """Join the features of all devices into answers, until SIGTERM or Ctrl-C.

    Prints one JSON line with its addresses when both ports are open. Devices and clients change as the fleet file does,
    by themselves and on SIGHUP.
    """
    from devit_fusion.node import run_node

    run_node(bundle, fleet, key, name=name, stop_with_stdin=stop_with_stdin)


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "fusion-node")
