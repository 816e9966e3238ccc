"""One model becomes an engine in the store: variant after variant is built and checked here until one passes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import msgspec

from devit_contract.artefacts.gate import AccuracyResult
from devit_contract.errors import EngineError, NotBuiltError
from devit_contract.service.progress import Progress
from devit_engines.accuracy import check_accuracy, reference_of, verdict_digest
from devit_engines.board import toolkit_version
from devit_engines.building.backends import RunSettings
from devit_engines.building.kept import Choice, Kept, Tried
from devit_engines.building.latency import measure_latency, mode_name
from devit_engines.building.report import ModelReport, all_tried, is_writable
from devit_engines.building.store import SCHEMA, EngineFile, EngineKey, EngineRecord, FailedVariant, Latency, Store
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
    choice: Choice | None
    """By which it was kept; absent where it is the first variant that passed."""
    was_cached: bool
    """Whether the store held it already, built by this process or another."""
    duration_s: float
    """Time that this call took, waiting for another builder included."""
    doubt: str = ""
    """Why the choice should be made again, or was not followed, in one line; empty where all is well."""

    @property
    def digest(self) -> str:
        """Name of its folder in the store."""
        return self.record.key.digest

    @property
    def tried(self) -> tuple[Tried, ...]:
        """The variants that were tried until it was taken, itself among them."""
        return all_tried(self.record, self.choice)


def build_one(target: Target, kept: Kept, settings: RunSettings, progress: Progress) -> BuiltEngine:
    """Take the first variant in the store, else build one after the other until one passes the accuracy check.

    The first of all is the one that was ``kept``, if any.

    Raises:
        EngineError: No variant passes, or the back end fails for reasons that every variant shares.
        InputError: A graph cannot be read, or the store not be written.
        ManifestError: The bundle is broken.
    """
    start_s = time.monotonic()
    keys = kept.before(target.engine_keys())
    failed: list[FailedVariant] = []
    for place, key in enumerate(keys):
        found = _stored(target, key)
        if found is not None and not target.objection(found[0]):
            digests = {each.variant: each.digest for each in keys}  # which older records do not name
            known = {each.digest or digests.get(each.variant, ""): each for each in found[0].failed_variants}
            if all(before.digest in known for before in keys[:place]):
                if _is_measured(target, found[0], settings):
                    return _built(target, kept, found[0], True, start_s)
                keys, failed = [key], [known[before.digest] for before in keys[:place]]  # it is only measured again
            break
    for key in keys:
        made, is_cached = make_variant(target, key, settings, tuple(failed), progress)
        if isinstance(made, EngineRecord):
            return _built(target, kept, made, is_cached, start_s)
        failed.append(made)
    raise no_variant_passes(target, failed)


def make_variant(
    target: Target, key: EngineKey, settings: RunSettings, failed: tuple[FailedVariant, ...], progress: Progress
) -> tuple[EngineRecord | FailedVariant, bool]:
    """Take one variant from the store, else build, check and measure it; the second result says which.

    Raises:
        EngineError: The back end fails for reasons that every variant shares.
        InputError: A graph cannot be read, or the store not be written.
    """
    with target.store.lock(key.digest, lambda: progress(target.name, 0, 1, "waiting for another build of it")):
        found = _stored(target, key)  # another process may have built it meanwhile
        if found is not None and not target.objection(found[0]):
            record, content = found
            others = {each.digest: each for each in (*record.failed_variants, *failed)}
            if len(others) > len(record.failed_variants):
                record = msgspec.structs.replace(record, failed_variants=tuple(others.values()))
                target.store.keep(record, content)
            return _measured(target, record, content, settings), True
        return _build_variant(target, key, found, settings, failed, progress), False


def report_of(engine: BuiltEngine, store: Store) -> ModelReport:
    """Describe a model for programs."""
    choice = engine.choice
    return ModelReport(
        model=engine.model,
        digest=engine.digest,
        path=str(store.folder / engine.digest),
        was_cached=engine.was_cached,
        duration_s=engine.duration_s,
        record=engine.record,
        tried=engine.tried,
        prefer=None if choice is None else choice.prefer,
        choice=None if choice is None else choice.digest,
        doubt=engine.doubt,
    )


def no_variant_passes(target: Target, failed: Sequence[FailedVariant]) -> EngineError:
    """Say why there is no engine."""
    failures = "; ".join(f"{each.variant}: {', '.join(each.failures)}" for each in failed)
    return EngineError(
        f"{target.name}: no variant passes on this device ({failures}), nothing was stored: "
        "make the bundle again with devit export"
    )


def now_utc() -> str:
    """Give the time for a record, ``2026-01-31T12:00:00Z``."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _built(target: Target, kept: Kept, record: EngineRecord, is_cached: bool, start_s: float) -> BuiltEngine:
    is_kept = kept.key is not None and kept.key.digest == record.key.digest
    doubt = kept.doubt
    if kept.key is not None and kept.choice is not None and not is_kept:
        reasons = [each for each in record.failed_variants if each.variant == kept.key.variant]
        doubt = kept.passed_over("; ".join(reasons[0].failures) if reasons else "it does not pass", target)
    duration_s = time.monotonic() - start_s
    return BuiltEngine(target.model, record, kept.choice if is_kept else None, is_cached, duration_s, doubt)


def _stored(target: Target, key: EngineKey) -> tuple[EngineRecord, bytes] | None:
    """Read an intact engine of a key; this bundle's golden images need not have validated it."""
    try:
        record, content = target.store.read(key.digest)
    except NotBuiltError:
        return None
    return None if target.is_other_graph(record) else (record, content)


def _is_measured(target: Target, record: EngineRecord, settings: RunSettings) -> bool:
    """Whether the engine ran in the same way, and in the same power mode, when it was measured."""
    expected = target.backend.run_options(settings), mode_name()
    return (record.latency.run_options, record.power_mode) == expected


def _measured(target: Target, record: EngineRecord, content: bytes, settings: RunSettings) -> EngineRecord:
    """Measure a stored engine again, under the lock of its key, unless it has been measured so."""
    if _is_measured(target, record, settings):
        return record
    options = target.backend.run_options(settings)
    with target.backend.load(content, target.spec(record.key), settings) as engine:
        latency = measure_latency(engine, reference_of(target.bundle, target.model).images, options)
    record = msgspec.structs.replace(record, latency=latency, power_mode=mode_name())
    target.store.keep(record, content)
    return record


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
            return FailedVariant(key.variant, (str(err),), digest=key.digest)
        build_s = time.monotonic() - start_s
    accuracy, latency, notes = _checked(target, key, built.content, settings, progress)
    if failures := accuracy.failures(key.variant):
        if found is None:
            target.store.drop(key.digest)  # what lies there is damaged
        figures = accuracy if is_writable(accuracy) else None
        return FailedVariant(key.variant, tuple(failures), latency, figures, key.digest)
    engine_sha256 = hashlib.sha256(built.content).hexdigest()
    record = EngineRecord(
        schema=SCHEMA,
        title=target.title,
        key=key,
        file=EngineFile(target.backend.file_name, engine_sha256, len(built.content)),
        build_s=build_s,
        accuracy=accuracy,
        validated_against=(*verdicts[1 - _VERDICTS :], verdict_digest(target.bundle, engine_sha256)),
        created=now_utc(),
        latency=latency,
        l4t=target.board.l4t,
        power_mode=mode_name(),
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
