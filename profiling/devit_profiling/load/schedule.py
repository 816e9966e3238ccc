"""How long the scenarios of a run take, and how far one of them has come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from devit_contract.errors import InputError
from devit_contract.service.progress import Progress
from devit_profiling.figures.energy import LATEST, least_of
from devit_profiling.figures.thermal import is_sustained
from devit_profiling.record.record import IDLE, IDLE_AFTER, SETTLE, PhaseKind, Plan, Scenario

STEP_S = 0.25
"""Time between two reports of progress."""


class Watch:
    """Reports how much of a scenario has passed, at most four times a second."""

    def __init__(self, progress: Progress, plan: Plan, scenario: Scenario) -> None:
        """Start the clock of a scenario."""
        self._progress = progress
        self._stage = scenario.name
        self._planned_s = planned_s(plan, [scenario])
        self._start_s = time.monotonic()
        self._due_s = self._start_s

    def show(self, phase: str) -> None:
        """Report the phase, if it is time to."""
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + STEP_S
            # A scenario that takes longer than planned is not shown as done.
            done_s = min(now_s - self._start_s, 0.99 * self._planned_s)
            self._progress(self._stage, done_s, self._planned_s, phase)

    def finish(self) -> None:
        """Report that the scenario is done."""
        self._progress(self._stage, self._planned_s, self._planned_s)


@contextmanager
def between_rests(plan: Plan, rest: Callable[[PhaseKind, float], None]) -> Iterator[None]:
    """Have the load of the block lie between idle phases, each after some rest, as far as they are planned."""
    rest(SETTLE, plan.settle_s)
    rest(IDLE, plan.idle_s)
    yield
    if plan.has_idle_after:
        rest(SETTLE, plan.settle_s)
        rest(IDLE_AFTER, plan.idle_s)


def check_windows(plan: Plan) -> None:
    """Refuse, before anything is measured, windows that hold too little for joules.

    Raises:
        InputError: They are too short for the sampling period, or have too few samples.
    """
    period_s = plan.interval_ms / 1000 * LATEST
    least = least_of(period_s)
    least_s = max(least.duration_s, math.ceil(least.samples * period_s))
    if plan.has_power and plan.window_samples is None and plan.duration_s < least_s:
        raise InputError(
            f"plan: windows of {plan.duration_s:g} s with a sample every {plan.interval_ms} ms give no joules: "
            f"choose --duration {least_s:g} or longer, or --no-power to measure times alone"
        )


def first_line_s(interval_ms: int) -> float:
    """Give how long a sampler's first line may take."""
    return 5.0 + 2 * interval_ms / 1000


def tail_s(interval_ms: int) -> float:
    """Give how long to sample after the last phase: real periods are up to 9 % longer than the interval."""
    return 2.5 * interval_ms / 1000


def planned_s(plan: Plan, scenarios: Iterable[Scenario]) -> float:
    """Add up how long scenarios are meant to take, at most where they are sustained; slow warm-ups take longer."""
    return sum(_scenario_s(plan, scenario) for scenario in scenarios)


def _scenario_s(plan: Plan, scenario: Scenario) -> float:
    windows_s = plan.windows * plan.duration_s
    if scenario.is_idle:
        return plan.settle_s + windows_s
    if is_sustained(scenario, plan) and plan.sustained_s is not None:
        windows_s = plan.sustained_s
    rests = 2 if plan.has_idle_after else 1
    return rests * (plan.settle_s + plan.idle_s) + plan.warm_up_s + windows_s
