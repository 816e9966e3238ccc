"""From a device's power and its marks to joules per inference, and from all devices' to joules per answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from devit_contract.errors import EnergyError
from devit_profiling.board_table import Board
from devit_profiling.energy import Minimum, WindowEnergy, measure_window, resolution_w
from devit_profiling.power import Power
from devit_profiling.record import IDLE, IDLE_AFTER, WINDOW, Phase, Plan


class Estimate(msgspec.Struct, frozen=True):
    """The mean over windows; the field that holds it names the unit."""

    mean: float
    windows: int
    low_95: float | None = None
    """Ends of Student's 95 % interval of the mean; absent for a single window."""
    high_95: float | None = None


class WindowFigures(msgspec.Struct, frozen=True):
    """One device in one window."""

    number: int
    duration_s: float
    """On the device's clock."""
    inferences: int
    total_j: float
    """Of the part that power samples cover."""
    dynamic_j: float | None
    """Above idle, of the same part; absent without an idle baseline."""
    mean_w: float
    peak_w: float
    samples: int
    coverage: float
    """Share of the window that power samples cover, 0 to 1."""
    flags: tuple[str, ...]


class DeviceEnergy(msgspec.Struct, frozen=True):
    """One device in one scenario."""

    device: str
    is_simulated: bool
    scope: str
    """What the joules cover; empty where there are none."""
    not_measured: str
    """Why there are no joules; empty where there are."""
    windows: tuple[WindowFigures, ...] = ()
    idle_w: float | None = None
    """Mean of the baselines before and after, as far as they were measured."""
    idle_drift: float | None = None
    """Change of the baseline from before to after, as a share of the first."""
    mean_w: float | None = None
    peak_w: float | None = None
    total_j_per_inference: Estimate | None = None
    dynamic_j_per_inference: Estimate | None = None
    inferences_per_j: float | None = None
    resolution_j_per_inference: float | None = None
    """Standard error that the steps of the sensor's converter cause; windows do not average it out."""
    flags: tuple[str, ...] = ()
    """Doubts about the figures, one sentence each."""


class CellEnergy(msgspec.Struct, frozen=True):
    """The named devices of the cell together, over the same windows."""

    scope: str
    not_measured: str
    is_simulated: bool
    mean_w: float | None = None
    total_j_per_answer: Estimate | None = None
    resolution_j_per_answer: float | None = None


def device_energy(power: Power, phases: Sequence[Phase], plan: Plan) -> DeviceEnergy:
    """Measure one device in one scenario.

    Args:
        power: Its samples.
        phases: Those of the scenario.
        plan: Least lengths and numbers of samples.
    """
    name = power.device.name
    if power.not_measured or power.board is None:
        return DeviceEnergy(name, power.is_simulated, "", power.not_measured)
    flags: list[str] = []
    idle = _Idle.of(power, phases, plan, flags)
    windows = []
    for phase in phases:
        if phase.kind == WINDOW:
            measured = _measure(power, phase, _window_minimum(plan), flags)
            if measured is not None:
                windows.append(_window_figures(phase, name, measured, idle.mean_w))
    if power.device.sensor_problem:
        flags.append(f"sampling ended early: {power.device.sensor_problem}")
    if not windows:
        why = "; ".join(flags) or "the run has no window in this scenario"
        return DeviceEnergy(name, power.is_simulated, "", why, idle_w=idle.mean_w, idle_drift=idle.drift)
    flags += [f"{WINDOW} {window.number}: {flag}" for window in windows for flag in window.flags]
    return _with_figures(power, power.board, idle, windows, flags)


def cell_energy(
    energies: Sequence[DeviceEnergy], powers: Sequence[Power], answers: Mapping[int, int], devices: int
) -> CellEnergy:
    """Add the named devices of a cell that was asked as a whole; a sum without one of them is none.

    Args:
        energies: Of the named devices.
        powers: Their samples, in the same order.
        answers: Window to its number of answers, failed frames left out.
        devices: Number of devices in the cell, named or not.
    """
    scope = f"{len(energies)} of {devices} devices of the cell, without the fusion node: "
    scope += " + ".join(f"{energy.device} {energy.scope or 'not measured'}" for energy in energies)
    is_simulated = any(energy.is_simulated for energy in energies)
    missing = [energy.device for energy in energies if energy.not_measured]
    if missing:
        return CellEnergy(scope, f"no joules of {', '.join(missing)}, and a sum of the others is no cell", is_simulated)
    joules: dict[int, list[float]] = {}
    for energy in energies:
        for window in energy.windows:
            joules.setdefault(window.number, []).append(window.mean_w * window.duration_s)
    numbers = [
        number for number, parts in sorted(joules.items()) if len(parts) == len(energies) and answers.get(number)
    ]
    if not numbers:
        return CellEnergy(scope, "no window with power of all named devices and an answer", is_simulated)
    seconds = [window.duration_s for window in energies[0].windows if window.number in numbers]
    steps = [step for power in powers if power.board is not None for step in power.board.total_step_mw]
    return CellEnergy(
        scope=scope,
        not_measured="",
        is_simulated=is_simulated,
        mean_w=sum(sum(joules[number]) for number in numbers) / sum(seconds),
        total_j_per_answer=estimate([sum(joules[number]) / answers[number] for number in numbers]),
        resolution_j_per_answer=resolution_w(steps) * sum(seconds) / sum(answers[number] for number in numbers),
    )


def estimate(values: Sequence[float]) -> Estimate:
    """Give the mean of windows, with Student's 95 % interval where there are at least two.

    >>> estimate([1.0, 3.0])
    Estimate(mean=2.0, windows=2, low_95=-10.706, high_95=14.706)
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Estimate(mean, count)
    half = _t_95(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, count, mean - half, mean + half)


# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, column 0.975: two-sided 95 %, by degrees of freedom.
_T_95 = {
    **dict(enumerate((12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228), 1)),
    **dict(enumerate((2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086), 11)),
    **dict(enumerate((2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042), 21)),
    **{40: 2.021, 60: 2.000, 100: 1.984},
}
_MAX_DRIFT = 0.03


def _t_95(freedom: int) -> float:
    """Look up the quantile; between two rows the wider one counts."""
    return _T_95[max(row for row in _T_95 if row <= freedom)]


def _with_figures(
    power: Power, board: Board, idle: _Idle, windows: Sequence[WindowFigures], flags: Sequence[str]
) -> DeviceEnergy:
    seconds = sum(window.duration_s for window in windows)
    # A window without an inference has no energy of one; its flag says so.
    worked = [window for window in windows if window.inferences > 0]
    # Mean power times time: where samples leave a gap, whose flag says so, the inferences in it cost their share.
    seconds_each = [window.duration_s / window.inferences for window in worked]
    totals_j = [window.mean_w * each_s for window, each_s in zip(worked, seconds_each, strict=True)]
    total = estimate(totals_j) if worked else None
    dynamic = None
    if worked and idle.mean_w is not None:
        dynamic = estimate(
            [joules - idle.mean_w * each_s for joules, each_s in zip(totals_j, seconds_each, strict=True)]
        )
    worked_s = sum(window.duration_s for window in worked)
    return DeviceEnergy(
        device=power.device.name,
        is_simulated=power.is_simulated,
        scope=board.scope,
        not_measured="",
        windows=tuple(windows),
        idle_w=idle.mean_w,
        idle_drift=idle.drift,
        mean_w=sum(window.mean_w * window.duration_s for window in windows) / seconds,
        peak_w=max(window.peak_w for window in windows),
        total_j_per_inference=total,
        dynamic_j_per_inference=dynamic,
        inferences_per_j=1.0 / total.mean if total is not None and total.mean > 0 else None,
        resolution_j_per_inference=(
            resolution_w(board.total_step_mw) * worked_s / sum(window.inferences for window in worked)
            if worked
            else None
        ),
        flags=tuple(flags),
    )


@dataclass(frozen=True)
class _Idle:
    """The baseline of one device in one scenario."""

    mean_w: float | None
    drift: float | None

    @classmethod
    def of(cls, power: Power, phases: Sequence[Phase], plan: Plan, flags: list[str]) -> _Idle:
        means = {}
        for phase in phases:
            if phase.kind in (IDLE, IDLE_AFTER):
                measured = _measure(power, phase, Minimum(plan.idle_s, plan.idle_samples), flags)
                if measured is not None:
                    means[phase.kind] = measured.mean_w
                    flags.extend(f"{phase.kind}: {flag}" for flag in measured.flags)
        if not means:
            return cls(None, None)
        drift = None
        if len(means) == 2 and means[IDLE] != 0:
            drift = (means[IDLE_AFTER] - means[IDLE]) / means[IDLE]
            if abs(drift) > _MAX_DRIFT:
                flags.append(f"idle power drifted by {drift:+.1%} from before to after, expected at most 3 %")
        return cls(sum(means.values()) / len(means), drift)


def _window_minimum(plan: Plan) -> Minimum | None:
    return None if plan.window_samples is None else Minimum(0.0, plan.window_samples)


def _measure(power: Power, phase: Phase, minimum: Minimum | None, flags: list[str]) -> WindowEnergy | None:
    """Measure a phase between the device's own marks; what cannot be measured becomes a flag."""
    name = power.device.name
    start_s = phase.start.marks[name].monotonic_ns / 1e9
    end_s = phase.end.marks[name].monotonic_ns / 1e9
    title = f"{phase.kind} {phase.number}" if phase.kind == WINDOW else phase.kind
    try:
        return measure_window(power.total_w, power.time_s, start_s, end_s, minimum)
    except EnergyError as err:
        flags.append(f"{title}: {err}")
        return None


def _window_figures(phase: Phase, name: str, measured: WindowEnergy, idle_w: float | None) -> WindowFigures:
    inferences = phase.end.marks[name].inferences - phase.start.marks[name].inferences
    dynamic_j = measured.dynamic_j(idle_w) if idle_w is not None else None
    flags = list(measured.flags)
    if inferences < 0:
        flags.append("the device's counter went back: its agent was restarted")
    elif inferences == 0:
        flags.append("the device made no inference")
    if dynamic_j is not None and dynamic_j < 0:
        flags.append("dynamic energy is negative: the work costs less than the sensor can tell")
    return WindowFigures(
        number=phase.number,
        duration_s=measured.duration_s,
        inferences=inferences,
        total_j=measured.total_j,
        dynamic_j=dynamic_j,
        mean_w=measured.mean_w,
        peak_w=measured.peak_w,
        samples=measured.samples,
        coverage=measured.coverage,
        flags=tuple(flags),
    )
