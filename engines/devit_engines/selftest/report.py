"""Build the shipped bundle here, and report the result for people."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import BackendChoice, Precision
from devit_contract.errors import DevitError
from devit_contract.service.progress import Progress
from devit_engines.building.backends import RunSettings, backend_of
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.build_one import BuiltEngine
from devit_engines.building.store import Store
from devit_engines.doctor.finding import Finding
from devit_engines.engine import name_of
from devit_engines.trt.inspection import Inspection, inspect_engine

BUNDLE = Path(__file__).with_name("bundle")


@dataclass(frozen=True)
class Tested:
    """One model that passed the accuracy check here."""

    engine: BuiltEngine
    inspection: Inspection | None
    """Of a TensorRT engine."""


@dataclass(frozen=True)
class SelfTest:
    """The content of a report."""

    versions: dict[str, str]
    findings: tuple[Finding, ...]
    """The doctor's."""
    backend: str
    tested: tuple[Tested, ...]
    failure: str | None
    """Why the test ended early; absent where every model passed."""


def run_selftest(
    findings: list[Finding],
    backend: BackendChoice,
    precision: Precision | None,
    settings: RunSettings,
    progress: Progress,
) -> tuple[SelfTest, DevitError | None]:
    """Build both submodels and the baseline model as ``devit build`` does, in a store that is thrown away.

    Returns:
        The report, with the doctor's findings, and the error that the test ended with, if it failed.
    """
    row, bundle = backend_of(backend), Bundle(BUNDLE)
    tested: list[Tested] = []
    error: DevitError | None = None
    versions = {"devit": version("devit"), "python": platform.python_version(), "machine": platform.machine()}
    with tempfile.TemporaryDirectory(prefix="devit-selftest-") as place:
        store = Store(Path(place))
        try:
            versions[row.title] = row.version()
            for choice in [*([index] for index in range(len(bundle.manifest.submodels))), []]:
                (engine,) = build_engines(
                    bundle,
                    store,
                    submodels=choice,
                    baseline=not choice,
                    backend=row.name,
                    precision=precision,
                    settings=settings,
                    progress=progress,
                )
                with load_engine(bundle, store, engine.model, backend=row.name, settings=settings) as loaded:
                    tested.append(Tested(engine, inspect_engine(loaded)))
        except DevitError as err:
            error = err
    failure = None if error is None else str(error)
    return SelfTest(versions, tuple(findings), row.title, tuple(tested), failure), error


def as_markdown(found: SelfTest) -> str:
    """Write a report that an issue can take as it is."""
    lines = ["### devit selftest: " + ("FAILED" if found.failure else "passed"), ""]
    lines += [", ".join(f"{name} {number}" for name, number in found.versions.items()), ""]
    if found.failure:
        lines += [found.failure, ""]
    lines += [
        "| model | variant | precision method | cosine min | rel. L2 | flips | p50 ms | p99 ms | fused | casts |",
        "|" + "---|" * 10,
    ]
    remarks = []
    for each in found.tested:
        name, record, seen = name_of(each.engine.model), each.engine.record, each.inspection
        accuracy, latency = record.accuracy, record.latency
        cells = [
            name,
            record.key.variant,
            record.precision_method or found.backend,
            f"{accuracy.cosine_min:.5f}",
            f"{accuracy.relative_l2:.3%}",
            f"{accuracy.flips} of {accuracy.images}",
            f"{latency.p50_ms:.3f}",
            f"{latency.p99_ms:.3f}",
            "" if seen is None else str(seen.fused_attentions),
            "" if seen is None else str(seen.casts),
        ]
        lines.append("| " + " | ".join(cells) + " |")
        remarks += [f"- {name}: {warning}" for warning in record.warnings]
        for failed in record.failed_variants:
            why = ", ".join(failed.failures)
            cost = "" if failed.latency is None else f", p50 {failed.latency.p50_ms:.3f} ms"
            remarks.append(f"- {name}: variant {failed.variant} failed ({why}){cost}")
    lines += remarks
    lines += ["", "| what | found | state |", "|---|---|---|"]
    lines += [f"| {finding.name} | {finding.found} | {finding.state} |" for finding in found.findings]
    return "\n".join(lines) + "\n"
