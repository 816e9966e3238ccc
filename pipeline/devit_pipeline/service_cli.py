"""``devit install-service``."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


class Kind(str, enum.Enum):
    """The two services."""

    AGENT = "agent"
    FUSION = "fusion"


_NEXT = {
    Kind.AGENT: (
        "systemd-sysusers devit.conf",
        "systemd-tmpfiles --create devit.conf",
        "systemctl daemon-reload",
        "usermod -aG devit-engines USER       # who builds engines: devit build --store /var/lib/devit/engines",
        "systemctl enable --now edge-agent@NAME  # with /etc/devit/NAME.toml and /etc/devit/keys/NAME.key_secret",
    ),
    Kind.FUSION: (
        "systemctl daemon-reload",
        "systemctl enable --now fusion-node   # with /etc/devit/fleet.toml and /etc/devit/keys/node.key_secret",
    ),
}


@app.command()
def install_service(
    kind: Annotated[Kind, typer.Argument(help="agent: edge-agent@NAME, one a submodel; fusion: fusion-node.")],
    root: Annotated[Path, typer.Option(help="Write below this folder, and look for devices there.")] = Path("/"),
    prefix: Annotated[
        Path | None, typer.Option(help="Virtual environment that the unit runs (default: the one of this command).")
    ] = None,
    bundle: Annotated[Path, typer.Option(help="fusion: the bundle that is served.")] = Path(
        "/opt/devit/current/bundle"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what became of each file as JSON.")] = False,
) -> None:
    """Write systemd's files for an agent or a fusion node, and print what to run next.

    Files that would not change are left alone.
    """
    from devit_contract.errors import InputError
    from devit_pipeline.service import agent_files, fusion_files, install

    program = "edge-agent" if kind is Kind.AGENT else "fusion-node"
    if prefix is None:
        prefix = Path(sys.prefix)
        if not (prefix / "bin" / program).exists():
            raise InputError(f"{prefix}/bin/{program}: expected the program, found none: name its --prefix")
    wanted = agent_files(prefix, root) if kind is Kind.AGENT else fusion_files(prefix, bundle)
    if dry_run:
        for file in wanted:
            typer.echo(f"# {file.path}\n{file.content}")
        return
    written = install(wanted, root)
    if as_json:
        typer.echo(json.dumps([{"path": str(each.path), "changed": each.was_changed} for each in written], indent=2))
        return
    for each in written:
        typer.echo(f"{'written' if each.was_changed else 'unchanged'} {each.path}")
    typer.echo("next, as root:")
    for command in _NEXT[kind]:
        typer.echo(f"  {command}")
