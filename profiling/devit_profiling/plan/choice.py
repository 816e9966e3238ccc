"""Picks the mode for a goal, and says why and what would be better."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from devit_contract.errors import InputError
from devit_contract.service.progress import Progress, no_progress
from devit_profiling.plan.cell import PlannedDevice
from devit_profiling.plan.figures import ROOM, Bench, Figures
from devit_profiling.plan.goal import Goal
from devit_profiling.plan.modes import modes_of
from devit_profiling.plan.nearest import nearest_goal
from devit_profiling.plan.simulation import Load, Rules, simulate

_SAME_POINTS = 0.1
"""Accuracies so near are the same: half of the shipped test set's standard error."""
_SAME_COST = 0.02


class Baseline(msgspec.Struct, frozen=True):
    """The baseline model on one device, beside the cell."""

    device: str
    accuracy: float | None
    """Validation accuracy, 0 to 1."""
    p99_ms: float | None
    """At the goal's rate; absent where the device cannot keep up."""
    watts: float | None
    j_per_answer: float | None
    is_better: bool
    """Whether it keeps the goal at no less accuracy and no more joules than the mode that was picked."""


class Choice(msgspec.Struct, frozen=True):
    """What ``devit plan`` answers."""

    goal: str
    picked: Figures
    why: str
    advice: str
    """When one device with one model is the better choice; empty if it is not."""
    modes: tuple[Figures, ...]
    """All of them, the picked one too."""
    baseline: Baseline | None
    overhead_from: str
    """Where the time beyond the inference comes from."""


def choose(bench: Bench, goal: Goal, progress: Progress = no_progress) -> Choice:
    """Pick the mode that keeps a goal best.

    With an accuracy in the goal, that is the one of the least cost an answer; without, the most accurate one. What
    differs by less than 0.1 points or 2 % is the same, and the mode that asks less is simpler.

    Raises:
        InputError: No mode keeps it, and the text names the nearest goal that one does; or the goal cannot be judged.
    """
    _check(bench, goal)
    modes = modes_of(bench.cell)
    found = []
    for number, mode in enumerate(modes):
        progress("modes", number, len(modes), mode.title(len(bench.cell.devices)))
        found.append(bench.figures(mode, goal))
    progress("modes", len(modes), len(modes))
    kept = [figures for figures in found if not figures.misses]
    if not kept:
        near, mode = nearest_goal(bench, goal)
        title = mode.title(len(bench.cell.devices))
        raise InputError(f"no mode keeps {goal.text}: the nearest goal that one does is {near.text} ({title})")
    picked = _best(kept, goal)
    baseline = _baseline(bench, goal, picked)
    return Choice(
        goal=goal.text,
        picked=picked,
        why=_why(picked, found, goal),
        advice=_advice(picked, baseline, goal),
        modes=tuple(found),
        baseline=baseline,
        overhead_from=bench.cell.overhead_from,
    )


def _check(bench: Bench, goal: Goal) -> None:
    devices = bench.cell.devices
    if goal.survive >= len(devices):
        raise InputError(f"--goal: survive: expected less than the {len(devices)} devices, found {goal.survive}")
    if goal.watts is not None and not bench.cell.has_power:
        names = [device.name for device in devices if device.idle_w is None or device.above_idle_j is None]
        raise InputError(
            f"--goal: watts: the profile of {', '.join(names)} has no joules: "
            "measure it with a power sensor, or leave watts out"
        )


def _cost(figures: Figures) -> float:
    return figures.j_per_answer if figures.j_per_answer is not None else figures.device_ms


def _best(kept: Sequence[Figures], goal: Goal) -> Figures:
    """Choose among modes that keep the goal, which come from simple to costly."""
    if goal.accuracy is None:
        most = max(figures.accuracy for figures in kept)
        kept = [figures for figures in kept if 100 * (most - figures.accuracy) <= _SAME_POINTS]
    least = min(map(_cost, kept))
    return next(figures for figures in kept if _cost(figures) <= least * (1 + _SAME_COST))


def _why(picked: Figures, found: Sequence[Figures], goal: Goal) -> str:
    unit = "joules" if picked.j_per_answer is not None else "device time"
    rule = f"the least {unit} an answer" if goal.accuracy is not None else "the most accurate"
    text = f"of the modes that keep the goal it is {rule}"
    if goal.accuracy is None:
        text += f", and of those within {_SAME_POINTS:g} points it takes the least {unit} an answer"
    others = []
    for policy in ("single", "replica", "certain", "all"):
        same = [figures for figures in found if figures.policy == policy and not figures.early_release]
        if same and policy != picked.policy and all(figures.misses for figures in same):
            best = max(same, key=lambda figures: (-len(figures.misses), figures.accuracy))
            others.append(f"{'cell' if policy == 'all' else policy} misses {' and '.join(best.misses)}")
    return "; ".join([text, *others])


def _baseline(bench: Bench, goal: Goal, picked: Figures) -> Baseline | None:
    """Simulate the baseline model on its device, with an idle one more for each that may be lost."""
    device, record = bench.cell.baseline, bench.cell.manifest.baseline_accuracy
    if device is None:
        return None
    accuracy = record.validation_accuracy if record is not None else None
    p99_ms = None
    if goal.rate_hz * device.server.mean_ms < 970:
        load = Load(5000, 1, rate_hz=goal.rate_hz, arrivals=bench.arrivals, credit=bench.cell.credit, seed=bench.seed)
        p99_ms = simulate(Rules((1,)), {0: device.server}, load).percentile_ms(99)
    watts = _baseline_watts(bench, device, goal)
    is_kept = (
        p99_ms is not None and p99_ms <= ROOM * goal.deadline_ms and (goal.watts is None or (watts or 0) <= goal.watts)
    )
    is_good = accuracy is not None and 100 * (picked.accuracy - accuracy) <= _SAME_POINTS
    is_cheap = watts is None or picked.watts is None or watts <= picked.watts
    return Baseline(
        device=device.name,
        accuracy=accuracy,
        p99_ms=p99_ms,
        watts=watts,
        j_per_answer=watts / goal.rate_hz if watts is not None else None,
        is_better=is_kept and is_good and is_cheap,
    )


def _baseline_watts(bench: Bench, device: PlannedDevice, goal: Goal) -> float | None:
    if device.idle_w is None or device.above_idle_j is None:
        return None
    return bench.cell.extras_w + (1 + goal.survive) * device.idle_w + goal.rate_hz * device.above_idle_j


def _advice(picked: Figures, baseline: Baseline | None, goal: Goal) -> str:
    spare = f", and {goal.survive} more to take over" if goal.survive else ""
    if baseline is not None and baseline.is_better:
        return f"one device with one model is the better choice: the baseline model on {baseline.device}{spare}"
    if picked.policy == "single":
        return f"one device with one model is the better choice{spare}: the others add nothing to this goal"
    return ""
