"""The command ``fusion-node``, which is ``devit fuse`` too."""

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
def fuse(
    bundle: Annotated[Path, typer.Option(help="Bundle folder.")],
    fleet: Annotated[Path, typer.Option(help="Fleet file: devices, clients, addresses, deadline.")],
    key: Annotated[Path | None, typer.Option(help="The node's secret key file; none without encryption.")] = None,
    stop_with_stdin: Annotated[
        bool, typer.Option("--stop-with-stdin", help="Also stop when standard input is closed.")
    ] = False,
) -> None:
    """Join the features of all devices into answers, until SIGTERM or Ctrl-C.

    Prints one JSON line with its addresses when both ports are open.
    """
    from devit_contract.artefacts.fleet import load_fleet
    from devit_contract.artefacts.keys import load_keys
    from devit_contract.artefacts.manifest import Bundle
    from devit_contract.artefacts.revoked import RevokedKeys, revoked_path
    from devit_contract.descriptors import keep_reserve
    from devit_contract.service.lifecycle import StopSignal, as_configured
    from devit_fusion.node import FusionNode

    should_stop = StopSignal(with_stdin=stop_with_stdin)
    keep_reserve()
    with ExitStack() as stack:
        with as_configured():
            keys = load_keys(key) if key is not None else None
            revoked = RevokedKeys(revoked_path(fleet))
            node = stack.enter_context(FusionNode(Bundle(bundle), load_fleet(fleet), keys, revoked=revoked))
        ready = {"ready": True, "pid": os.getpid(), "endpoint": node.endpoint, "client_endpoint": node.client_endpoint}
        terminal.print_json(ready, indent=0)
        node.serve(should_stop)


def main() -> NoReturn:
    """Run as a console script."""
    terminal.run(app, "fusion-node")
