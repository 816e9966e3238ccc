"""The command ``devit pair``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.service.application_cli import Application
from devit_contract.wire.pairing import DEFAULT_PORT

if TYPE_CHECKING:
    from devit_fusion.pairing.pair import Invitation

app = Application(no_args_is_help=True)


@app.command()
def pair(
    bundle: Annotated[Path, typer.Option(help="Bundle folder, of which the device gets its part.")],
    fleet: Annotated[Path, typer.Option(help="Fleet file, to which the device is added.")] = Path("fleet.toml"),
    submodel: Annotated[
        int | None, typer.Option(min=0, help="Submodel of the device (default: the first one without a device).")
    ] = None,
    engines: Annotated[
        Path | None, typer.Option(help="Engine store to offer: an equal board takes its engine from there.")
    ] = None,
    allowed_signers: Annotated[
        Path | None, typer.Option(help="OpenSSH's file of allowed signers, for the device to keep to.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to open, 0 for a free one.")] = DEFAULT_PORT,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait for the device.")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a line with the code, one at the end.")] = False,
) -> None:
    """Show a short code by which one fresh device joins the fleet, and wait for that device.

    Runs beside the node, for as long as it takes: until a device has joined, the time is over, or Ctrl-C. A wrong code
    is refused; after three there is a pause, which grows.
    """
    from devit_contract.extras import require
    from devit_contract.service.journal import Log
    from devit_contract.service.terminal import print_json, tell

    require("pair")
    require("fusion")
    from devit_fusion.pairing.offer import Offer
    from devit_fusion.pairing.pair import pair as wait_for_device

    def invite(invitation: Invitation) -> None:
        if as_json:
            print_json({"code": invitation.code, "address": invitation.address, "run": invitation.command}, indent=0)
        else:
            typer.echo(f"code {invitation.code}: on the device, run\n\n  {invitation.command}\n")

    offer = Offer(fleet, bundle, submodel=submodel, engines=engines, allowed_signers=allowed_signers)
    if offer.is_full:
        tell("every submodel has a device: one of them may join again; a spare needs --submodel")
    joined = wait_for_device(offer, port, timeout, Log("devit-pair"), invite)
    device = joined.device
    if as_json:
        print_json({"name": device.name, "submodel": device.submodel, "address": joined.address}, indent=0)
    else:
        typer.echo(f"{device.name} has joined from {joined.address} as submodel {device.submodel}")
        typer.echo(f"written to {fleet}, which a running node reads again by itself", err=True)
