"""``devit build`` and ``devit engines``: what they take and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from devit_contract.choices import BackendChoice, CudaChoice, HostMemory, Precision
from devit_contract.errors import EngineError
from devit_contract.service.terminal import print_json, print_table, progress_bar
from devit_engines.building.backends import BACKENDS, RunSettings, backend_of
from devit_engines.building.build_all import BuiltEngine, build_engines, load_engine
from devit_engines.building.store import Entry, Store

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
engines_app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Look after the engines stored on this device."
)


StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="Engine store (default: ~/.cache/devit/engines).")
]
BackendOption = Annotated[
    BackendChoice, typer.Option(metavar="NAME", help="tensorrt, ort, or auto: TensorRT where it is installed.")
]
PrecisionOption = Annotated[
    Precision, typer.Option(metavar="fp16|fp32", help="fp16 tries the fastest rung first, fp32 takes that one alone.")
]
CudaOption = Annotated[
    CudaChoice, typer.Option(metavar="NAME", help="Way to CUDA: pycuda, cuda-bindings, ctypes, or auto.")
]
HostMemoryOption = Annotated[
    HostMemory, typer.Option(metavar="pinned|mapped", help="How images reach the GPU: copied, or read where they lie.")
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
    backend: BackendOption = "auto",
    precision: PrecisionOption = "fp16",
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
    """Build the engines of a bundle on this device, and check each against the golden images."""
    from devit_contract.artefacts.manifest import Bundle
    from devit_contract.artefacts.signing import MEMORY_NAME, open_admitted

    if allow_older and allowed_signers is None:
        raise typer.BadParameter("give --allow-older with --allowed-signers: nothing else looks at a bundle's age")
    chosen = None if submodels is None else _indices(submodels)
    opened = Store(store)
    row = backend_of(backend)
    if allowed_signers is None:
        source = Bundle(bundle)
    else:
        source, signer = open_admitted(bundle, allowed_signers, opened.folder / MEMORY_NAME, allow_older=allow_older)
        typer.echo(f"{bundle}: signed by {signer}", err=True)
    with progress_bar(quiet=as_json) as progress:
        built = build_engines(
            source,
            opened,
            submodels=chosen,
            baseline=baseline,
            backend=row.name,
            precision=precision,
            settings=RunSettings(threads=threads, cuda=cuda, host_memory=host_memory),
            progress=progress,
        )
    if as_json:
        print_json(built)
        return
    header = ["model", "rung", "size", "built", "cosine", "flips", "p50 ms", "p99 ms"]
    instead = ", no TensorRT here" if row.name != "tensorrt" and backend == "auto" else ""
    title = f"{bundle}: {row.title} engines{instead}, in {opened.folder}"
    print_table(title, header, [_row(engine) for engine in built], numbers=(2, 3, 4, 5, 6, 7))


@engines_app.command("list")
def list_engines(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the engines in the store."""
    opened = Store(store)
    entries = opened.entries()
    if as_json:
        print_json(entries)
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
        print_json(entries)
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
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder whose engines are looked at.")],
    submodels: Annotated[
        str | None, typer.Option(metavar="N,...", help="Submodels to look at, comma separated (default: all).")
    ] = None,
    baseline: Annotated[bool, typer.Option(help="Look at the undivided teacher too.")] = False,
    store: StoreOption = None,
    cuda: CudaOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what TensorRT made of each graph: fused attention, Casts, layers of each precision."""
    from devit_contract.artefacts.manifest import Bundle
    from devit_engines.trt.engine import TrtEngine
    from devit_engines.trt.inspection import inspect_plan

    opened, source = Store(store), Bundle(bundle)
    devices: list[int | None] = [*(range(len(source.manifest.submodels)) if submodels is None else _indices(submodels))]
    found = {}
    for device in [*devices, None] if baseline else devices:
        name = "baseline" if device is None else f"submodel {device}"
        with load_engine(source, opened, device, settings=RunSettings(cuda=cuda, use_graph=False)) as engine:
            if not isinstance(engine, TrtEngine):
                raise EngineError(
                    f"{name}: expected a TensorRT engine, found one of ONNX Runtime, which has no layers to look at: "
                    "run devit build on a device with TensorRT"
                )
            blocks = source.manifest.graph("baseline" if device is None else "submodel", device).attentions
            found[name] = (inspect_plan(engine.information(), name), blocks)
    if as_json:
        plain = {name: seen for name, (seen, _) in found.items()}
        print_json(plain)
        return
    rows = []
    for name, (seen, blocks) in found.items():
        precisions = ", ".join(f"{kind} {count}" for kind, count in seen.by_precision.items())
        rows.append([name, str(seen.layers), f"{seen.fused_attentions} of {blocks}", str(seen.casts), precisions])
    print_table(f"{bundle}: TensorRT engines", ["model", "layers", "fused attention", "casts", "layers by type"], rows)


@engines_app.command()
def prune(
    keep: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="Remove engines of graphs in none of these bundles; may be repeated."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Remove engines that are damaged, of a version no longer installed, or of no kept bundle; and leftovers."""
    from devit_contract.artefacts.manifest import Bundle

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
    installed = _installed_version(entry.record.key.backend)
    if installed is not None and installed != entry.record.key.backend_version:
        return f"built by {entry.record.key.backend} {entry.record.key.backend_version}, {installed} is installed"
    if kept is not None and entry.record.key.model_sha256 not in kept:
        return "its graph is in no kept bundle"
    return None


def _installed_version(backend: str) -> str | None:
    row = BACKENDS.get(backend)
    return row.version() if row is not None and row.is_installed else None


def _row(engine: BuiltEngine) -> list[str]:
    gate = engine.gate
    flips = f"{gate.flips} of {gate.images}" if gate.flip_rate_bound is None else f"<= {gate.flip_rate_bound:.1%}"
    return [
        "baseline" if engine.device is None else f"submodel {engine.device}",
        engine.rung,
        f"{engine.size_bytes / 1e6:.2f} MB",
        "kept" if engine.was_cached else f"{engine.build_s:.1f} s",
        f"{gate.cosine_min:.5f}",
        flips,
        f"{engine.latency.p50_ms:.2f}",
        f"{engine.latency.p99_ms:.2f}",
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
