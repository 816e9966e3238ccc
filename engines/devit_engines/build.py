"""From a bundle to engines on this device: build, judge, store; and load what was stored."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from devit_contract.errors import EngineError
from devit_contract.manifest import Bundle
from devit_contract.progress import Progress, no_progress
from devit_engines.backends import backend_of
from devit_engines.board import Board, detect_board
from devit_engines.engine import Engine
from devit_engines.gate import GateResult, Thresholds, digest_of_reference, reference_of, run_gate
from devit_engines.job import Job
from devit_engines.store import SCHEMA, EngineFile, EngineKey, EngineRecord, Store


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


def build_engines(
    bundle: Bundle,
    store: Store,
    *,
    submodels: Sequence[int] | None = None,
    baseline: bool = False,
    backend: str = "ort",
    threads: int = 1,
    board: Board | None = None,
    progress: Progress = no_progress,
) -> list[BuiltEngine]:
    """Build the engines that the store lacks, each judged by the bundle's golden images on this device.

    Args:
        bundle: What to build.
        store: Where the engines go.
        submodels: Indices; None builds all of them.
        baseline: Build the undivided teacher too.
        backend: Name in the table of back ends.
        threads: CPU threads of the engine while it is judged.
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
    jobs = [Job(bundle, store, device, row, place) for device in devices]
    return [_build(job, threads, progress) for job in jobs]


def load_engine(
    bundle: Bundle,
    store: Store,
    device: int | None,
    *,
    backend: str = "ort",
    threads: int = 1,
    board: Board | None = None,
) -> Engine:
    """Load what :func:`build_engines` stored for this bundle on this device.

    Args:
        bundle: The bundle that the engine belongs to.
        store: Where it was built to.
        device: Index of the submodel; None loads the baseline.
        backend: Name in the table of back ends.
        threads: CPU threads inside one operator.
        board: The device to load for; None is the one that this runs on.

    Raises:
        EngineError: It was not built here, is damaged, or was judged by other golden images; the text names the
            command that builds it.
    """
    if device is None:
        _require_baseline(bundle)
    job = Job(bundle, store, device, backend_of(backend), board or detect_board())
    keys = job.keys()
    for key in keys:
        if (store.folder / key.digest).is_dir():
            return _load(job, key, threads)
    raise EngineError(
        f"{store.folder}: expected an engine for {job.name}, found {_nearest(job, keys)}: run {job.command}"
    )


def _require_baseline(bundle: Bundle) -> None:
    if bundle.manifest.baseline is None:
        raise EngineError(f"{bundle.folder}: expected a baseline, found none: leave --baseline out")


def _load(job: Job, key: EngineKey, threads: int) -> Engine:
    record, content = job.store.read(key.digest, f"run {job.command}")
    if record.judged_by != digest_of_reference(job.bundle):
        raise EngineError(
            f"{job.store.folder / key.digest}: expected an engine judged by the golden images of {job.bundle.folder}, "
            f"found one judged by others: run {job.command}"
        )
    return job.backend.load(content, job.spec(key), threads)


def _nearest(job: Job, keys: list[EngineKey]) -> str:
    """Say what the store holds of the same graph, and in what it differs."""
    models = {key.model_sha256: key for key in keys}
    for entry in job.store.entries():
        if entry.record is not None and (wanted := models.get(entry.record.key.model_sha256)) is not None:
            other = entry.record.key
            return (
                f"one of {other.backend} {other.backend_version} for {other.device_name} on "
                f"{other.compute_capability}, this is {wanted.backend} {wanted.backend_version} for "
                f"{wanted.device_name} on {wanted.compute_capability}"
            )
    return "none"


def _build(job: Job, threads: int, progress: Progress) -> BuiltEngine:
    """Take the first rung in the store, else build rung by rung until one passes the gate."""
    start_s = time.monotonic()
    failures = []
    keys = job.keys()
    for key in keys:
        if (found := _hit(job, key)) is not None:
            return _built(job, found, True, start_s)
    for key in keys:
        with job.store.lock(key.digest, lambda: progress(job.name, 0, 1, "waiting for another build of it")):
            if (found := _hit(job, key)) is not None:  # whoever held the lock has built it
                return _built(job, found, True, start_s)
            made = _make(job, key, threads, progress)
        if isinstance(made, EngineRecord):
            return _built(job, made, False, start_s)
        failures.append(f"{key.rung}: {', '.join(made)}")
    raise EngineError(
        f"{job.name} failed its parity gate on this device ({'; '.join(failures)}), nothing was stored: "
        "make the bundle again with devit export"
    )


def _hit(job: Job, key: EngineKey) -> EngineRecord | None:
    """Find an intact engine that was judged by this bundle's golden images."""
    entry = job.store.find(key.digest)
    if entry is None or entry.damage is not None or entry.record is None:
        return None
    return entry.record if entry.record.judged_by == digest_of_reference(job.bundle) else None


def _make(job: Job, key: EngineKey, threads: int, progress: Progress) -> EngineRecord | list[str]:
    """Build, judge and store one rung; where the gate closed, the figures that missed."""
    reference = reference_of(job.bundle, job.device)
    total = len(reference.images)
    progress(job.name, 0, total, f"building {key.rung}")
    content, build_s = _engine_content(job, key)
    with job.backend.load(content, job.spec(key), threads) as engine:
        gate = run_gate(
            engine.unchecked_features, reference, lambda done: progress(job.name, done, total, "checking parity")
        )
    if failures := gate.failures(Thresholds()):
        return failures
    record = EngineRecord(
        schema=SCHEMA,
        model=f"{job.name} of {job.bundle.manifest.name}",
        key=key,
        file=EngineFile(job.backend.file_name, hashlib.sha256(content).hexdigest(), len(content)),
        build_s=build_s,
        gate=gate,
        judged_by=digest_of_reference(job.bundle),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        l4t=job.board.l4t,
    )
    job.store.keep(record, content)
    return record


def _engine_content(job: Job, key: EngineKey) -> tuple[bytes, float]:
    """Reuse an intact engine that only needs judging anew, else build; with the seconds that its build took."""
    entry = job.store.find(key.digest)
    if entry is not None and entry.damage is None:
        record, content = job.store.read(key.digest)
        return content, record.build_s
    start_s = time.monotonic()
    content = job.backend.build(job.model(key))
    return content, time.monotonic() - start_s


def _built(job: Job, record: EngineRecord, was_cached: bool, start_s: float) -> BuiltEngine:
    return BuiltEngine(
        device=job.device,
        key=record.key.digest,
        path=job.store.folder / record.key.digest,
        rung=record.key.rung,
        was_cached=was_cached,
        duration_s=time.monotonic() - start_s,
        gate=record.gate,
    )
