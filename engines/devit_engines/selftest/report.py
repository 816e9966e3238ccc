"""Build the shipped bundle here, and say in a report for people how that went."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from devit_contract.artefacts.manifest import Bundle
from devit_contract.choices import Precision
from devit_contract.errors import DevitError
from devit_contract.service.progress import Progress
from devit_engines.building.backends import RunSettings, backend_of
from devit_engines.building.build_all import BuiltEngine, build_engines, load_engine
from devit_engines.building.store import EngineRecord, Store
from devit_engines.doctor.finding import Finding
from devit_engines.trt.inspection import Inspection, inspect_plan

BUNDLE = Path(__file__).with_name("bundle")


@dataclass(frozen=True)
class Tested:
    """One model that passed the gate here."""

    name: str
    engine: BuiltEngine
    record: EngineRecord
    inspection: Inspection | None
    """Of a TensorRT engine."""


@dataclass(frozen=True)
class SelfTest:
    """All that a report tells."""

    versions: dict[str, str]
    findings: tuple[Finding, ...]
    """The doctor's."""
    backend: str
    tested: tuple[Tested, ...]
    failure: str | None
    """Why the test ended early; absent where every model passed."""


@dataclass(frozen=True)
class Outcome:
    """A self-test, and the error that it ended with."""

    test: SelfTest
    error: DevitError | None


def run_selftest(
    findings: list[Finding], *, backend: str, precision: Precision, settings: RunSettings, progress: Progress
) -> Outcome:
    """Build both submodels and the undivided model in a store that is thrown away.

    Args:
        findings: The doctor's, for the report.
        backend: As for ``devit build``.
        precision: As for ``devit build``.
        settings: How the engines are run.
        progress: Told of every model.
    """
    row, bundle = backend_of(backend), Bundle(BUNDLE)
    tested: list[Tested] = []
    error: DevitError | None = None
    versions = {"devit": version("devit"), "python": platform.python_version(), "machine": platform.machine()}
    with tempfile.TemporaryDirectory(prefix="devit-selftest-") as place:
        store = Store(Path(place))
        try:
            versions[row.title] = row.version()
            for device in (*range(len(bundle.manifest.submodels)), None):
                chosen = [] if device is None else [device]
                (engine,) = build_engines(
                    bundle,
                    store,
                    submodels=chosen,
                    baseline=device is None,
                    backend=row.name,
                    precision=precision,
                    settings=settings,
                    progress=progress,
                )
                tested.append(_tested(bundle, store, device, engine, row.name, settings))
        except DevitError as err:
            error = err
    failure = None if error is None else str(error)
    return Outcome(SelfTest(versions, tuple(findings), row.title, tuple(tested), failure), error)


def as_markdown(found: SelfTest) -> str:
    """Write a report that an issue can take as it is."""
    lines = ["### devit selftest: " + ("FAILED" if found.failure else "passed"), ""]
    lines += [", ".join(f"{name} {number}" for name, number in found.versions.items()), ""]
    if found.failure:
        lines += [found.failure, ""]
    lines += [
        "| model | rung | route | cosine min | rel. L2 | flips | p50 ms | p99 ms | fused | casts |",
        "|" + "---|" * 10,
    ]
    for each in found.tested:
        gate, latency, seen = each.engine.gate, each.engine.latency, each.inspection
        cells = [
            each.name,
            each.engine.rung,
            each.record.route or found.backend,
            f"{gate.cosine_min:.5f}",
            f"{gate.relative_l2:.3%}",
            f"{gate.flips} of {gate.images}",
            f"{latency.p50_ms:.3f}",
            f"{latency.p99_ms:.3f}",
            "" if seen is None else str(seen.fused_attentions),
            "" if seen is None else str(seen.casts),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for each in found.tested:
        lines += [f"- {each.name}: {words}" for words in each.record.warnings]
        for failed in each.record.failed_rungs:
            why = ", ".join(failed.failures)
            cost = "" if failed.latency is None else f", p50 {failed.latency.p50_ms:.3f} ms"
            lines.append(f"- {each.name}: rung {failed.rung} failed ({why}){cost}")
    lines += ["", "| what | found | state |", "|---|---|---|"]
    lines += [f"| {finding.name} | {finding.found} | {finding.state} |" for finding in found.findings]
    return "\n".join(lines) + "\n"


def _tested(
    bundle: Bundle, store: Store, device: int | None, engine: BuiltEngine, backend: str, settings: RunSettings
) -> Tested:
    record, _ = store.read(engine.key)
    inspection = None
    name = "baseline" if device is None else f"submodel {device}"
    if backend == "tensorrt":
        from devit_engines.trt.engine import TrtEngine

        with load_engine(bundle, store, device, backend=backend, settings=settings) as loaded:
            if isinstance(loaded, TrtEngine):
                inspection = inspect_plan(loaded.information(), name)
    return Tested(name, engine, record, inspection)
