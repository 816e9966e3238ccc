"""From a bundle to engines on this device: build, judge, store; and load what was stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Precision
from devit_contract.errors import EngineError, NotBuiltError
from devit_contract.service.progress import Progress, no_progress
from devit_engines.accuracy import GateResult, digest_of_reference
from devit_engines.board import Board, detect_board
from devit_engines.building.backends import AS_USUAL, RunSettings, backend_of
from devit_engines.building.build_one import make_engine
from devit_engines.building.store import EngineKey, EngineRecord, FailedRung, Latency, Store
from devit_engines.building.target import Job
from devit_engines.engine import Engine


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
    precision: Precision = "fp16",
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
    precision: Precision = "fp16",
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
        NotBuiltError: It was not built here, is damaged, or was judged by other golden images; the text names the
            command that builds it.
        EngineError: The back end cannot load it.
    """
    job, key = _stored(bundle, store, device, backend, precision, board)
    record, content = store.read(key.digest, f"run {job.command}")
    if record.judged_by != digest_of_reference(bundle):
        raise NotBuiltError(
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
    precision: Precision = "fp16",
    board: Board | None = None,
) -> EngineKey:
    """Find the key of the engine that :func:`load_engine` loads, without loading it.

    Raises:
        NotBuiltError: It was not built here.
    """
    return _stored(bundle, store, device, backend, precision, board)[1]


def _stored(
    bundle: Bundle, store: Store, device: int | None, backend: str, precision: Precision, board: Board | None
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
    raise NotBuiltError(
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
            made = make_engine(job, key, settings, tuple(failed), progress)
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
