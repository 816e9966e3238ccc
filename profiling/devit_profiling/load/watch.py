"""Tells whoever waits how far a scenario has come."""

from __future__ import annotations

import time

from devit_contract.service.progress import Progress
from devit_profiling.figures.thermal import is_sustained
from devit_profiling.record.record import Plan, Scenario

STEP_S = 0.25
"""Time between two words."""


class Watch:
    """Tells how much of a scenario has passed, at most four times a second."""

    def __init__(self, progress: Progress, stage: str, planned_s: float) -> None:
        """Begin to count now.

        Args:
            progress: Is told.
            stage: Name of the scenario.
            planned_s: How long it is meant to take.
        """
        self._progress = progress
        self._stage = stage
        self._planned_s = planned_s
        self._start_s = time.monotonic()
        self._due_s = self._start_s

    def show(self, phase: str) -> None:
        """Tell the phase, if it is time to."""
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + STEP_S
            # What takes longer than planned is not done before it is.
            done_s = min(now_s - self._start_s, 0.99 * self._planned_s)
            self._progress(self._stage, done_s, self._planned_s, phase)

    def finish(self) -> None:
        """Tell that it is done."""
        self._progress(self._stage, self._planned_s, self._planned_s)


def scenario_s(plan: Plan, scenario: Scenario) -> float:
    """Tell how long one scenario is meant to take, at most where it is sustained."""
    rests = 2 if plan.has_idle_after else 1
    windows_s = plan.windows * plan.duration_s
    if is_sustained(scenario, plan) and plan.sustained_s is not None:
        windows_s = plan.sustained_s
    return rests * (plan.settle_s + plan.idle_s) + plan.warm_up_s + windows_s
