"""``devit export``: what it takes and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from devit_contract.terminal import print_table, progress_bar

if TYPE_CHECKING:
    from devit_contract.manifest import Manifest

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def export(
    models: Annotated[Path, typer.Argument(help="Folder that devit decompose has written.")],
    out: Annotated[Path, typer.Option(help="Folder to write the bundle to; an older bundle is replaced.")] = Path(
        "bundle"
    ),
    serial: Annotated[int, typer.Option(min=1, metavar="N", help="Number of this bundle, to tell bundles apart.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON on standard output.")] = False,
) -> None:
    """Turn trained models into an ONNX bundle, the only thing that travels to devices."""
    from devit_export.bundle import export_bundle

    with progress_bar(quiet=as_json) as progress:
        manifest = export_bundle(models, out, serial=serial, progress=progress)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        return
    header = ["file", "MMACs", "MB", "torch", "nodes", "Casts", "error"]
    print_table(f"{manifest.name}: bundle {serial} in {out}", header, _rows(manifest), numbers=(1, 2, 3, 4, 5, 6))


def _rows(manifest: Manifest) -> list[list[str]]:
    rows = []
    for file in manifest.files:
        size = _short(file.size_bytes / 1e6)
        if file.rung is None:
            rows.append([file.name, "", size, "", "", "", ""])
            continue
        graph = manifest.graph(file.role, file.device)
        parity = next(parity for parity in graph.parity if parity.rung == file.rung)
        counts = [str(count) for count in (parity.nodes_before, parity.nodes_after, parity.casts)]
        rows.append([file.name, _short(graph.macs / 1e6), size, *counts, f"{parity.max_abs_error:.1e}"])
    return rows


def _short(millions: float) -> str:
    return f"{millions:.2f}" if millions < 100 else f"{millions:.0f}"
