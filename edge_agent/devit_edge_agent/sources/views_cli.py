"""``devit views``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import progress_bar

app = Application(no_args_is_help=True)


@app.command()
def views(
    bundle: Annotated[Path, typer.Argument(help="Bundle whose devices have own views.")],
    pictures: Annotated[list[str], typer.Argument(help="Pictures of whole scenes, folders of them, or patterns.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write a folder for each device to.")] = Path(
        "views"
    ),
) -> None:
    """Simulate the cameras of a cell with own views: write what each device sees of each picture.

    Give folder:DIR/0 to the first device as its source, folder:DIR/1 to the second one, and so on. The node's frames
    are numbered, and all devices take the picture of the same number.
    """
    from devit_contract.artefacts.manifest import Bundle
    from devit_contract.cli import picture_paths
    from devit_edge_agent.sources.views import write_views

    with progress_bar() as progress:
        folders = write_views(Bundle(bundle), picture_paths(pictures), out, progress)
    for folder in folders:
        typer.echo(f'source = "folder:{folder.absolute()}"')
