"""``devit keys``: what it takes and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, print_table

if TYPE_CHECKING:
    from devit_contract.artefacts.fleet import Fleet
    from devit_contract.artefacts.keys import StoredKey

app = Application(no_args_is_help=True, help="Make, list and revoke CURVE keys of a fleet.")

Folder = Annotated[Path, typer.Option("--dir", help="Folder for NAME.key and NAME.key_secret.")]


@dataclass(frozen=True)
class KeyRow:
    """One line of ``devit keys list``."""

    name: str
    public_key: str
    secret_mode: str | None
    """Permissions of the secret half, octal; absent where that half is not here."""
    fleet: str | None
    """``node``, ``device`` or ``client``, with its name there if that is another; absent where no fleet has the key."""
    revoked: bool
    problem: str
    """Why the key cannot be used; empty where it can."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the device, node or client that will own the key.")],
    folder: Folder = Path("keys"),
) -> None:
    """Make a key pair and print its public half for fleet.toml."""
    from devit_contract.artefacts.keys import new_keys

    pair = new_keys(folder, name)
    typer.echo(f"{pair.public.decode()}")
    typer.echo(f"secret half: {folder / name}.key_secret (mode 0600): only {name} itself may have it", err=True)


@app.command("list")
def list_keys(
    folder: Folder = Path("keys"),
    fleet: Annotated[Path | None, typer.Option("--fleet", help="Fleet file (default: fleet.toml if there).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the keys of a folder, and of a fleet: whose they are, and which of them are revoked."""
    from devit_contract.artefacts.fleet import load_fleet
    from devit_contract.artefacts.keys import stored_keys
    from devit_contract.artefacts.revoked import RevokedKeys, revoked_path
    from devit_contract.errors import InputError

    if fleet is None and Path("fleet.toml").exists():
        fleet = Path("fleet.toml")
    if fleet is None:
        rows = _rows(stored_keys(folder), {}, frozenset())
    else:
        stored = stored_keys(folder) if folder.exists() else []
        rows = _rows(stored, _owners(load_fleet(fleet)), RevokedKeys(revoked_path(fleet)).keys)
    if as_json:
        print_json(rows)
    else:
        cells = [
            [row.name, row.public_key, row.secret_mode or "-", row.fleet or "-", "revoked" if row.revoked else "-"]
            for row in rows
        ]
        print_table("", ["name", "public key", "secret", "fleet", "revoked"], cells)
    problems = [row.problem for row in rows if row.problem]
    if problems:
        raise InputError(problems[0] + (f" (and {len(problems) - 1} more)" if problems[1:] else ""))


@app.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Device or client of the fleet.")],
    fleet: Annotated[Path, typer.Option("--fleet", help="Fleet file; revoked_keys is beside it.")] = Path("fleet.toml"),
    undo: Annotated[bool, typer.Option("--undo", help="Let the key in again.")] = False,
) -> None:
    """Lock a key out of a fleet at once: a running node cuts its link, and refuses it from then on."""
    from devit_contract.artefacts.fleet import load_fleet
    from devit_contract.artefacts.revoked import restore, revoke, revoked_path

    key = _key_to_revoke(name, load_fleet(fleet))
    path = revoked_path(fleet)
    if undo:
        done = restore(path, key)
        typer.echo(f"{name}: let in again: fusion-node accepts its key" if done else f"{name}: was not revoked")
    else:
        done = revoke(path, key, name)
        typer.echo(
            f"{name}: revoked: fusion-node cuts its link within a second and refuses its key, until --undo"
            if done
            else f"{name}: was revoked already"
        )
    typer.echo(f"written to {path}, which the node reads while it runs" if done else f"{path}: unchanged", err=True)


def _owners(fleet: Fleet) -> dict[str, tuple[str, str]]:
    """Public key to what its owner is, and its name; a node that is called so has none."""
    owners = {client.public_key: ("client", client.name) for client in fleet.client}
    owners |= {device.public_key: ("device", device.name) for device in fleet.device}
    owners |= {node.public_key: ("node", "" if node.name == "node" else node.name) for node in fleet.nodes}
    owners.pop("", None)
    return owners


def _rows(stored: list[StoredKey], owners: dict[str, tuple[str, str]], revoked: frozenset[bytes]) -> list[KeyRow]:
    """Join what lies in the folder with those keys of the fleet that do not."""
    rows = []
    for key in stored:
        kind, name = owners.get(key.public, (None, ""))
        fleet = f"{kind} {name}" if name not in ("", key.name) else kind
        mode = None if key.secret_mode is None else f"{key.secret_mode:04o}"
        rows.append(KeyRow(key.name, key.public, mode, fleet, key.public.encode() in revoked, key.problem))
    here = {key.public for key in stored}
    rows += [
        KeyRow(name or "node", public, None, kind, public.encode() in revoked, "")
        for public, (kind, name) in owners.items()
        if public not in here
    ]
    return sorted(rows, key=lambda row: row.name)


def _key_to_revoke(name: str, fleet: Fleet) -> bytes:
    """Find the public key of a device or client, which is not a node's own."""
    from devit_contract.errors import InputError

    keys = {device.name: device.public_key for device in fleet.device}
    keys |= {client.name: client.public_key for client in fleet.client}
    nodes = {node.name: node.public_key for node in fleet.nodes}
    if name not in keys and name not in nodes:
        raise InputError(f"{name}: expected a device or client of the fleet, one of {', '.join(keys)}")
    if not fleet.has_keys:
        raise InputError(f"{name}: this fleet has no keys: nothing can be revoked")
    key = keys.get(name, "")
    if key in ("", *nodes.values()):
        raise InputError(
            f"{name}: expected the key of a device or client, found the node's own: to replace that one, "
            "make another with devit keys new, and write it into fleet.toml and every agent.toml"
        )
    return key.encode()
