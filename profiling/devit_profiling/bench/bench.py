"""Measures one model on this machine, and keeps what a plan needs of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from devit_contract.artefacts.manifest import Bundle
from devit_contract.errors import LostLinkError
from devit_contract.service.progress import Progress
from devit_engines.bench.child import engine_command
from devit_engines.engine import ModelRef, role_of
from devit_profiling.figures.evidence import Evidence
from devit_profiling.load.local_profile import measure_local
from devit_profiling.plan.device_profile import DeviceProfile, profiles_of
from devit_profiling.record.record import Plan

BENCH = Plan(windows=2, idle_s=5.0, settle_s=1.0)
"""About 40 s."""


def without_power(plan: Plan) -> Plan:
    """Leave the phases out that only joules need."""
    return structs.replace(plan, has_power=False, settle_s=0.0, idle_s=0.01, has_idle_after=False)


def bench_device(
    device: str,
    bundle: Bundle,
    model: ModelRef,
    plan: Plan,
    progress: Progress,
    *,
    store: Path | None = None,
    threads: int = 1,
    engine: str = "built",
    board_choice: str = "auto",
    calibrations: Path | None = None,
    sensor_command: Sequence[str] = (),
) -> DeviceProfile:
    """Run a model's engine back to back for the windows of a plan, between idle phases; ``device`` names the profile.

    Raises:
        ManifestError: The bundle has no such model, or a calibration breaks its format.
        EngineError: The engine cannot be loaded, or fails.
        InputError: There were too few inferences, or windows are too short for joules.
        KeyboardInterrupt: It was interrupted; nothing is kept.
    """
    macs = bundle.manifest.graph(*role_of(model)).macs
    with tempfile.TemporaryDirectory(prefix="devit-bench-") as place:
        folder = measure_local(
            engine_command(bundle.folder, model, store, threads, engine),
            0 if model == "baseline" else model,
            plan,
            Path(place),
            progress,
            calibrations=calibrations,
            sensor_command=sensor_command,
            board_choice=board_choice,
        )
        evidence = Evidence.read(folder)
        cut_short = evidence.run.cut_short
        if cut_short is not None:
            raise KeyboardInterrupt if cut_short.is_interrupt else LostLinkError(cut_short.cause)
        (profile,) = profiles_of(evidence)
    return structs.replace(profile, device=device, model=model, macs=macs)
