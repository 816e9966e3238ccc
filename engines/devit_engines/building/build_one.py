"""One model becomes an engine in the store: variant after variant is built and checked here until one passes."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from devit_contract.errors import EngineError
from devit_contract.machine import power_mode
from devit_contract.service.progress import Progress
from devit_engines.accuracy import ENOUGH_IMAGES, AccuracyResult, check_accuracy, reference_digest, reference_of
from devit_engines.board import toolkit_version
from devit_engines.building.backends import RunSettings
from devit_engines.building.latency import measure_latency
from devit_engines.building.store import SCHEMA, EngineFile, EngineKey, EngineRecord, FailedVariant, Latency
from devit_engines.building.target import Target
from devit_engines.engine import CannotCompileError, ModelRef
from devit_engines.trt.request import Built, Report


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in the store that has passed the accuracy check of its bundle."""

    model: ModelRef
    record: EngineRecord
    was_cached: bool
    """Whether the store held it already, built by this process or another."""
    duration_s: float
    """Time that this call took, waiting for another builder included."""

    @property
    def digest(self) -> str:
        """Name of its folder in the store."""
        return self.record.key.digest


def build_one(target: Target, settings: RunSettings, progress: Progress) -> BuiltEngine:
    """Take the first variant in the store, else build one after the other until one passes the accuracy check.

    Raises:
        EngineError: No variant passes, or the back end fails for reasons that every variant shares.
        InputError: A graph cannot be read, or the store not be written.
        ManifestError: The bundle is broken.
    """
    start_s = time.monotonic()
    keys = target.engine_keys()
    for key in keys:
        if (found := _validated(target, key)) is not None:
            return BuiltEngine(target.model, found, True, time.monotonic() - start_s)
    failed: list[FailedVariant] = []
    for key in keys:
        with target.store.lock(key.digest, lambda: progress(target.name, 0, 1, "waiting for another build of it")):
            found = _validated(target, key)  # another process may have built it meanwhile
            made = found or _build_variant(target, key, settings, tuple(failed), progress)
        if isinstance(made, EngineRecord):
            return BuiltEngine(target.model, made, found is not None, time.monotonic() - start_s)
        failed.append(made)
    failures = "; ".join(f"{each.variant}: {', '.join(each.failures)}" for each in failed)
    raise EngineError(
        f"{target.name}: no variant passes on this device ({failures}), nothing was stored: "
        "make the bundle again with devit export"
    )


def _validated(target: Target, key: EngineKey) -> EngineRecord | None:
    """Find an intact engine that this bundle's golden images have validated."""
    entry = target.store.find(key.digest)
    if entry is None or entry.damage is not None or entry.record is None:
        return None
    return entry.record if entry.record.validated_against == reference_digest(target.bundle) else None


def _build_variant(
    target: Target, key: EngineKey, settings: RunSettings, failed: tuple[FailedVariant, ...], progress: Progress
) -> EngineRecord | FailedVariant:
    """Build, check and store one variant under the lock of its key, or say why it does not pass.

    An intact engine that other golden images have validated is not built again, only checked. The record names the
    faster variants that ``failed``.
    """
    entry = target.store.find(key.digest)
    if entry is not None and entry.damage is None:
        record, content = target.store.read(key.digest)
        built, build_s = Built(content, record.precision_method, record.warnings), record.build_s
    else:
        start_s = time.monotonic()
        try:
            built = target.backend.build(target.request(key), _build_report(target, key, progress))
        except CannotCompileError as err:
            return FailedVariant(key.variant, (str(err),))
        build_s = time.monotonic() - start_s
    accuracy, latency, notes = _checked(target, key, built.content, settings, progress)
    if failures := accuracy.failures():
        target.store.drop(key.digest)  # it may have passed with an older bundle's golden images
        return FailedVariant(key.variant, tuple(failures), latency)
    mode = power_mode()
    record = EngineRecord(
        schema=SCHEMA,
        title=target.title,
        key=key,
        file=EngineFile(target.backend.file_name, hashlib.sha256(built.content).hexdigest(), len(built.content)),
        build_s=build_s,
        accuracy=accuracy,
        validated_against=reference_digest(target.bundle),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        latency=latency,
        l4t=target.board.l4t,
        power_mode=None if mode is None else str(mode),
        cuda=toolkit_version(Path("/")),
        precision_method=built.precision_method,
        warnings=(*built.warnings, *notes),
        failed_variants=failed,
    )
    target.store.keep(record, built.content)
    return record


def _build_report(target: Target, key: EngineKey, progress: Progress) -> Report:
    """Turn what a build reports into progress, measured against the last build of the same model and variant here."""
    wanted = (target.title, key.variant, key.backend)
    known = [each for each in target.store.records() if (each.title, each.key.variant, each.key.backend) == wanted]
    expected_s = max(known, key=lambda record: record.created).build_s if known else None
    about = "" if expected_s is None else f" of about {expected_s:.0f} s"

    def report(elapsed_s: float, phase: str) -> None:
        done = 0.0 if expected_s is None else min(elapsed_s / max(expected_s, 1e-3), 0.99)
        progress(target.name, done, 1.0, f"building {key.variant}: {elapsed_s:.0f} s{about}, {phase}")

    report(0.0, "starting")
    return report


def _checked(
    target: Target, key: EngineKey, content: bytes, settings: RunSettings, progress: Progress
) -> tuple[AccuracyResult, Latency, tuple[str, ...]]:
    """Send the golden images through the engine, and again as replays if it runs so; a failure ends it."""
    reference = reference_of(target.bundle, target.model)
    notes: list[str] = []
    for use_graph in (False, True) if target.backend.has_graphs and settings.use_graph else (False,):
        note = f"checking {key.variant}{', replayed' if use_graph else ''}"
        with target.backend.load(content, target.spec(key), replace(settings, use_graph=use_graph)) as engine:
            report = partial(progress, target.name, total=len(reference.images), note=note)
            accuracy = check_accuracy(engine.unchecked_features, reference, report)
            latency = measure_latency(engine, reference.images)
            notes += engine.notes
        if accuracy.failures():
            break
    if accuracy.images < ENOUGH_IMAGES:
        notes.append(
            f"validated with {accuracy.images} golden images, {ENOUGH_IMAGES} are needed for a flip rate of 1 %"
        )
    return accuracy, latency, tuple(notes)
