"""The command ``devit join``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devit_contract.service.application_cli import Application

app = Application(no_args_is_help=True)


@app.command()
def join(
    node: Annotated[str, typer.Argument(help="The node, HOST or HOST:PORT, as devit pair shows it.")],
    code: Annotated[str, typer.Argument(help="The code that devit pair shows.")],
    name: Annotated[str | None, typer.Option(help="Name of this device (default: that of the machine).")] = None,
    folder: Annotated[Path, typer.Option("--dir", help="For agent.toml, keys and bundle.")] = Path(),
    store: Annotated[Path | None, typer.Option(help="Engine store (default: the user's own).")] = None,
    allowed_signers: Annotated[
        Path | None, typer.Option(help="OpenSSH's file of allowed signers (default: what the node gives).")
    ] = None,
    start: Annotated[
        bool, typer.Option("--start", help="As root: keep all where edge-agent@NAME looks, and start that service.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an agent.toml that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make this machine a device of the fleet whose node shows CODE.

    Makes a key, fetches this device's part of the bundle, writes agent.toml, and takes the engine of an equal board
    from the node or builds one; in either case the golden images go through it here.
    """
    import os
    import socket

    from devit_contract.errors import InputError
    from devit_contract.extras import require
    from devit_contract.service.terminal import on_interrupt, print_json, print_next, progress_bar, tell

    require("pair")
    from devit_edge_agent.join.join import Joiner
    from devit_edge_agent.join.place import Place, prepare_service, start_service

    name = name or socket.gethostname().partition(".")[0].lower()
    if start:
        if os.geteuid() != 0:
            raise InputError("--start: writes to /etc/devit and starts a service: run it with sudo")
        prepare_service()
    place = Place.of_service(name) if start else Place.of_folder(folder, store)
    joiner = Joiner(node, code, name, place, allowed_signers, force)
    advice = f"run devit join again, or, once {place.config} is there, devit build"
    with on_interrupt(advice), progress_bar() as progress:
        report = joiner.run(progress, tell)
    if start:
        start_service(name)
    if as_json:
        print_json(report)
        return
    typer.echo(f"{report.name}: submodel {report.submodel}, engine {report.engine}, {report.engine_origin}")
    if report.signer:
        typer.echo(f"bundle signed by {report.signer}")
    if start:
        typer.echo(f"edge-agent@{name} serves")
    else:
        print_next("edge-agent", "--config", report.config)
