"""The command ``devit record``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from devit_contract.errors import InputError
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, tell

app = Application(no_args_is_help=True)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LEAST_BYTES = 4_000_000


@app.command()
def record(
    fleet: Annotated[Path, typer.Option(help="Fleet file of the node, with [record].")],
    out: Annotated[Path, typer.Option(help="Folder for the recordings.")],
    images: Annotated[
        Literal["whole", "digest"], typer.Option(help="Keep clients' images, or their SHA-256 alone.")
    ] = "whole",
    max_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Bytes that the folder may take, as 500MB or 20GB; the oldest go first.")
    ] = "10GB",
    duration: Annotated[float | None, typer.Option(metavar="S", help="Seconds; default: until Ctrl-C.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was recorded as JSON.")] = False,
) -> None:
    """Write what the node on this machine sees and does to MCAP files, until Ctrl-C or the node's end.

    The node goes on whatever becomes of the recording. Play it again with devit replay.
    """
    import time

    from devit_contract.artefacts.fleet import load_fleet
    from devit_contract.extras import require
    from devit_contract.service.lifecycle import StopSignal
    from devit_fusion.record.file import Ring
    from devit_fusion.record.recorder import Recorder
    from devit_fusion.record.recorder import record as record_all

    require("record")
    path = load_fleet(fleet).record.socket
    if not path:
        where = 'add [record] with socket = "/run/fusion-node/record.sock"'
        raise InputError(f"{fleet}: nobody may record this node: {where}, and start the node again")
    max_bytes = size_bytes(max_size)
    with Recorder(Path(path)) as recorder:
        ring = Ring(out, max_bytes)
        tell(f"recording to {out}, at most {max_size}: Ctrl-C ends it")
        should_stop, start_s = StopSignal(), time.monotonic()
        done = record_all(
            recorder,
            ring,
            images,
            lambda: should_stop() or (duration is not None and time.monotonic() - start_s >= duration),
        )
    if as_json:
        print_json({"folder": out, "files": ring.files, "requests": done.requests, "lost": done.lost})
    else:
        lost = f", {done.lost} records lost" if done.lost else ""
        typer.echo(f"{out}: {done.requests} requests in {ring.files} files{lost}: play them with devit replay {out}")


def size_bytes(text: str) -> int:
    """Read a size with its unit.

    >>> size_bytes("20GB"), size_bytes("500 MB")
    (20000000000, 500000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B", text)
    found = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if found < _LEAST_BYTES:
        raise InputError(f"--max-size {text}: expected 4MB or more, as in 500MB or 20GB")
    return found
