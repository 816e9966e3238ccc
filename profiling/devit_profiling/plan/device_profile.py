"""The profile of one model on one device: a JSON file of ``devit bench-device``, or taken from a run of ``profile``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from devit_contract.artefacts.files import read_json
from devit_contract.errors import InputError, ManifestError
from devit_profiling.figures.analysis import Report, ScenarioReport, analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.figures.interval import mean_of
from devit_profiling.record.record import OUTSIDE, AnswerRow
from devit_profiling.record.run_folder import RUN_FILE

ModelName = int | Literal["baseline"]
"""Number of a submodel, or the bundle's baseline model."""
SCHEMA = 1
LEAST_INFERENCES = 20
_QUANTILES = 201
"""From 0 to 100 % in steps of half a percent: the last step holds the tail beyond 99.5 %."""
_HINT = "measure it again with devit bench-device"


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long one model takes one device, and what it costs."""

    schema: int
    device: str
    """As in fleet.toml."""
    model: ModelName
    macs: int
    """Multiply-accumulates of the model, by which its bundle is known again; 0: not known."""
    engine: str
    """Back end, its version, and the variant."""
    board: str
    l4t: str
    threads: int
    software: str
    """Version of this package."""
    measured_utc: str
    inferences: int
    p50_ms: float
    p99_ms: float
    quantiles_ms: tuple[float, ...]
    """Of the time of an inference, from 0 to 100 % at equal distances."""
    overhead_ms: float | None = None
    """Median of what an answer takes beyond the inference, through node and network; absent where there were none."""
    idle_w: float | None = None
    above_idle_j: float | None = None
    """Energy of an inference beyond idle power times time."""
    not_measured: str = ""
    """Why there are no watts and joules; empty where there are."""
    scope: str = ""
    """What the joules cover."""
    is_simulated: bool = False

    def __post_init__(self) -> None:
        """Refuse what no cell can be simulated with."""
        times = self.quantiles_ms
        if len(times) < 2 or not 0 < times[-1] < 1e6 or times[0] < 0 or list(times) != sorted(times):
            raise ValueError("quantiles_ms: expected two or more rising times up to 1e6 ms")
        for name in ("overhead_ms", "idle_w"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e6:
                raise ValueError(f"{name}: expected 0 or more, found {value}")
        if (self.idle_w is None or self.above_idle_j is None) and not self.not_measured:
            raise ValueError("idle_w and above_idle_j: expected both, or why not in not_measured")


def read_profiles(path: Path) -> list[DeviceProfile]:
    """Read a file of ``devit bench-device``, or all devices of a run of ``profile``, by its folder or report.

    Raises:
        InputError: It cannot be read, or has too few inferences to plan with.
        ManifestError: It breaks its format.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or (path.name == "report.json" and (folder / RUN_FILE).exists()):
        return profiles_of(Evidence.read(folder))
    return [read_json(path, DeviceProfile, schema=SCHEMA, hint=_HINT)]


def profiles_of(evidence: Evidence) -> list[DeviceProfile]:
    """Take the profiles of all devices from a run, each from the scenario in which it works alone if there is one."""
    report = analyse(evidence)
    return [_profile(evidence, report, name) for name in (device.name for device in report.devices)]


def _profile(evidence: Evidence, report: Report, name: str) -> DeviceProfile:
    about = next(device for device in report.devices if device.name == name)
    usable = [scenario for scenario in report.scenarios if name in scenario.asked and scenario.baseline is None]
    scenario = min((each for each in usable if not each.is_idle), key=lambda each: len(each.asked), default=None)
    rows = _rows(evidence, scenario, about.submodel) if scenario is not None else []
    if scenario is None or len(rows) < LEAST_INFERENCES:
        raise InputError(
            f"run {report.name}: {name}: expected {LEAST_INFERENCES} inferences to plan with, "
            f"found {len(rows)}: measure longer windows"
        )
    times_ms = np.array([time_ms for time_ms, _ in rows])
    energy = next((each for each in scenario.energies if each.device == name), None)
    above_j = mean_of(energy.dynamic_j_per_inference) if energy is not None else None
    why = energy.not_measured if energy is not None else "the run has no power of it"
    if not why and (above_j is None or energy is None or energy.idle_w is None):
        why = "the run has no idle phase that could be measured"
    return DeviceProfile(
        schema=SCHEMA,
        device=name,
        model=about.submodel,
        macs=0,
        engine=about.engine,
        board=about.board,
        l4t=about.l4t,
        threads=about.inference_threads,
        software=report.software,
        measured_utc=report.started_utc,
        inferences=len(rows),
        p50_ms=round(float(np.percentile(times_ms, 50)), 4),
        p99_ms=round(float(np.percentile(times_ms, 99)), 4),
        quantiles_ms=tuple(np.quantile(times_ms, np.linspace(0, 1, _QUANTILES)).round(4).tolist()),
        overhead_ms=None if evidence.run.is_local else round(float(np.median([beyond for _, beyond in rows])), 4),
        idle_w=energy.idle_w if energy is not None and not why else None,
        above_idle_j=max(above_j, 0.0) if above_j is not None and not why else None,
        not_measured=why,
        scope=energy.scope if energy is not None else "",
        is_simulated=about.is_simulated,
    )


def _rows(evidence: Evidence, scenario: ScenarioReport, device: int) -> list[tuple[float, float]]:
    """Give the time of each inference of a device in the windows, and what its answer took beyond, both in ms."""
    return [
        (timing.inference_us / 1e3, _beyond_ms(row, timing.arrival_us - timing.inference_us - timing.queue_us))
        for row in evidence.recording.answers
        if row.scenario == scenario.name and row.window != OUTSIDE and row.is_answered
        for timing in row.devices
        if timing.device == device
    ]


def _beyond_ms(row: AnswerRow, device_us: int) -> float:
    """Add the device's way to what an answer takes without its devices and without waiting its turn."""
    return max(0.0, row.latency_ms - (row.wait_us + row.collect_us - device_us) / 1e3)


def check_fits(profile: DeviceProfile, macs: Sequence[int], baseline_macs: int | None) -> None:
    """Refuse a profile of another bundle: its model has other multiply-accumulates.

    Raises:
        ManifestError: It is of another bundle.
    """
    if profile.model == "baseline":
        expected = baseline_macs
    else:
        expected = macs[profile.model] if profile.model < len(macs) else None
    if expected is None or profile.macs not in (0, expected):
        found = f"{profile.macs} multiply-accumulates" if expected is not None else "a model that it does not have"
        raise ManifestError(
            f"profile of {profile.device}, model {profile.model}: expected one of this bundle, found {found}: {_HINT}"
        )
