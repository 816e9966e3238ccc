"""What ``devit build --json`` prints of a model: the engine that it runs, and every variant that was tried."""

from __future__ import annotations

import math

import msgspec

from devit_contract.choices import Preference
from devit_engines.building.kept import Choice, Tried, Verdict
from devit_engines.building.store import EngineRecord, FailedVariant
from devit_engines.engine import ModelRef


class ModelReport(msgspec.Struct, frozen=True):
    """One model of the list that ``devit build --json`` prints."""

    model: ModelRef
    digest: str
    """Key of the engine that this device runs."""
    path: str
    """Its folder."""
    was_cached: bool
    """Whether the store held it, and, with a preference, all others that passed too."""
    duration_s: float
    record: EngineRecord
    tried: tuple[Tried, ...]
    """In the order of the manifest. Without a preference, the first that passes ends the list."""
    prefer: Preference | None
    """What the variant was chosen for, by this build or by one before; null where it is the first that passed."""
    choice: str | None
    """Digest in the name of the choice's file; null without one."""
    doubt: str
    """Why the choice should be made again, or was not followed; empty where all is well."""


def tried_failure(failed: FailedVariant) -> Tried:
    """Describe a variant that did not pass."""
    verdict: Verdict = "not built" if failed.latency is None else "failed"
    return Tried(failed.variant, verdict, "; ".join(failed.failures), accuracy=failed.accuracy, latency=failed.latency)


def all_tried(record: EngineRecord, choice: Choice | None) -> tuple[Tried, ...]:
    """List the variants that were tried until this engine was made."""
    if choice is not None and choice.kept.digest == record.key.digest:
        return choice.tried
    kept = Tried(
        record.key.variant,
        "kept",
        digest=record.key.digest,
        size_bytes=record.file.size_bytes,
        accuracy=record.accuracy,
        latency=record.latency,
    )
    return (*map(tried_failure, record.failed_variants), kept)


def is_writable(figures: msgspec.Struct) -> bool:
    """Whether all numbers are finite: JSON has no others."""
    return all(math.isfinite(value) for value in msgspec.structs.astuple(figures))
