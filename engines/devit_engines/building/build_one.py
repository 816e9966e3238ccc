"""One model becomes an engine in the store: variant after variant is built and checked here until one passes."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import msgspec

from devit_contract.artefacts.gate import AccuracyResult
from devit_contract.errors import EngineError, NotBuiltError
from devit_contract.machine import power_mode
from devit_contract.service.progress import Progress
from devit_engines.accuracy import check_accuracy, reference_of, verdict_digest
from devit_engines.board import toolkit_version
from devit_engines.building.backends import RunSettings
from devit_engines.building.latency import measure_latency
from devit_engines.building.store import SCHEMA, EngineFile, EngineKey, EngineRecord, FailedVariant, Latency
from devit_engines.building.target import Target
from devit_engines.engine import CannotCompileError, ModelRef
from devit_engines.trt.request import Built, Report

_VERDICTS = 16
"""How many bundles an engine remembers to have passed."""


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
        found = _stored(target, key)
        if found is not None and not target.objection(found[0]):
            if _is_measured(target, found[0], settings):
                return BuiltEngine(target.model, found[0], True, time.monotonic() - start_s)
            keys = [key]  # faster variants have failed; this one is only measured again
            break
    failed: list[FailedVariant] = []
    for key in keys:
        made: EngineRecord | FailedVariant
        with target.store.lock(key.digest, lambda: progress(target.name, 0, 1, "waiting for another build of it")):
            found = _stored(target, key)  # another process may have built it meanwhile
            is_cached = found is not None and not target.objection(found[0])
            if found is not None and is_cached:
                made = _measured(target, *found, settings)
            else:
                made = _build_variant(target, key, found, settings, tuple(failed), progress)
        if isinstance(made, EngineRecord):
            return BuiltEngine(target.model, made, is_cached, time.monotonic() - start_s)
        failed.append(made)
    failures = "; ".join(f"{each.variant}: {', '.join(each.failures)}" for each in failed)
    raise EngineError(
        f"{target.name}: no variant passes on this device ({failures}), nothing was stored: "
        "make the bundle again with devit export"
    )


def _stored(target: Target, key: EngineKey) -> tuple[EngineRecord, bytes] | None:
    """Read an intact engine of a key; this bundle's golden images need not have validated it."""
    try:
        record, content = target.store.read(key.digest)
    except NotBuiltError:
        return None
    return None if target.is_other_graph(record) else (record, content)


def _is_measured(target: Target, record: EngineRecord, settings: RunSettings) -> bool:
    """Whether the engine ran in the same way, and in the same power mode, when it was measured."""
    expected = target.backend.run_options(settings), _power_mode()
    return (record.latency.run_options, record.power_mode) == expected


def _measured(target: Target, record: EngineRecord, content: bytes, settings: RunSettings) -> EngineRecord:
    """Measure a stored engine again, under the lock of its key, unless it has been measured so."""
    if _is_measured(target, record, settings):
        return record
    options = target.backend.run_options(settings)
    with target.backend.load(content, target.spec(record.key), settings) as engine:
        latency = measure_latency(engine, reference_of(target.bundle, target.model).images, options)
    record = msgspec.structs.replace(record, latency=latency, power_mode=_power_mode())
    target.store.keep(record, content)
    return record


def _power_mode() -> str | None:
    mode = power_mode()
    return None if mode is None else str(mode)


def _build_variant(
    target: Target,
    key: EngineKey,
    found: tuple[EngineRecord, bytes] | None,
    settings: RunSettings,
    failed: tuple[FailedVariant, ...],
    progress: Progress,
) -> EngineRecord | FailedVariant:
    """Build, check and store one variant under the lock of its key, or say why it does not pass.

    What was ``found``, an intact engine that other golden images have validated, is not built again, only checked. The
    record names the faster variants that ``failed``.
    """
    verdicts: tuple[str, ...] = ()
    if found is not None:
        record, content = found
        verdicts = record.validated_against
        of_build = tuple(warning for warning in record.warnings if warning != record.accuracy.doubt())
        built, build_s = Built(content, record.precision_method, of_build), record.build_s
    else:
        start_s = time.monotonic()
        try:
            built = target.backend.build(target.request(key), _build_report(target, key, progress))
        except CannotCompileError as err:
            return FailedVariant(key.variant, (str(err),))
        build_s = time.monotonic() - start_s
    accuracy, latency, notes = _checked(target, key, built.content, settings, progress)
    if failures := accuracy.failures(key.variant):
        if found is None:
            target.store.drop(key.digest)  # what lies there is damaged
        return FailedVariant(key.variant, tuple(failures), latency)
    engine_sha256 = hashlib.sha256(built.content).hexdigest()
    record = EngineRecord(
        schema=SCHEMA,
        title=target.title,
        key=key,
        file=EngineFile(target.backend.file_name, engine_sha256, len(built.content)),
        build_s=build_s,
        accuracy=accuracy,
        validated_against=(*verdicts[1 - _VERDICTS :], verdict_digest(target.bundle, engine_sha256)),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        latency=latency,
        l4t=target.board.l4t,
        power_mode=_power_mode(),
        cuda=toolkit_version(Path("/")),
        precision_method=built.precision_method,
        warnings=tuple(dict.fromkeys((*built.warnings, *notes))),
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
            latency = measure_latency(engine, reference.images, target.backend.run_options(settings))
            notes += engine.notes
        if accuracy.failures(key.variant):
            break
    return accuracy, latency, tuple(filter(None, (*notes, accuracy.doubt())))
