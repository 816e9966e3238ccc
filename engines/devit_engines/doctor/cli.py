"""``devit doctor``: print what was found on this machine, and a cure for each warning."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from devit_contract.errors import InputError
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, print_table
from devit_engines.building.store import Store, default_folder
from devit_engines.cli import JsonOption, StoreOption
from devit_engines.doctor.examine import examine, refuse
from devit_engines.doctor.finding import Finding, read_machine
from devit_engines.doctor.interpreter import Interpreter
from devit_engines.doctor.upgrade import OldEngine, Upgrade, plan_upgrade

app = Application()


@app.command()
def doctor(
    root: Annotated[Path, typer.Option(metavar="DIR", help="Read the files of the machine below this folder.")] = Path(
        "/"
    ),
    store: StoreOption = None,
    upgrade_to: Annotated[
        str | None,
        typer.Option(metavar="JETPACK", help="Say instead what this other JetPack would break, e.g. 7.2.2."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can build and run, and what stands in the way.

    A cure for each warning follows the table. Exit code 0: engines can be built and run, by ONNX Runtime at least.
    The Python that is examined is the one that runs this command, whatever --root says.

    With --upgrade-to, nothing is changed either: the tables say what another JetPack would break, and which engines of
    the store it would have to build again. Exit code 1: that JetPack is not for this board or for devit.
    """
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder with a machine's files, found none: give / or the root of a disk")
    folder = default_folder() if store is None else store
    if upgrade_to is not None:
        _show_upgrade(
            plan_upgrade(read_machine(root, Interpreter.running()), upgrade_to, Store(folder).records()), as_json
        )
        return
    findings = examine(root, Interpreter.running(), folder, _free_bytes(folder))
    if as_json:
        print_json(findings)
    else:
        _show(findings)
    refuse(findings)


def _show_upgrade(upgrade: Upgrade, as_json: bool) -> None:
    if as_json:
        print_json(upgrade)
    else:
        _show(upgrade.findings)
        if upgrade.engines:
            print_table("", ["engine", "built by", "after it"], [_engine_row(engine) for engine in upgrade.engines])
        again = sum(engine.is_built_again for engine in upgrade.engines)
        taken = f"{upgrade.build_s:.0f} s" if upgrade.build_s < 120 else f"{upgrade.build_s / 60:.0f} min"
        typer.echo(
            f"{again} of {len(upgrade.engines)} engines are built again, in {taken} if they take as long as before"
        )
    refuse(upgrade.findings)


def _engine_row(engine: OldEngine) -> list[str]:
    what = f"built again, {engine.build_s:.0f} s: {engine.why}" if engine.is_built_again else engine.why
    return [f"{engine.title}, {engine.variant}", engine.built_by, what]


def _show(findings: Sequence[Finding]) -> None:
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
