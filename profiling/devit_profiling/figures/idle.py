"""Phases of a run measured between a device's own snapshots, and the idle power made of two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from devit_contract.errors import EnergyError
from devit_profiling.figures.energy import Minimum, WindowEnergy, measure_window
from devit_profiling.figures.interval import NORMAL_95, StepError, independent, mean_step_error, step_error
from devit_profiling.figures.power import Power
from devit_profiling.figures.settling import TimeConstant, changed_s
from devit_profiling.record.record import IDLE, IDLE_AFTER, Phase, Plan

_MAX_DRIFT = 0.03
_MAX_DRIFT_STEPS = 2.0


@dataclass(frozen=True)
class PhasePower:
    """Mean power of one phase of one device, and what it is worth."""

    energy: WindowEnergy
    steps: StepError
    independent: float
    """Number of independent readings."""

    @property
    def scatter_w(self) -> float:
        """Standard error of the mean power by the scatter of the readings."""
        return self.energy.sd_w / math.sqrt(self.independent)


class PhaseIntegrator:
    """Integrates power over the phases of one device in one scenario; what cannot be measured becomes a warning."""

    def __init__(self, power: Power, phases: Sequence[Phase], constant: TimeConstant) -> None:
        """Keep the device's samples, the scenario's phases and the sensor's time constant."""
        self.warnings: list[str] = []
        self._power = power
        self._total_w = power.total_w
        self._phases = phases
        self._constant = constant

    def measure(self, phase: Phase, minimum: Minimum | None) -> PhasePower | None:
        """Measure a phase, without the time in which the sensor still follows a change of load.

        The minimum counts for the whole phase; by default it is that of :func:`~.energy.measure_window`.
        """
        name = self._power.device.name
        start_s, end_s = (at_ns / 1e9 for at_ns in phase.span_ns(name))
        unsettled_s = self._unsettled_s(phase, start_s, end_s, name)
        try:
            energy = measure_window(
                self._total_w, self._power.time_s, start_s + unsettled_s, end_s, minimum, left_out_s=unsettled_s
            )
        except EnergyError as err:
            self.warnings.append(f"{phase.title}: {err}")
            return None
        inside = (self._power.time_s >= energy.start_s) & (self._power.time_s <= energy.end_s)
        count = independent(energy.samples, energy.duration_s, self._constant.tau_s)
        rails_w = self._power.gain * self._power.rails_w[inside]
        return PhasePower(energy, step_error(rails_w, self._power.step_mw, count), count)

    def _unsettled_s(self, phase: Phase, start_s: float, end_s: float, name: str) -> float:
        """Give how much of a phase's start to leave out; never more than half of it."""
        step_s = changed_s(self._phases, phase, name)
        unsettled_s = 0.0 if step_s is None else max(step_s + self._constant.guard_s - start_s, 0.0)
        if unsettled_s == 0:
            return 0.0
        is_short = unsettled_s > (end_s - start_s) / 2
        self.warnings.append(
            f"{phase.title}: the load changed less than 5 time constants ({self._constant.guard_s:.1f} s) before it, "
            + (
                "and it is too short to leave that out: measure longer"
                if is_short
                else f"so its first {unsettled_s:.1f} s are left out"
            )
        )
        return 0.0 if is_short else unsettled_s


@dataclass(frozen=True)
class IdlePower:
    """Idle power before and after the load, as far as it was measured."""

    mean_w: float
    drift_w: float | None
    """Change from before to after; absent for a single idle phase."""
    drift: float | None
    """The same as a share of the first."""
    steps: StepError
    error_w: float
    """Standard error of the mean by scatter and drift: idle power during the windows is between the two."""

    @property
    def half_95_w(self) -> float:
        """Half-width in watts of scatter and drift."""
        return NORMAL_95 * self.error_w


def idle_power(integrator: PhaseIntegrator, phases: Sequence[Phase], plan: Plan) -> IdlePower | None:
    """Measure the idle phases; ``None`` without any."""
    measured = {}
    for phase in phases:
        if phase.kind in (IDLE, IDLE_AFTER):
            found = integrator.measure(phase, Minimum(plan.idle_s, plan.idle_samples))
            if found is not None:
                measured[phase.kind] = found
                integrator.warnings += [f"{phase.kind}: {warning}" for warning in found.energy.warnings]
    if not measured:
        return None
    means_w = [found.energy.mean_w for found in measured.values()]
    scatter_w = math.hypot(*(found.scatter_w for found in measured.values())) / len(measured)
    drift_w = drift = None
    if len(measured) == 2:
        first_w = measured[IDLE].energy.mean_w
        drift_w = measured[IDLE_AFTER].energy.mean_w - first_w
        drift = drift_w / first_w if first_w != 0 else None
    return IdlePower(
        mean_w=sum(means_w) / len(means_w),
        drift_w=drift_w,
        drift=drift,
        steps=mean_step_error([found.steps for found in measured.values()]),
        # Anywhere between the two is equally likely, hence the root of 12.
        error_w=math.hypot(scatter_w, (drift_w or 0.0) / math.sqrt(12)),
    )


def drift_warning(idle: IdlePower, steps_mw: Sequence[float]) -> str | None:
    """Warn of an idle power that drifts by more than 3 % or two steps of the converter."""
    if idle.drift_w is None:
        return None
    steps = abs(idle.drift_w) * 1000 / max(steps_mw)
    if steps <= _MAX_DRIFT_STEPS and (idle.drift is None or abs(idle.drift) <= _MAX_DRIFT):
        return None
    share = f"by {idle.drift:+.1%}" if idle.drift is not None else f"by {idle.drift_w:+.3f} W"
    return (
        f"idle power drifted {share}, {steps:.1f} steps of the sensor, from before to after, "
        "expected at most 3 % and 2 steps: let the board settle longer"
    )
