"""``devit doctor``: print what was found on this machine, and a cure for each warning."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from devit_contract.errors import InputError
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, print_table
from devit_engines.building.store import default_folder
from devit_engines.cli import JsonOption, StoreOption
from devit_engines.doctor.examine import examine, refuse
from devit_engines.doctor.finding import Finding
from devit_engines.doctor.interpreter import Interpreter

app = Application()


@app.command()
def doctor(
    root: Annotated[Path, typer.Option(metavar="DIR", help="Read the files of the machine below this folder.")] = Path(
        "/"
    ),
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can build and run, and what stands in the way.

    A cure for each warning follows the table. Exit code 0: engines can be built and run, by ONNX Runtime at least.
    The Python that is examined is the one that runs this command, whatever --root says.
    """
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder with a machine's files, found none: give / or the root of a disk")
    folder = default_folder() if store is None else store
    findings = examine(root, Interpreter.running(), folder, _free_bytes(folder))
    if as_json:
        print_json(findings)
    else:
        _show(findings)
    refuse(findings)


def _show(findings: list[Finding]) -> None:
    rows = [[finding.name, finding.found, finding.state] for finding in findings]
    print_table("", ["what", "found", "state"], rows)
    # Whole lines below the table, as a table would break the commands in them.
    for finding in findings:
        if finding.state != "good":
            typer.echo(f"{finding.name}: {finding.cure}")


def _free_bytes(folder: Path) -> int:
    """Room on the disk where a folder is, or would be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
