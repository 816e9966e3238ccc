"""From a device's power and its snapshots to joules per inference."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from devit_contract.machine import OverCurrentEvents
from devit_profiling.figures.conditions import (
    Conditions,
    conditions,
    over_current,
    over_current_warnings,
    throttling_warnings,
)
from devit_profiling.figures.energy import Minimum, WindowEnergy, resolution_w
from devit_profiling.figures.idle import IdlePower, PhaseIntegrator, PhasePower, drift_warning, idle_power
from devit_profiling.figures.interval import NORMAL_95, Estimate, StepError, estimate, mean_step_error
from devit_profiling.figures.notes import merged
from devit_profiling.figures.power import Power
from devit_profiling.figures.settling import time_constant
from devit_profiling.record.record import WINDOW, Phase, Plan

_MAX_OFFSET = 0.03
_MAX_RISE = 0.02
# Where the readings cross from one code to the next in the middle of the window, their line rises by 1.5 steps.
_MAX_RISE_STEPS = 1.5


class WindowFigures(msgspec.Struct, frozen=True):
    """The figures of one device in one window."""

    number: int
    duration_s: float
    """On the device's clock."""
    inferences: int
    energy: WindowEnergy
    dynamic_j: float | None
    """Above idle, of the part that power samples cover; absent without an idle power."""
    warnings: tuple[str, ...]
    """Beside those of ``energy``, one sentence each."""
    busy_s: float | None = None
    """Time in the engine; absent where the device counts none."""


class DeviceEnergy(msgspec.Struct, frozen=True):
    """The figures of one device in one scenario."""

    device: str
    is_simulated: bool
    scope: str
    """What the joules cover; empty where there are none."""
    not_measured: str
    """Why there are no joules; empty where there are."""
    windows: tuple[WindowFigures, ...] = ()
    idle_w: float | None = None
    """Mean of the idle powers before and after, as far as they were measured; of a machine at rest, of its windows."""
    idle_drift: float | None = None
    """Change of the idle power from before to after, as a share of the first."""
    mean_w: float | None = None
    peak_w: float | None = None
    total_j_per_inference: Estimate | None = None
    dynamic_j_per_inference: Estimate | None = None
    inferences_per_j: float | None = None
    resolution_j_per_inference: float | None = None
    """Standard error that the steps of the sensor's converter cause where the power stays within one."""
    warnings: tuple[str, ...] = ()
    """One sentence each."""
    edp_j_s: float | None = None
    """Energy-delay product: total joules per inference times the engine's seconds per inference."""
    steps_w: float | None = None
    """Standard error of the mean power that the converter's steps cause in these windows."""
    offset_j_per_inference: float | None = None
    """Half-width of 95 % that the sensor's offset may add to the total, or, where it is calibrated, what the
    calibration leaves open. The interval does not contain it, nor the gain's error, as no repeat shows them; the
    offset cancels above idle."""
    tau_s: float | None = None
    """Time constant of the sensor that guards and intervals reckon with."""
    tau_source: str = ""
    """How it is known."""
    conditions: Conditions = Conditions()
    is_calibrated: bool = False
    """Whether the total was corrected by a line fitted to an external meter."""
    over_current: dict[int, OverCurrentEvents] = {}
    """By window: how often the board slowed itself down; absent where that is not counted, and in older runs."""


def device_energy(power: Power, phases: Sequence[Phase], plan: Plan, *, is_idle: bool = False) -> DeviceEnergy:
    """Measure one device in one scenario, given its phases in their order; ``is_idle``: nothing runs in the windows."""
    energy, events = _measured(power, phases, plan, is_idle=is_idle), over_current(phases, power.device.name)
    warnings = (*energy.warnings, *over_current_warnings(events))
    return msgspec.structs.replace(energy, over_current=events, warnings=warnings)


def _measured(power: Power, phases: Sequence[Phase], plan: Plan, *, is_idle: bool) -> DeviceEnergy:
    name = power.device.name
    if power.not_measured or power.board is None:
        return DeviceEnergy(name, power.is_simulated, "", power.not_measured)
    constant = time_constant(power.total_w, power.time_s, phases, name, power.board.tau_s)
    integrator = PhaseIntegrator(power, phases, constant)
    warnings = integrator.warnings
    idle = idle_power(integrator, phases, plan)
    if idle is not None and (warning := drift_warning(idle, power.step_mw)) is not None:
        warnings.append(warning)
    minimum = None if plan.window_samples is None else Minimum(0.0, plan.window_samples)
    windows, errors = [], []
    for phase in phases:
        measured = integrator.measure(phase, minimum) if phase.kind == WINDOW else None
        if measured is not None:
            windows.append(_window_figures(phase, power, measured, idle, is_idle=is_idle))
            errors.append(measured.steps)
    if power.device.sensor_problem:
        warnings.append(f"sampling ended early: {power.device.sensor_problem}")
    idle_w, idle_drift = (idle.mean_w, idle.drift) if idle is not None else (None, None)
    if not windows:
        why = "; ".join(warnings) or "the run has no window in this scenario"
        return DeviceEnergy(name, power.is_simulated, "", why, idle_w=idle_w, idle_drift=idle_drift)
    warnings += merged(
        (f"{WINDOW} {window.number}", each)
        for window in windows
        for each in (*window.energy.warnings, *window.warnings)
    )
    around = conditions(power.log.samples, phases, name)
    warnings += throttling_warnings(around.clocks_mhz)
    energy = _device_energy(power, windows, mean_step_error(errors), idle)
    return msgspec.structs.replace(
        energy,
        idle_w=energy.mean_w if is_idle else idle_w,
        idle_drift=idle_drift,
        warnings=(*warnings, *_offset_warning(energy)),
        tau_s=constant.tau_s,
        tau_source=constant.source,
        conditions=around,
    )


def _device_energy(
    power: Power, windows: Sequence[WindowFigures], steps: StepError, idle: IdlePower | None
) -> DeviceEnergy:
    seconds = sum(window.duration_s for window in windows)
    mean_w = sum(window.energy.mean_w * window.duration_s for window in windows) / seconds
    # A window without an inference has no energy per inference; its warning says so.
    worked = [window for window in windows if window.inferences > 0]
    each_s = sum(window.duration_s for window in worked) / sum(w.inferences for w in worked) if worked else None
    total, dynamic = _estimates(worked, steps, idle, each_s) if each_s is not None else (None, None)
    busy_s = [window.busy_s / window.inferences for window in worked if window.busy_s is not None]
    return DeviceEnergy(
        device=power.device.name,
        is_simulated=power.is_simulated,
        scope=power.scope,
        not_measured="",
        windows=tuple(windows),
        mean_w=mean_w,
        peak_w=max(window.energy.peak_w for window in windows),
        total_j_per_inference=total,
        dynamic_j_per_inference=dynamic,
        inferences_per_j=1.0 / total.mean if total is not None and total.mean > 0 else None,
        resolution_j_per_inference=resolution_w(power.step_mw) * each_s if each_s is not None else None,
        edp_j_s=total.mean * sum(busy_s) / len(busy_s) if total is not None and busy_s else None,
        steps_w=steps.whole_w,
        offset_j_per_inference=power.fixed_95_w(mean_w) * each_s if each_s is not None else None,
        is_calibrated=power.calibration is not None,
    )


def _estimates(
    worked: Sequence[WindowFigures], steps: StepError, idle: IdlePower | None, each_s: float
) -> tuple[Estimate, Estimate | None]:
    """Give joules per inference, in all and above idle.

    Mean power times time: inferences in a gap of the samples, whose warning says so, cost their share.
    """
    seconds_each = [window.duration_s / window.inferences for window in worked]
    totals_j = [window.energy.mean_w * own_s for window, own_s in zip(worked, seconds_each, strict=True)]
    total = estimate(totals_j, steps_95=NORMAL_95 * steps.whole_w * each_s)
    if idle is None:
        return total, None
    dynamics_j = [joules - idle.mean_w * own_s for joules, own_s in zip(totals_j, seconds_each, strict=True)]
    # The converter errs at idle and under load independently of each other.
    both_w = (steps.whole_w**2 + idle.steps.whole_w**2) ** 0.5
    return total, estimate(dynamics_j, steps_95=NORMAL_95 * both_w * each_s, idle_95=idle.half_95_w * each_s)


def _offset_warning(energy: DeviceEnergy) -> Sequence[str]:
    total, offset_j = energy.total_j_per_inference, energy.offset_j_per_inference
    if total is None or offset_j is None or offset_j <= _MAX_OFFSET * abs(total.mean):
        return ()
    share = f"{offset_j / abs(total.mean):.1%}" if total.mean else "all"
    if energy.is_calibrated:
        return (f"the calibration leaves {share} of the total open, in no interval: calibrate with longer phases",)
    return (
        f"the sensor's offset, up to two steps a rail, may be {share} of the total and is in no interval: "
        "compare energy above idle, where it cancels",
    )


def _window_figures(
    phase: Phase, power: Power, measured: PhasePower, idle: IdlePower | None, *, is_idle: bool
) -> WindowFigures:
    name, energy = power.device.name, measured.energy
    start, end = phase.start.snapshots[name], phase.end.snapshots[name]
    inferences = end.inferences - start.inferences
    dynamic_j = energy.dynamic_j(idle.mean_w) if idle is not None else None
    warnings = []
    if inferences < 0:
        warnings.append("the device's counter went back: its agent was restarted")
    elif inferences == 0 and not is_idle:
        warnings.append("the device made no inference")
    if dynamic_j is not None and dynamic_j < 0:
        warnings.append("dynamic energy is negative: the work costs less than the sensor can resolve")
    if abs(energy.rise_w) > max(_MAX_RISE * abs(energy.mean_w), _MAX_RISE_STEPS * max(power.step_mw) / 1000):
        warnings.append(
            f"power is not steady, it changed by {energy.rise_w / energy.mean_w:+.1%} over the window, "
            "expected at most 2 %: warm up longer"
        )
    if power.calibration is not None and (warning := power.calibration.warning(energy.mean_w)) is not None:
        warnings.append(warning)
    return WindowFigures(
        number=phase.number,
        duration_s=(end.monotonic_ns - start.monotonic_ns) / 1e9,
        inferences=inferences,
        energy=energy,
        dynamic_j=dynamic_j,
        warnings=tuple(warnings),
        busy_s=(end.busy_ns - start.busy_ns) / 1e9 if end.busy_ns > start.busy_ns else None,
    )
