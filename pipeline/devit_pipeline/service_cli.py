"""The command ``devit install-service``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json

app = Application(no_args_is_help=True)
_NEXT = {
    "agent": (
        "systemd-sysusers devit.conf",
        "systemd-tmpfiles --create devit.conf",
        "systemctl daemon-reload",
        "usermod -aG devit-engines USER       # to build engines: devit build --store /var/lib/devit/engines",
        "systemctl enable --now edge-agent@NAME  # with /etc/devit/NAME.toml and /etc/devit/keys/NAME.key_secret",
    ),
    "fusion": (
        "systemctl daemon-reload",
        "systemctl enable --now fusion-node   # with /etc/devit/fleet.toml and /etc/devit/keys/node.key_secret",
    ),
}


@app.command()
def install_service(
    kind: Annotated[
        Literal["agent", "fusion"],
        typer.Argument(help="agent: edge-agent@NAME, one for each submodel; fusion: fusion-node."),
    ],
    root: Annotated[Path, typer.Option(help="Write below this folder, and look for device files there.")] = Path("/"),
    prefix: Annotated[
        Path | None, typer.Option(help="Virtual environment that the unit uses (default: that of this command).")
    ] = None,
    bundle: Annotated[Path, typer.Option(help="fusion: the bundle to serve.")] = Path("/opt/devit/current/bundle"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files, but write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the written and unchanged files as JSON.")] = False,
) -> None:
    """Write systemd units for an agent or a fusion node, and print what to run next.

    Files that are already there with the same content are not touched.
    """
    from devit_contract.errors import InputError
    from devit_pipeline.service import agent_files, fusion_files, install, remove_stale

    program = "edge-agent" if kind == "agent" else "fusion-node"
    if prefix is None:
        prefix = Path(sys.prefix)
        if not (prefix / "bin" / program).exists():
            raise InputError(f"{prefix}/bin/{program}: expected the program, found none: name its --prefix")
    wanted = agent_files(prefix, root) if kind == "agent" else fusion_files(prefix, bundle)
    if dry_run:
        for file in wanted:
            typer.echo(f"# {file.path}\n{file.content}")
        return
    written = install(wanted, root)
    removed = remove_stale(wanted, root) if kind == "agent" else []
    if as_json:
        print_json([{"path": each.path, "changed": each.was_changed} for each in written])
        return
    for each in written:
        typer.echo(f"{'written' if each.was_changed else 'unchanged'} {each.path}")
    for path in removed:
        typer.echo(f"removed {path}")
    typer.echo("next, as root:")
    for command in _NEXT[kind]:
        typer.echo(f"  {command}")
