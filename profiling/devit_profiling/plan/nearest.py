"""The nearest goal that some mode keeps, where none keeps the one that was asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from devit_profiling.plan.figures import ROOM, Bench
from devit_profiling.plan.goal import Goal
from devit_profiling.plan.modes import Mode, modes_of

_SLOWER = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
"""Shares of the rate that are tried."""
_CALM = 0.5
"""Share of the saturated rate at which a mode is shown to work at all."""
_DEVICE_LOST = 1.0
"""One device less to survive: as far off as a deadline that is e times longer."""
_POINT = 0.1
"""One point of accuracy less."""


def nearest_goal(bench: Bench, goal: Goal) -> tuple[Goal, Mode]:
    """Loosen the deadline, the rate or both, then watts and accuracy as far as a mode needs it, then the survivors."""
    best = (math.inf, goal, Mode("all"))
    for survive in range(goal.survive, -1, -1):
        for mode in modes_of(bench.cell):
            for wanted in _loosened(bench, mode, replace(goal, survive=survive)):
                if distance(goal, wanted) >= best[0]:
                    break  # those that follow are farther
                near = _kept(bench, mode, wanted)
                if near is not None:
                    if distance(goal, near) < best[0]:
                        best = distance(goal, near), near, mode
                    break
    return best[1:]


def distance(goal: Goal, other: Goal) -> float:
    """Add up how far each number was moved: by its logarithm, by points, by devices."""
    pairs = [(goal.deadline_ms, other.deadline_ms), (goal.rate_hz, other.rate_hz)]
    if goal.watts is not None and other.watts is not None:
        pairs.append((goal.watts, other.watts))
    moved = sum(abs(math.log(new / old)) for old, new in pairs)
    if goal.accuracy is not None and other.accuracy is not None:
        moved += _POINT * (goal.accuracy - other.accuracy)
    return moved + _DEVICE_LOST * (goal.survive - other.survive)


def _loosened(bench: Bench, mode: Mode, goal: Goal) -> Iterator[Goal]:
    """List goals that are looser in rate and deadline, from near to far."""
    found = [goal]
    figures = bench.figures(mode, replace(goal, deadline_ms=math.inf))
    if "rate" not in figures.misses:
        found.append(replace(goal, deadline_ms=_slowest_ms(bench, mode, goal)))
    found += [replace(goal, rate_hz=rounded(share * goal.rate_hz, up=False)) for share in _SLOWER]
    calm = replace(goal, rate_hz=rounded(min(goal.rate_hz, _CALM * figures.answers_per_s_lost), up=False))
    found.append(replace(calm, deadline_ms=_slowest_ms(bench, mode, calm)))
    yield from sorted(found, key=lambda each: distance(goal, each))


def _slowest_ms(bench: Bench, mode: Mode, goal: Goal) -> float:
    figures = bench.figures(mode, replace(goal, deadline_ms=math.inf))
    slowest_ms = max(figures.p99_ms or 0.0, figures.p99_lost_ms or 0.0)
    return max(goal.deadline_ms, rounded(slowest_ms / ROOM, up=True))


def _kept(bench: Bench, mode: Mode, goal: Goal) -> Goal | None:
    """Loosen watts and accuracy as far as a mode needs it; ``None`` if it misses the rate or the deadline."""
    figures = bench.figures(mode, goal)
    if {"rate", "deadline-ms"} & {*figures.misses}:
        return None
    if "watts" in figures.misses and figures.watts is not None:
        goal = replace(goal, watts=rounded(figures.watts, up=True))
    if "accuracy" in figures.misses:
        goal = replace(goal, accuracy=math.floor(1000 * min(figures.accuracy, figures.accuracy_lost)) / 10)
    return goal


def rounded(value: float, *, up: bool) -> float:
    """Round to two digits, to the safe side.

    >>> rounded(41.2, up=True), rounded(0.1294, up=False)
    (42.0, 0.12)
    """
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round((math.ceil if up else math.floor)(value / step) * step, 12)
