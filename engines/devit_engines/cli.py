"""``devit build`` and ``devit engines``: build a bundle's engines on this device, list, check and remove them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from devit_contract.artefacts.gate import AccuracyResult
from devit_contract.artefacts.manifest import Bundle
from devit_contract.artefacts.signing import MEMORY_NAME, open_admitted
from devit_contract.choices import BackendChoice, CudaChoice, HostMemory, Precision, Preference, Variant
from devit_contract.errors import EngineError
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import on_interrupt, print_json, print_next, print_table, progress_bar
from devit_engines.building.backends import BACKENDS, RunSettings, backend_of
from devit_engines.building.build_all import build_engines, find_engine
from devit_engines.building.build_one import BuiltEngine, report_of
from devit_engines.building.kept import Tried, kept_in
from devit_engines.building.prefer import Measuring
from devit_engines.building.store import Entry, Store
from devit_engines.engine import ModelRef, name_of, role_of
from devit_engines.trt.inspection import Inspection, inspect_engine

T = TypeVar("T")
app = Application(no_args_is_help=True)
engines_app = Application(no_args_is_help=True, help="Manage the engines stored on this device.")

StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Engine store (default: ~/.cache/devit/engines).")
]
SubmodelsOption = Annotated[
    str | None, typer.Option(metavar="N,...", help="Submodels to take, comma separated (default: all).")
]
BaselineOption = Annotated[bool, typer.Option("--baseline", help="Take the baseline model too.")]
BackendOption = Annotated[
    BackendChoice, typer.Option(metavar="NAME", help="tensorrt, ort, or auto: TensorRT if it is installed.")
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(metavar="fp8|int8|fp16|fp32", help="Lowest precision to take (default: fp16; with --prefer, fp8)."),
]
PreferOption = Annotated[
    Preference | None,
    typer.Option(
        metavar="latency|energy|accuracy",
        help="Build every variant, measure them in turns here, and keep the best from now on "
        "(default: what was kept before, else the first variant that passes).",
    ),
]
CudaOption = Annotated[
    CudaChoice, typer.Option(metavar="NAME", help="Way to CUDA: pycuda, cuda-bindings, ctypes, or auto.")
]
HostMemoryOption = Annotated[
    HostMemory,
    typer.Option(metavar="pinned|mapped", help="How images reach the GPU: copied, or read from the CPU's memory."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def build(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="Bundle folder from devit export.")],
    submodels: SubmodelsOption = None,
    baseline: BaselineOption = False,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    prefer: PreferOption = None,
    cuda: CudaOption = "auto",
    host_memory: HostMemoryOption = "pinned",
    store: StoreOption = None,
    threads: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="CPU threads of ONNX Runtime.")] = 1,
    allowed_signers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Refuse a bundle that none of these has signed (devit sign), or an older one."
        ),
    ] = None,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="With --allowed-signers: go back to an older bundle on purpose.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the engines of a bundle on this device, and check each with the golden images."""
    if allow_older and allowed_signers is None:
        raise typer.BadParameter("give --allow-older with --allowed-signers: only then the bundle's age is checked")
    chosen = None if submodels is None else _indices(submodels)
    opened, row = Store(store), backend_of(backend)
    source = _admitted(bundle, allowed_signers, opened, allow_older=allow_older)
    kept = "run the same command again: engines that were checked are kept"
    with on_interrupt(kept), progress_bar(quiet=as_json) as progress:
        built = build_engines(
            source,
            opened,
            submodels=chosen,
            baseline=baseline,
            backend=row.name,
            precision=precision,
            prefer=prefer,
            measuring=Measuring(context.obj),
            settings=RunSettings(threads=threads, cuda=cuda, host_memory=host_memory),
            progress=progress,
        )
    if as_json:
        print_json([report_of(engine, opened) for engine in built])
        return
    instead = ", no TensorRT here" if row.name != "tensorrt" and backend == "auto" else ""
    title = f"{bundle}: {row.title} engines{instead}, in {opened.folder}"
    if prefer is None:
        _print_built(title, built)
    else:
        _print_all_tried(title, built)
    for warning in _warnings(built):
        typer.echo(f"warning: {warning}", err=True)
    print_next("edge-agent", "--config", "agent.toml")


@engines_app.command("list")
def list_engines(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the engines in the store, and which of them are kept for what was preferred."""
    opened = Store(store)
    entries, kept_for = opened.entries(), kept_in(opened.folder)
    if as_json:
        print_json([{**asdict(entry), "kept_for": kept_for.get(entry.digest)} for entry in entries])
        return
    header = ["key", "model", "variant", "built by", "for", "created (UTC)"]
    _print_entries(opened, header, [_entry_row(entry, kept_for.get(entry.digest)) for entry in entries])


@engines_app.command()
def verify(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Read every engine whole and check its digest."""
    opened = Store(store)
    entries = opened.entries()
    if as_json:
        print_json(entries)
    else:
        rows = [[entry.digest[:12], entry.title, "damaged" if entry.damage else "whole"] for entry in entries]
        _print_entries(opened, ["key", "model", "state"], rows)
        for entry in entries:
            if entry.damage is not None:
                typer.echo(entry.damage, err=True)
    damaged = [entry.digest[:12] for entry in entries if entry.damage is not None]
    if damaged:
        raise EngineError(
            f"{opened.folder}: {len(damaged)} of {len(entries)} engines are damaged ({', '.join(damaged)}): "
            "run devit build again, or devit engines prune"
        )


@engines_app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder whose engines are inspected.")],
    submodels: SubmodelsOption = None,
    baseline: BaselineOption = False,
    store: StoreOption = None,
    cuda: CudaOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what TensorRT made of each graph: fused attention, Casts, layers of each precision."""
    opened, source = Store(store), Bundle(bundle)
    models: list[ModelRef] = [*(range(len(source.manifest.submodels)) if submodels is None else _indices(submodels))]
    found: dict[ModelRef, Inspection] = {}
    variants: dict[ModelRef, Variant] = {}
    for model in [*models, "baseline"] if baseline else models:
        stored = find_engine(source, opened, model)
        if stored.doubt:
            typer.echo(f"warning: {stored.doubt}", err=True)
        with stored.load(RunSettings(cuda=cuda, use_graph=False)) as engine:
            inspection = inspect_engine(engine)
        if inspection is None:
            raise EngineError(
                f"{name_of(model)}: an engine of ONNX Runtime has no layers to inspect: "
                "run devit build on a device with TensorRT"
            )
        found[model] = inspection
        variants[model] = stored.key.variant
    if as_json:
        print_json({name_of(model): inspection for model, inspection in found.items()})
        return
    rows = []
    for model, seen in found.items():
        blocks = source.manifest.graph(*role_of(model)).attentions
        precisions = ", ".join(f"{kind} {count}" for kind, count in seen.by_precision.items())
        fused = f"{seen.fused_attentions} of {blocks}"
        rows.append([name_of(model), variants[model], str(seen.layers), fused, str(seen.casts), precisions])
    header = ["model", "variant", "layers", "fused attention", "casts", "layers by type"]
    print_table(f"{bundle}: TensorRT engines", header, rows)


@engines_app.command()
def prune(
    keep: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="Remove engines of graphs in none of these bundles; may be repeated."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Remove engines that are damaged, of a version no longer installed, or of no kept bundle; and leftovers."""
    opened = Store(store)
    kept = None if keep is None else {file.sha256 for folder in keep for file in Bundle(folder).manifest.files}
    removed = 0
    for entry in opened.entries():
        reason = _reason_to_remove(entry, kept)
        if reason is not None:
            opened.remove(entry.digest)
            typer.echo(f"removed {entry.digest[:12]} ({entry.title}): {reason}")
            removed += 1
    for digest in opened.leftovers():
        with opened.lock(digest):  # which deletes the drafts of killed builds
            typer.echo(f"removed what a killed build of {digest[:12]} left behind")
    typer.echo(f"{_count(removed)} removed from {opened.folder}")


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as err:
        raise typer.BadParameter(f"expected submodel numbers such as 0,2, found {text!r}") from err


def _admitted(folder: Path, allowed_signers: Path | None, store: Store, *, allow_older: bool) -> Bundle:
    if allowed_signers is None:
        return Bundle(folder)
    bundle, signer = open_admitted(folder, allowed_signers, store.folder / MEMORY_NAME, allow_older=allow_older)
    typer.echo(f"{folder}: signed by {signer}", err=True)
    return bundle


def _reason_to_remove(entry: Entry, kept: set[str] | None) -> str | None:
    if entry.damage is not None or entry.record is None:
        return "damaged"
    key = entry.record.key
    row = BACKENDS.get(key.backend)
    if row is not None and row.is_installed and row.version() != key.backend_version:
        return f"built by {key.backend} {key.backend_version}, {row.version()} is installed"
    if kept is not None and key.model_sha256 not in kept:
        return "its graph is in no kept bundle"
    return None


def _print_built(title: str, built: Sequence[BuiltEngine]) -> None:
    header = ["model", "variant", "size", "built", "cosine", "flips", "p50 ms", "p99 ms"]
    print_table(title, header, [_row(engine) for engine in built], numbers=(2, 3, 4, 5, 6, 7))


def _print_all_tried(title: str, built: Sequence[BuiltEngine]) -> None:
    typer.echo(textwrap.fill(title, 80))
    for engine in built:
        _print_tried(engine)


def _warnings(built: Sequence[BuiltEngine]) -> Iterator[str]:
    for engine in built:
        if doubt := engine.record.accuracy.doubt():
            yield f"{name_of(engine.model)}: {doubt}"
        if engine.doubt:
            yield engine.doubt


def _print_tried(engine: BuiltEngine) -> None:
    """Print all variants of a model, and below the table what failed."""
    choice = engine.choice
    assert choice is not None  # with a preference there is one
    energy = choice.kept.energy
    columns: list[tuple[str, Callable[[Tried], str]]] = [
        ("variant", lambda tried: tried.variant),
        ("p50, p99 ms", lambda tried: _if(tried.latency, lambda ran: f"{ran.p50_ms:.3f}, {ran.p99_ms:.3f}")),
        ("mJ", lambda tried: _if(tried.energy, lambda cost: f"{cost.j_per_answer * 1000:.3f}")),
        ("cosine", lambda tried: _if(tried.accuracy, lambda figures: f"{figures.cosine_min:.5f}")),
        ("flips", lambda tried: _if(tried.accuracy, _flips)),
        ("MB", lambda tried: _if(tried.size_bytes, lambda size_bytes: f"{size_bytes / 1e6:.2f}")),
        ("verdict", lambda tried: tried.why if tried.verdict == "left" else tried.verdict),
    ]
    shown = [column for column in columns if column[0] != "mJ" or energy is not None]
    rows = [[text(tried) for _, text in shown] for tried in choice.tried]
    metered = "" if energy is None else f", mJ of the {energy.scope}{', SIMULATED' if energy.is_simulated else ''}"
    title = f"{choice.title}, by {choice.prefer}{metered}"
    print_table(title, [name for name, _ in shown], rows, numbers=range(1, len(shown) - 1))
    for tried in choice.tried:
        if tried.verdict in ("failed", "not built"):
            text = f"{name_of(engine.model)}, {tried.variant}, {tried.verdict}: {tried.why}"
            typer.echo(textwrap.fill(text, 80, subsequent_indent="  "))


def _if(value: T | None, text: Callable[[T], str]) -> str:
    return "" if value is None else text(value)


def _flips(accuracy: AccuracyResult) -> str:
    return f"{accuracy.flips} of {accuracy.images}" if accuracy.flips else f"<= {accuracy.flip_rate_bound:.1%}"


def _row(engine: BuiltEngine) -> list[str]:
    record, accuracy = engine.record, engine.record.accuracy
    return [
        name_of(engine.model),
        record.key.variant if engine.choice is None else f"{record.key.variant}, {engine.choice.prefer}",
        f"{record.file.size_bytes / 1e6:.2f} MB",
        "kept" if engine.was_cached else f"{record.build_s:.1f} s",
        f"{accuracy.cosine_min:.5f}",
        _flips(accuracy),
        f"{record.latency.p50_ms:.2f}",
        f"{record.latency.p99_ms:.2f}",
    ]


def _print_entries(store: Store, header: list[str], rows: list[list[str]]) -> None:
    if rows:
        print_table(f"{store.folder}: {_count(len(rows))}", header, rows)
    else:
        typer.echo(f"{store.folder}: no engines: make some with devit build")


def _count(engines: int) -> str:
    return "1 engine" if engines == 1 else f"{engines} engines"


def _entry_row(entry: Entry, kept_for: Preference | None) -> list[str]:
    if entry.record is None:
        return [entry.digest[:12], "damaged", "", "", "", ""]
    key, created = entry.record.key, entry.record.created[:16].replace("T", " ")
    built_by, built_for = f"{key.backend} {key.backend_version}", f"{key.device_name}, {key.compute_capability}"
    variant = key.variant if kept_for is None else f"{key.variant}, kept for {kept_for}"
    return [entry.digest[:12], entry.title, variant, built_by, built_for, created]
