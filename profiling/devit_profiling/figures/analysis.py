"""From a run's raw files to its report: watts, joules and milliseconds, each with what it is worth.

A figure that was not measured is absent, and a sentence beside it says why. Joules carry their scope, and those of
simulated samples are marked as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from devit_profiling.figures.answers import AnswerStats, Pace, answer_stats, pace
from devit_profiling.figures.baseline_model import AgainstBaseline, BaselineTimes, against_baseline, baseline_times
from devit_profiling.figures.cell import CellContext, CellEnergy, cell_energy, node_left_out
from devit_profiling.figures.energy import rising
from devit_profiling.figures.evidence import Evidence
from devit_profiling.figures.joules import DeviceEnergy, device_energy
from devit_profiling.figures.power import Power, rail_names
from devit_profiling.figures.thermal import Part, Sustained, cold_and_hot, is_sustained, sustained
from devit_profiling.record.calibration import Calibration
from devit_profiling.record.record import WINDOW, CutShort, Phase, Plan, Scenario
from devit_profiling.record.run_folder import LATENCY_FILE, RUN_FILE, log_name, stamps_name

SCHEMA = 2
GAIN_ERROR_PERCENT = 5.0
"""Stated for AGX Xavier (its thermal design guide); no figure is published for Orin, so it is taken over."""


class ScenarioReport(msgspec.Struct, frozen=True):
    """The figures of one scenario."""

    name: str
    asked: tuple[str, ...]
    """Devices that the requests went to."""
    answers: AnswerStats
    energies: tuple[DeviceEnergy, ...]
    cell: CellEnergy | None
    """Only where requests went to all devices."""
    pace: Pace | None = None
    """Only where requests were sent at a fixed rate."""
    baseline: BaselineTimes | None = None
    """Only where a device ran the baseline model; there were no requests then."""
    sustained: Sustained | None = None
    """Only where windows were repeated until the temperature settled, and at least two have ended."""
    is_idle: bool = False
    """Whether nothing ran: its windows are those of a machine at rest."""


class DeviceReport(msgspec.Struct, frozen=True):
    """One device, and how its power was sampled."""

    name: str
    submodel: int
    board: str
    """Title of the table's row, or what the device says of itself."""
    board_model: str
    is_board_guessed: bool
    """Whether the row was chosen by the look of the samples."""
    is_simulated: bool
    l4t: str
    engine: str
    inference_threads: int
    sensor: str
    scope: str
    not_measured: str
    rails: tuple[str, ...]
    lsb_mw: dict[str, int]
    """Of the rails of the total: one LSB of the sensor's converter."""
    interval_ms: int
    """Asked for."""
    period_ms: float | None
    """Median distance of the samples as they came."""
    samples: int
    unparsed_lines: int
    sensor_notes: tuple[str, ...] = ()
    """What the sensor's own program left out or changed."""
    sampler_cpu_percent: float | None = None
    """CPU time of the sampler's process, of one core; absent where it is not known."""
    reader_cpu_percent: float | None = None
    """CPU time of the agent to read and pass on the samples, of one core."""
    power_mode: str = ""
    """As ``nvpmodel`` had it before the run; empty where it is not known."""
    clocks: tuple[str, ...] = ()
    """Ranges of its clocks then; a single figure is a fixed clock."""
    is_root: bool | None = None
    """Whether its agent ran as root, whose samples hold more; absent where it does not say."""
    calibration: Calibration | None = None
    """What the total is corrected by; absent where it is the sensor's own."""
    board_choice: str = "auto"
    """What the device's settings call its board."""
    compatible: tuple[str, ...] = ()
    """Of the device tree, the whole machine first."""
    gpu_instance: str = ""
    """The part of a divided GPU that the engine has: ``MIG 2g.0gb``; empty where it has all. Power is the board's."""
    board_notes: tuple[str, ...] = ()
    """Why the total is not that of the named board, or not calibrated."""


class Report(msgspec.Struct, frozen=True):
    """The figures of a run, as ``report.json`` holds them."""

    schema: int
    name: str
    started_utc: str
    software: str
    is_quick: bool
    is_simulated: bool
    """Whether any device's samples are simulated."""
    bundle: str
    pictures: str
    deadline_ms: float | None
    """Absent where there was none."""
    plan: Plan
    gain_error_percent: float
    """Of a sensor that is not calibrated; repeated windows do not show it."""
    not_measured: tuple[str, ...]
    """What no figure here contains."""
    devices: tuple[DeviceReport, ...]
    scenarios: tuple[ScenarioReport, ...]
    files: tuple[str, ...]
    """Raw files that all this was made from."""
    cut_short: CutShort | None = None
    """Where the run ended before its plan did."""
    node: DeviceReport | None = None
    """The node's machine, which has no submodel (-1); absent where it was not sampled."""
    against_baseline: AgainstBaseline | None = None
    """Absent where the baseline model, or the cell as a whole, was not measured."""
    is_local: bool = False
    """Whether this machine was measured, without node and network."""


def analyse(evidence: Evidence) -> Report:
    """Make the report of a run from its raw data, and from nothing else."""
    run = evidence.run
    scenarios = tuple(_scenario_report(evidence, scenario) for scenario in run.scenarios)
    return Report(
        schema=SCHEMA,
        name=run.name,
        started_utc=run.started_utc,
        software=run.software,
        is_quick=run.plan.is_quick,
        is_simulated=any(power.is_simulated for power in evidence.machines),
        bundle=run.bundle,
        pictures=run.pictures,
        deadline_ms=run.node_before.deadline_ms if run.node_before is not None else None,
        plan=run.plan,
        gain_error_percent=GAIN_ERROR_PERCENT,
        not_measured=tuple(_left_out(evidence)),
        devices=tuple(_device_report(power, run.plan) for power in evidence.powers),
        scenarios=scenarios,
        files=(
            RUN_FILE,
            LATENCY_FILE,
            *(file(machine.name) for machine in run.machines for file in (log_name, stamps_name)),
        ),
        cut_short=run.cut_short,
        node=_device_report(evidence.node, run.plan) if evidence.node is not None else None,
        against_baseline=_against_baseline(scenarios),
        is_local=run.is_local,
    )


def _against_baseline(scenarios: Sequence[ScenarioReport]) -> AgainstBaseline | None:
    alone = next((scenario for scenario in scenarios if scenario.baseline is not None), None)
    whole = next((scenario for scenario in scenarios if scenario.cell is not None), None)
    if alone is None or alone.baseline is None or whole is None:
        return None
    return against_baseline(alone.baseline, alone.energies[0], whole.energies, whole.cell, whole.answers.p50_ms)


def _left_out(evidence: Evidence) -> Iterator[str]:
    run = evidence.run
    if run.is_local:
        yield "node and network: not involved, as this machine alone was measured"
        return
    if node := node_left_out(evidence):
        yield f"power of the fusion node: not measured: {node}"
    if run.extras:
        stated = ", ".join(f"{extra.name} {extra.watts:g} W ({extra.source})" for extra in run.extras)
        yield f"stated in the fleet file, not measured: {stated}"
    else:
        yield "power of network switch and supplies: not measured; state it as [[extra]] in the fleet file"
    for name in sorted(set(run.names_by_submodel().values()) - {device.name for device in run.devices}):
        yield f"power of {name}: not measured, as it was not named"


def _device_report(power: Power, plan: Plan) -> DeviceReport:
    about = power.device.description
    board = power.board
    stamps_s = np.array([sample.monotonic_ns for sample in power.log.samples], np.float64) / 1e9
    gaps_s = np.diff(stamps_s[rising(stamps_s)])
    cost = power.device.sampling
    return DeviceReport(
        name=power.device.name,
        submodel=power.device.submodel,
        board=board.title if board is not None else about.board_model,
        **msgspec.structs.asdict(about),
        is_board_guessed=power.is_board_guessed,
        is_simulated=power.is_simulated,
        scope=power.scope,
        not_measured=power.not_measured,
        rails=rail_names(power.log),
        lsb_mw={rail: board.lsb_mw[rail] for rail in board.total_rails} if board is not None else {},
        interval_ms=plan.interval_ms,
        period_ms=round(float(np.median(gaps_s)) * 1e3, 3) if gaps_s.size else None,
        samples=len(power.log.samples),
        unparsed_lines=power.log.unparsed_lines,
        sensor_notes=power.sensor_notes,
        board_notes=power.board_notes,
        sampler_cpu_percent=_percent(cost.sampler_cpu_s, cost.duration_s) if cost is not None else None,
        reader_cpu_percent=_percent(cost.reader_cpu_s, cost.duration_s) if cost is not None else None,
        calibration=power.calibration,
    )


def _percent(cpu_s: float | None, duration_s: float) -> float | None:
    return round(100 * cpu_s / duration_s, 3) if cpu_s is not None and duration_s > 0 else None


def _scenario_report(evidence: Evidence, scenario: Scenario) -> ScenarioReport:
    phases = evidence.phases(scenario.name)
    report = _phases_report(evidence, scenario, phases)
    if is_sustained(scenario, evidence.run.plan):
        report = msgspec.structs.replace(report, sustained=_sustained(evidence, scenario, phases))
    return report


def _sustained(evidence: Evidence, scenario: Scenario, phases: Sequence[Phase]) -> Sustained | None:
    plan = evidence.run.plan
    windows = [phase for phase in phases if phase.kind == WINDOW]
    parts = []
    for chosen in cold_and_hot(windows, plan):
        own = [phase for phase in phases if phase.kind != WINDOW or phase in chosen]
        figures = _phases_report(evidence, scenario, own)
        if not chosen or figures.cell is None:
            return None
        parts.append(Part(chosen, figures.answers, figures.energies, figures.cell))
    samples = {power.device.name: power.log.samples for power in evidence.powers}
    return sustained(windows, samples, plan, *parts)


def _phases_report(evidence: Evidence, scenario: Scenario, phases: Sequence[Phase]) -> ScenarioReport:
    run = evidence.run
    windows = {phase.number: phase.duration_s for phase in phases if phase.kind == WINDOW}
    names = run.names_by_submodel()
    all_rows = [row for row in evidence.recording.answers if row.scenario == scenario.name]
    rows = [row for row in all_rows if row.window in windows]
    asked = [power for power in evidence.powers if scenario.device in ("", power.device.name)]
    energies = tuple(device_energy(power, phases, run.plan, is_idle=scenario.is_idle) for power in asked)
    cell = None
    if not scenario.device:
        given = Counter(row.window for row in rows if row.is_answered)
        node = device_energy(evidence.node, phases, run.plan) if evidence.node is not None else None
        context = CellContext(node, node_left_out(evidence, node), run.extras)
        cell = cell_energy(energies, asked, given, len(names), context)
    rate_hz, baseline = (None, run.baseline) if scenario.is_baseline else (run.plan.rate_hz, None)
    return ScenarioReport(
        name=scenario.name,
        asked=(scenario.device,) if scenario.device else tuple(names[index] for index in sorted(names)),
        answers=answer_stats(rows, names, windows),
        energies=energies,
        cell=cell,
        pace=pace(all_rows, phases, rate_hz) if rate_hz is not None else None,
        baseline=baseline_times(baseline, phases) if baseline is not None else None,
        is_idle=scenario.is_idle,
    )
