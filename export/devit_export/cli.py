"""The commands ``devit export`` and ``devit sign``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from devit_contract.extras import require
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import on_interrupt, print_json, print_next, print_table, progress_bar
from devit_export import HEADROOM

if TYPE_CHECKING:
    from devit_contract.artefacts.manifest import Manifest

app = Application(no_args_is_help=True)
sign_app = Application(no_args_is_help=True)

Identity = Annotated[
    str, typer.Option(metavar="NAME", help="Name of the signer in the devices' files of allowed signers.")
]


@app.command()
def export(
    models: Annotated[Path, typer.Argument(help="Models folder from devit decompose or devit assemble.")],
    out: Annotated[Path, typer.Option(help="Folder to write the bundle to.")] = Path("bundle"),
    force: Annotated[bool, typer.Option("--force", help="Replace the finished bundle in --out.")] = False,
    serial: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Serial number; devices that require signatures reject a lower one."),
    ] = 1,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the bundle with this OpenSSH key file.")
    ] = None,
    headroom: Annotated[
        float,
        typer.Option(
            min=1.0,
            metavar="FACTOR",
            help="How many times the largest numbers of the golden images must fit into FP16; others stay in FP32.",
        ),
    ] = HEADROOM,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="Make a variant in FP8 too, for TensorRT on a GPU from SM 8.9 on, as in Thor.")
    ] = False,
    identity: Identity = "devit",
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON on standard output.")] = False,
) -> None:
    """Turn trained models into an ONNX bundle, the only thing that travels to devices."""
    require("export")
    from devit_contract.artefacts.files import refuse_finished
    from devit_contract.artefacts.manifest import FILE_NAME
    from devit_contract.artefacts.signing import check_signer, sign_manifest, signer_line
    from devit_export.bundle import export_bundle

    refuse_finished(out, FILE_NAME, force=force)
    if sign is not None:
        check_signer(sign, identity)
    again = on_interrupt("nothing was written; run the same command again")
    with again, progress_bar(quiet=as_json) as progress:
        manifest = export_bundle(models, out, serial=serial, headroom=headroom, fp8=fp8, progress=progress)
    for reason in manifest.left_out:
        typer.echo(reason, err=True)
    if sign is not None:
        signature = sign_manifest(out, sign, identity)
        typer.echo(f"signed; for a device's allowed signers: {signer_line(signature, identity)}", err=True)
    if as_json:
        print_json(manifest)
        return
    header = ["file", "MMACs", "MB", "torch", "nodes", "Casts", "error"]
    print_table(f"{manifest.name}: bundle {serial} in {out}", header, _rows(manifest), numbers=(1, 2, 3, 4, 5, 6))
    print_next("devit", "build", out, where=", here or on a device with a copy of it")


@sign_app.command("sign")
def sign_bundle(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder from devit export.")],
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="OpenSSH key file; the public one if ssh-agent holds the key.")
    ],
    identity: Identity = "devit",
) -> None:
    """Sign a bundle, for devices that accept only signed ones; print the line for their files of allowed signers."""
    from devit_contract.artefacts.signing import sign_manifest, signer_line

    signature = sign_manifest(bundle, key, identity)
    typer.echo(signer_line(signature, identity))
    typer.echo(f"signature: {signature}; above, the line for a device's allowed signers", err=True)


def _rows(manifest: Manifest) -> list[list[str]]:
    rows = []
    for file in manifest.files:
        size = _short((file.size_bytes or 0) / 1e6)
        if file.variant is None:
            rows.append([file.name, "", size, "", "", "", ""])
            continue
        graph = manifest.graph(file.role, file.device)
        parity = next(parity for parity in graph.parity if parity.variant == file.variant)
        counts = [str(count) for count in (parity.nodes_before, parity.nodes_after, parity.casts)]
        rows.append([file.name, _short(graph.macs / 1e6), size, *counts, f"{parity.max_abs_error:.1e}"])
    return rows


def _short(millions: float) -> str:
    return f"{millions:.2f}" if millions < 100 else f"{millions:.0f}"
