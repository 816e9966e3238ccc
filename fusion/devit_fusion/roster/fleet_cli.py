"""``devit fleet``: what it takes and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, print_table

if TYPE_CHECKING:
    from devit_contract.artefacts.fleet import ClientEntry, Device, Fleet
    from devit_fusion.roster.fleet_file import Kind

app = Application(
    no_args_is_help=True,
    help="Change the devices and clients of a fleet, while its node runs too; all else in fleet.toml stays as it is.",
)

Name = Annotated[str, typer.Argument(help="Name of the device or client.")]
FleetFile = Annotated[Path, typer.Option("--fleet", help="Fleet file.")]
OwnKey = Annotated[
    Path | None, typer.Option("--key", help="This client's secret key file, to ask the node whether it has the change.")
]
Submodel = Annotated[
    int | None,
    typer.Option("--submodel", min=0, help="What the device runs; of several with the same one, the rest are spares."),
]
PublicKey = Annotated[str | None, typer.Option("--public-key", help="Its public key, as devit keys new prints it.")]
Host = Annotated[str | None, typer.Option("--host", help="Where deployment reaches the device by ssh.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_FLEET = Path("fleet.toml")


@dataclass(frozen=True)
class MemberRow:
    """One line of ``devit fleet list``."""

    name: str
    kind: Kind
    submodel: int | None
    """``None`` of a client."""
    rank: int | None
    """Among the devices of that submodel: 1 serves while it is ready, the others are its spares in this order."""
    host: str
    public_key: str


@app.command("list")
def list_members(fleet: FleetFile = _FLEET, as_json: Json = False) -> None:
    """List the devices and clients of a fleet file."""
    from devit_contract.artefacts.fleet import load_fleet

    rows = _rows(load_fleet(fleet))
    if as_json:
        print_json(rows)
        return
    cells = [
        [
            row.name,
            row.kind,
            "-" if row.submodel is None else str(row.submodel),
            "-" if row.rank is None else "first" if row.rank == 1 else f"spare {row.rank - 1}",
            row.host or "-",
            row.public_key or "-",
        ]
        for row in rows
    ]
    print_table("", ["name", "kind", "model", "rank", "host", "public key"], cells, numbers=(2,))


@app.command()
def add(
    name: Name,
    submodel: Submodel = None,
    is_client: Annotated[bool, typer.Option("--client", help="Add a client rather than a device.")] = False,
    public_key: PublicKey = None,
    host: Host = None,
    fleet: FleetFile = _FLEET,
    key: OwnKey = None,
    as_json: Json = False,
) -> None:
    """Add a device, or a client, behind the others."""
    from devit_contract.artefacts.fleet import ClientEntry, Device
    from devit_contract.errors import InputError
    from devit_fusion.roster.fleet_file import add_member

    if is_client == (submodel is not None) or (is_client and host is not None):
        raise InputError("give a device's --submodel, or --client, which has no --host")
    if submodel is None:
        add_member(fleet, "client", ClientEntry(name, public_key or ""))
    else:
        add_member(fleet, "device", Device(name, submodel, public_key or "", host or ""))
    _tell(f"{name}: added", fleet, key, as_json=as_json)


@app.command()
def remove(name: Name, fleet: FleetFile = _FLEET, key: OwnKey = None, as_json: Json = False) -> None:
    """Remove a device or a client; a running node ends its link at once."""
    from devit_contract.artefacts.fleet import load_fleet
    from devit_fusion.roster.fleet_file import remove_member

    kind, _ = _find(load_fleet(fleet), name)
    remove_member(fleet, kind, name)
    _tell(f"{name}: removed", fleet, key, as_json=as_json)


@app.command()
def replace(
    name: Name,
    new_name: Annotated[str | None, typer.Option("--name", help="Name of what takes its place.")] = None,
    submodel: Submodel = None,
    public_key: PublicKey = None,
    host: Host = None,
    fleet: FleetFile = _FLEET,
    key: OwnKey = None,
    as_json: Json = False,
) -> None:
    """Put another board, key or submodel into the place of a device, or another key into that of a client.

    What is not given stays as it is.
    """
    import msgspec

    from devit_contract.artefacts.fleet import load_fleet
    from devit_contract.errors import InputError
    from devit_fusion.roster.fleet_file import replace_member

    kind, member = _find(load_fleet(fleet), name)
    given = {"name": new_name, "submodel": submodel, "public_key": public_key, "host": host}
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise InputError("nothing to replace: give --name, --submodel, --public-key or --host")
    if wrong := changes.keys() - set(member.__struct_fields__):
        raise InputError(f"{name} is a client, which has no --{min(wrong)}")
    replace_member(fleet, kind, name, msgspec.structs.replace(member, **changes))
    _tell(f"{name}: replaced", fleet, key, as_json=as_json)


def _tell(done: str, fleet: Path, key: Path | None, *, as_json: bool) -> None:
    from devit_contract.errors import InputError
    from devit_fusion.roster.asked import ask_node

    asked = ask_node(fleet, key)
    if as_json:
        print_json({"fleet": str(fleet), "done": done, "node": asked.node, "needs_restart": asked.needs_restart})
    else:
        typer.echo(f"{done} in {fleet}")
    if asked.node == "refused":
        raise InputError(asked.text)
    typer.echo(asked.text, err=True)


def _find(fleet: Fleet, name: str) -> tuple[Kind, Device | ClientEntry]:
    from devit_contract.errors import InputError

    for device in fleet.device:
        if device.name == name:
            return "device", device
    for client in fleet.client:
        if client.name == name:
            return "client", client
    known = ", ".join([*(device.name for device in fleet.device), *(client.name for client in fleet.client)])
    raise InputError(f"{name}: expected a device or client of the fleet, one of {known}")


def _rows(fleet: Fleet) -> list[MemberRow]:
    ranks: dict[int, int] = {}
    rows = []
    for device in fleet.device:
        rank = ranks[device.submodel] = ranks.get(device.submodel, 0) + 1
        rows.append(MemberRow(device.name, "device", device.submodel, rank, device.host, device.public_key))
    return rows + [MemberRow(client.name, "client", None, None, "", client.public_key) for client in fleet.client]
