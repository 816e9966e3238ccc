"""From a bundle to engines on this device: build, judge, store; and load what was stored."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from devit_contract.errors import EngineError
from devit_contract.manifest import Bundle
from devit_contract.progress import Progress, no_progress
from devit_engines.backends import AS_USUAL, Built, RunSettings, backend_of
from devit_engines.board import Board, detect_board, power_mode, toolkit_version
from devit_engines.engine import CannotCompileError, Engine
from devit_engines.gate import ENOUGH_IMAGES, GateResult, Thresholds, digest_of_reference, reference_of, run_gate
from devit_engines.job import Job
from devit_engines.latency import measure_latency
from devit_engines.store import SCHEMA, EngineFile, EngineKey, EngineRecord, FailedRung, Latency, Store


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in the store that has passed the gate of its bundle."""

    device: int | None
    """Index of the submodel; absent for the baseline."""
    key: str
    """Digest, 64 hex digits."""
    path: Path
    """Folder in the store."""
    rung: str
    was_cached: bool
    """It was in the store already, built by this process or another."""
    duration_s: float
    """Time that this call took, waiting for another builder included."""
    gate: GateResult
    size_bytes: int
    build_s: float
    """Time of the build alone, perhaps an earlier one."""
    latency: Latency


def build_engines(
    bundle: Bundle,
    store: Store,
    *,
    submodels: Sequence[int] | None = None,
    baseline: bool = False,
    backend: str = "auto",
    precision: str = "fp16",
    settings: RunSettings = AS_USUAL,
    board: Board | None = None,
    progress: Progress = no_progress,
) -> list[BuiltEngine]:
    """Build the engines that the store lacks, each judged by the bundle's golden images on this device.

    Args:
        bundle: What to build.
        store: Where the engines go.
        submodels: Indices; None builds all of them.
        baseline: Build the undivided teacher too.
        backend: Name in the table of back ends, or ``auto``.
        precision: ``fp16`` tries the fastest rung first; ``fp32`` takes that one alone.
        settings: How the engine is run while it is judged.
        board: The device to build for; None is the one that this runs on.
        progress: Told of every graph as a stage of its own, in golden images.

    Returns:
        The submodels in the order given, then the baseline.

    Raises:
        EngineError: A graph is not in the bundle, the back end is missing, or no rung passed the gate.
        ManifestError: The bundle is broken.
        InputError: A file cannot be read, or the store not be written.
    """
    known = range(len(bundle.manifest.submodels))
    devices: list[int | None] = [*(known if submodels is None else submodels)]
    for device in devices:
        if device not in known:
            raise EngineError(
                f"submodel {device}: expected 0 to {len(known) - 1}, which {bundle.folder} holds: choose another"
            )
    if baseline:
        _require_baseline(bundle)
        devices.append(None)
    row, place = backend_of(backend), board or detect_board()
    jobs = [Job(bundle, store, device, row, place, precision) for device in devices]
    return [_build(job, settings, progress) for job in jobs]


def load_engine(
    bundle: Bundle,
    store: Store,
    device: int | None,
    *,
    backend: str = "auto",
    precision: str = "fp16",
    settings: RunSettings = AS_USUAL,
    board: Board | None = None,
) -> Engine:
    """Load what :func:`build_engines` stored for this bundle on this device.

    Args:
        bundle: The bundle that the engine belongs to.
        store: Where it was built to.
        device: Index of the submodel; None loads the baseline.
        backend: Name in the table of back ends, or ``auto``.
        precision: ``fp16`` takes the fastest rung that has passed, ``fp32`` that one alone.
        settings: How it is run.
        board: The device to load for; None is the one that this runs on.

    Raises:
        EngineError: It was not built here, is damaged, or was judged by other golden images; the text names the
            command that builds it.
    """
    job, key = _stored(bundle, store, device, backend, precision, board)
    record, content = store.read(key.digest, f"run {job.command}")
    if record.judged_by != digest_of_reference(bundle):
        raise EngineError(
            f"{store.folder / key.digest}: expected an engine judged by the golden images of {bundle.folder}, "
            f"found one judged by others: run {job.command}"
        )
    return job.backend.load(content, job.spec(key), settings)


def stored_key(
    bundle: Bundle,
    store: Store,
    device: int | None,
    *,
    backend: str = "auto",
    precision: str = "fp16",
    board: Board | None = None,
) -> EngineKey:
    """Find the key of the engine that :func:`load_engine` loads, without loading it.

    Raises:
        EngineError: It was not built here.
    """
    return _stored(bundle, store, device, backend, precision, board)[1]


def _stored(
    bundle: Bundle, store: Store, device: int | None, backend: str, precision: str, board: Board | None
) -> tuple[Job, EngineKey]:
    """The first rung that this bundle's golden images have let pass, else the first that is there at all.

    With ``auto``, ONNX Runtime's engine will do where TensorRT has none.
    """
    if device is None:
        _require_baseline(bundle)
    rows = [backend_of(backend)]
    if backend == "auto" and rows[0].name != "ort" and backend_of("ort").is_installed:
        rows.append(backend_of("ort"))
    jobs = [Job(bundle, store, device, row, board or detect_board(), precision) for row in rows]
    found = [(job, key) for job in jobs for key in job.engine_keys() if (store.folder / key.digest).is_dir()]
    reference = digest_of_reference(bundle)
    for job, key in found:
        record = store.record(key.digest)
        if record is not None and record.judged_by == reference:
            return job, key
    if found:
        return found[0]
    raise EngineError(
        f"{store.folder}: expected an engine for {jobs[0].name}, found {_nearest(jobs[0], jobs[0].engine_keys())}: "
        f"run {jobs[0].command}"
    )


def _require_baseline(bundle: Bundle) -> None:
    if bundle.manifest.baseline is None:
        raise EngineError(f"{bundle.folder}: expected a baseline, found none: leave --baseline out")


def _nearest(job: Job, keys: list[EngineKey]) -> str:
    """Say what the store holds of the same graph, and in what it differs."""
    models = {key.model_sha256: key for key in keys}
    for record in job.store.records():
        if (wanted := models.get(record.key.model_sha256)) is not None:
            other = record.key
            return (
                f"one of {other.backend} {other.backend_version} for {other.device_name} on "
                f"{other.compute_capability}, this is {wanted.backend} {wanted.backend_version} for "
                f"{wanted.device_name} on {wanted.compute_capability}"
            )
    return "none"


def _build(job: Job, settings: RunSettings, progress: Progress) -> BuiltEngine:
    """Take the first rung in the store, else build rung by rung until one passes the gate."""
    start_s = time.monotonic()
    failed: list[FailedRung] = []
    keys = job.engine_keys()
    for key in keys:
        if (found := _hit(job, key)) is not None:
            return _built(job, found, True, start_s)
    for key in keys:
        with job.store.lock(key.digest, lambda: progress(job.name, 0, 1, "waiting for another build of it")):
            if (found := _hit(job, key)) is not None:  # whoever held the lock has built it
                return _built(job, found, True, start_s)
            made = _make(job, key, settings, tuple(failed), progress)
        if isinstance(made, EngineRecord):
            return _built(job, made, False, start_s)
        failed.append(made)
    failures = "; ".join(f"{each.rung}: {', '.join(each.failures)}" for each in failed)
    raise EngineError(
        f"{job.name}: no rung passes on this device ({failures}), nothing was stored: "
        "make the bundle again with devit export"
    )


def _hit(job: Job, key: EngineKey) -> EngineRecord | None:
    """Find an intact engine that was judged by this bundle's golden images."""
    entry = job.store.find(key.digest)
    if entry is None or entry.damage is not None or entry.record is None:
        return None
    return entry.record if entry.record.judged_by == digest_of_reference(job.bundle) else None


def _make(
    job: Job, key: EngineKey, settings: RunSettings, failed: tuple[FailedRung, ...], progress: Progress
) -> EngineRecord | FailedRung:
    """Build, judge and store one rung; or say what kept it from passing."""
    try:
        built, build_s = _engine_file(job, key, progress)
    except CannotCompileError as err:
        return FailedRung(key.rung, (str(err),))
    gate, latency, notes = _judged(job, key, built.content, settings, progress)
    if failures := gate.failures(Thresholds()):
        job.store.drop(key.digest)  # an older bundle's golden images may have let it pass
        return FailedRung(key.rung, tuple(failures), latency)
    if gate.images < ENOUGH_IMAGES:
        notes = (*notes, f"judged by {gate.images} golden images, {ENOUGH_IMAGES} tell what a flip rate of 1 % is")
    mode = power_mode()
    record = EngineRecord(
        schema=SCHEMA,
        model=f"{job.name} of {job.bundle.manifest.name}",
        key=key,
        file=EngineFile(job.backend.file_name, hashlib.sha256(built.content).hexdigest(), len(built.content)),
        build_s=build_s,
        gate=gate,
        judged_by=digest_of_reference(job.bundle),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        latency=latency,
        l4t=job.board.l4t,
        power_mode=None if mode is None else str(mode),
        cuda=toolkit_version(Path("/")),
        route=built.route,
        warnings=(*built.warnings, *notes),
        failed_rungs=failed,
    )
    job.store.keep(record, built.content)
    return record


def _judged(
    job: Job, key: EngineKey, content: bytes, settings: RunSettings, progress: Progress
) -> tuple[GateResult, Latency, tuple[str, ...]]:
    """Send the golden images through the engine, and once more as replays where it runs so; the worst of it counts."""
    reference = reference_of(job.bundle, job.device)
    notes: list[str] = []
    for use_graph in (False, True) if job.backend.has_graphs and settings.use_graph else (False,):
        words = f"checking {key.rung}{', replayed' if use_graph else ''}"
        report = partial(_say_checked, progress, job.name, len(reference.images), words)
        with job.backend.load(content, job.spec(key), replace(settings, use_graph=use_graph)) as engine:
            gate = run_gate(engine.unchecked_features, reference, report)
            latency = measure_latency(engine, reference.images)
            notes += engine.notes
        if gate.failures(Thresholds()):
            break
    return gate, latency, tuple(notes)


def _say_checked(progress: Progress, name: str, total: int, words: str, done: int) -> None:
    progress(name, done, total, words)


def _engine_file(job: Job, key: EngineKey, progress: Progress) -> tuple[Built, float]:
    """Reuse an intact engine that only needs judging anew, else build; with the seconds that its build took."""
    entry = job.store.find(key.digest)
    if entry is not None and entry.damage is None:
        record, content = job.store.read(key.digest)
        return Built(content, record.route, record.warnings), record.build_s
    expected_s = _expected_s(job, key)
    about = "" if expected_s is None else f" of about {expected_s:.0f} s"

    def report(elapsed_s: float, doing: str) -> None:
        done = 0.0 if expected_s is None else min(elapsed_s / max(expected_s, 1e-3), 0.99)
        progress(job.name, done, 1.0, f"building {key.rung}: {elapsed_s:.0f} s{about}, {doing}")

    report(0.0, "starting")
    start_s = time.monotonic()
    built = job.backend.build(job.request(key), report)
    return built, time.monotonic() - start_s


def _expected_s(job: Job, key: EngineKey) -> float | None:
    """Seconds that the last build of the same model and rung took here, of any version; None where there was none."""
    model = f"{job.name} of {job.bundle.manifest.name}"
    wanted = (model, key.rung, key.backend)
    known = [record for record in job.store.records() if (record.model, record.key.rung, record.key.backend) == wanted]
    return max(known, key=lambda record: record.created).build_s if known else None


def _built(job: Job, record: EngineRecord, was_cached: bool, start_s: float) -> BuiltEngine:
    return BuiltEngine(
        device=job.device,
        key=record.key.digest,
        path=job.store.folder / record.key.digest,
        rung=record.key.rung,
        was_cached=was_cached,
        duration_s=time.monotonic() - start_s,
        gate=record.gate,
        size_bytes=record.file.size_bytes,
        build_s=record.build_s,
        latency=record.latency,
    )
