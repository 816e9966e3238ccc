"""One rung of one graph becomes an engine in the store: built, or taken as it is, then judged on this device."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from devit_contract.machine import power_mode
from devit_contract.service.progress import Progress
from devit_engines.accuracy import ENOUGH_IMAGES, GateResult, Thresholds, digest_of_reference, reference_of, run_gate
from devit_engines.board import toolkit_version
from devit_engines.building.backends import Built, RunSettings
from devit_engines.building.store import SCHEMA, EngineFile, EngineKey, EngineRecord, FailedRung, Latency
from devit_engines.building.target import Job
from devit_engines.engine import CannotCompileError
from devit_engines.latency import measure_latency


def make_engine(
    job: Job, key: EngineKey, settings: RunSettings, failed: tuple[FailedRung, ...], progress: Progress
) -> EngineRecord | FailedRung:
    """Build, judge and store one rung, or say what kept it from passing. Call it under the lock of its key.

    Args:
        job: The graph.
        key: The rung.
        settings: How the engine is run while it is judged.
        failed: Faster rungs that did not pass, for the record.
        progress: Told while it is built, and of every golden image.

    Raises:
        EngineError: The back end fails for reasons that every rung shares.
        InputError: The store cannot be written.
    """
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
    """Send the golden images through the engine, then once more as replays where it runs so; a failure ends it."""
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
