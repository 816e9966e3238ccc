"""``devit build`` and ``devit engines``: what they take and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from devit_contract.errors import EngineError
from devit_contract.terminal import print_table, progress_bar
from devit_engines.build import BuiltEngine, build_engines
from devit_engines.store import Entry, Store

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
engines_app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Look after the engines stored on this device."
)

StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Engine store (default: ~/.cache/devit/engines).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as err:
        raise typer.BadParameter(f"expected device numbers such as 0,2, found {text!r}") from err


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder from devit export.")],
    submodels: Annotated[
        str | None, typer.Option(metavar="N,...", help="Submodels to build, comma separated (default: all).")
    ] = None,
    baseline: Annotated[bool, typer.Option(help="Build the undivided teacher too.")] = False,
    store: StoreOption = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="CPU threads of one engine.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Build the engines of a bundle on this device, and check each against the golden images."""
    from devit_contract.manifest import Bundle

    chosen = None if submodels is None else _indices(submodels)
    opened = Store(store)
    with progress_bar(quiet=as_json) as progress:
        built = build_engines(
            Bundle(bundle), opened, submodels=chosen, baseline=baseline, threads=threads, progress=progress
        )
    if as_json:
        _print_json(built)
        return
    header = ["model", "rung", "engine", "s", "cosine min", "rel. L2", "flip rate"]
    print_table(
        f"{bundle}: engines in {opened.folder}", header, [_row(engine) for engine in built], numbers=(3, 4, 5, 6)
    )


@engines_app.command("list")
def list_engines(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the engines in the store."""
    opened = Store(store)
    entries = opened.entries()
    if as_json:
        _print_json(entries)
        return
    rows = [_entry_row(entry) for entry in entries]
    print_table(
        f"{opened.folder}: {len(rows)} engines", ["key", "model", "rung", "built by", "for", "created (UTC)"], rows
    )


@engines_app.command()
def verify(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Read every engine whole and check its digest."""
    opened = Store(store)
    entries = opened.entries()
    if as_json:
        _print_json(entries)
    else:
        rows = [[entry.digest[:12], _model_of(entry), "damaged" if entry.damage else "whole"] for entry in entries]
        print_table(f"{opened.folder}: {len(rows)} engines", ["key", "model", "state"], rows)
        for entry in entries:
            if entry.damage is not None:
                typer.echo(entry.damage, err=True)
    damaged = [entry.digest[:12] for entry in entries if entry.damage is not None]
    if damaged:
        raise EngineError(
            f"{opened.folder}: expected {len(entries)} whole engines, found {', '.join(damaged)} damaged: "
            "run devit build again, or devit engines prune"
        )


@engines_app.command()
def prune(
    keep: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="Remove engines of graphs in none of these bundles; may be repeated."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Remove damaged engines, leftovers of killed builds, and engines that no kept bundle needs."""
    from devit_contract.manifest import Bundle

    opened = Store(store)
    kept = None if keep is None else {file.sha256 for folder in keep for file in Bundle(folder).manifest.files}
    removed = 0
    for entry in opened.entries():
        reason = _reason_to_remove(entry, kept)
        if reason is not None:
            opened.remove(entry.digest)
            typer.echo(f"removed {entry.digest[:12]} ({_model_of(entry)}): {reason}")
            removed += 1
    for digest in opened.left_behind():
        with opened.lock(digest):  # which deletes the drafts of killed builds
            typer.echo(f"removed what a killed build of {digest[:12]} left behind")
    typer.echo(f"{removed} engines removed from {opened.folder}")


def _reason_to_remove(entry: Entry, kept: set[str] | None) -> str | None:
    if entry.damage is not None or entry.record is None:
        return "damaged"
    if kept is not None and entry.record.key.model_sha256 not in kept:
        return "its graph is in no kept bundle"
    return None


def _row(engine: BuiltEngine) -> list[str]:
    gate = engine.gate
    flips = f"{gate.flips} of {gate.images}" if gate.flip_rate_bound is None else f"<= {gate.flip_rate_bound:.1%}"
    return [
        "baseline" if engine.device is None else f"submodel {engine.device}",
        engine.rung,
        f"{engine.key[:12]}{' (kept)' if engine.was_cached else ''}",
        f"{engine.duration_s:.1f}",
        f"{gate.cosine_min:.5f}",
        f"{gate.relative_l2:.3%}",
        flips,
    ]


def _entry_row(entry: Entry) -> list[str]:
    if entry.record is None:
        return [entry.digest[:12], "damaged", "", "", "", ""]
    key = entry.record.key
    built_by, built_for = f"{key.backend} {key.backend_version}", f"{key.device_name}, {key.compute_capability}"
    return [
        entry.digest[:12],
        _model_of(entry),
        key.rung,
        built_by,
        built_for,
        entry.record.created[:16].replace("T", " "),
    ]


def _model_of(entry: Entry) -> str:
    return "unknown" if entry.record is None else entry.record.model


def _print_json(values: list[BuiltEngine] | list[Entry]) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(values, enc_hook=str), indent=2).decode())
