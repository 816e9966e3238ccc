"""The figures of one mode under a goal, with all devices and with any of them lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import msgspec

from devit_contract.artefacts.head import mask_of
from devit_contract.choices import Order, Policy
from devit_profiling.plan.cell import Cell
from devit_profiling.plan.goal import Goal
from devit_profiling.plan.modes import Mode, preference, rules_of
from devit_profiling.plan.simulation import Arrivals, Load, Outcome, Rules, simulate

_SATURATED = 0.4
"""Of the frames at a rate: a rate needs fewer than a percentile."""
ROOM = 0.9
"""Share of a deadline that a simulated p99 may take: on running cells it was up to a fifth higher, mostly lower."""
_MOST_LOAD = 0.97
"""Share of the saturated rate above which a queue of any length may form: no latency is given then."""


class Figures(msgspec.Struct, frozen=True):
    """What one mode is expected to do."""

    title: str
    policy: Policy
    stages: tuple[int, ...]
    order: Order
    early_release: bool
    accuracy: float
    """Share of the validation images, 0 to 1; so is the next."""
    accuracy_one_lost: float | None
    """The lowest with any one device lost; absent where there is no other."""
    p50_ms: float | None
    """At the goal's rate, from request to answer; absent where the rate is too high for the mode."""
    p99_ms: float | None
    p99_lost_ms: float | None
    """The highest with as many devices lost as the goal wants survived; absent as above, and where the deadline is
    missed without a loss."""
    answers_per_s: float
    """At saturation, with all devices."""
    answers_per_s_lost: float
    """At saturation, with the devices lost that it needs most, as many as the goal wants survived."""
    devices_asked: float
    """A frame, on average."""
    flips: float | None
    """Share of answers that differ from that of all devices; absent without a trial."""
    device_ms: float
    """Time of all devices together that an answer takes."""
    watts: float | None
    """At the goal's rate; absent where a device's power is not known."""
    j_per_answer: float | None
    accuracy_lost: float
    """The lowest with as many devices lost as the goal wants survived."""
    misses: tuple[str, ...] = ()
    """Keys of the goal that it does not keep."""


@dataclass(frozen=True)
class Promise:
    """How often an answer of some devices may differ from that of all, and how sure that is."""

    flips: float = 0.01
    confidence: float = 0.95


@dataclass
class Bench:
    """Simulates modes of one cell, and remembers what was simulated."""

    cell: Cell
    promise: Promise = Promise()
    arrivals: Arrivals = "poisson"
    seed: int = 1
    frames: int = 5000
    """Of each simulation at a rate."""
    _done: dict[tuple[object, ...], Outcome] = field(default_factory=dict)

    def figures(self, mode: Mode, goal: Goal) -> Figures:
        """Measure a mode against a goal."""
        cell = self.cell
        everyone = tuple(range(len(cell.devices)))
        remaining = list(remaining_after(everyone, goal.survive))
        whole = self.at_rate(mode, everyone, goal.rate_hz)
        saturated_hz = {present: self.saturated(mode, present).per_second for present in {everyone, *remaining}}
        loaded = whole if whole is not None else self.saturated(mode, everyone)
        p99_ms = whole.percentile_ms(99) if whole is not None else None
        one_lost = [self.accuracy(mode, present) for present in remaining_after(everyone, 1)] if everyone[1:] else []
        watts = self._watts(mode, loaded, goal)
        found = Figures(
            title=mode.title(len(cell.devices)),
            policy=mode.policy,
            stages=mode.stages,
            order=mode.order,
            early_release=mode.early_release,
            accuracy=self.accuracy(mode, everyone, loaded),
            accuracy_one_lost=min(one_lost, default=None),
            p50_ms=whole.percentile_ms(50) if whole is not None else None,
            p99_ms=p99_ms,
            p99_lost_ms=self._slowest_ms(mode, remaining, goal)
            if p99_ms and p99_ms <= ROOM * goal.deadline_ms
            else None,
            answers_per_s=saturated_hz[everyone],
            answers_per_s_lost=min(saturated_hz[present] for present in remaining),
            devices_asked=loaded.devices_asked,
            flips=cell.flip_share(loaded),
            device_ms=sum(
                loaded.inferences(number) * device.server.mean_ms for number, device in enumerate(cell.devices)
            ),
            watts=watts,
            j_per_answer=watts / goal.rate_hz if watts is not None else None,
            accuracy_lost=min(self.accuracy(mode, present) for present in remaining),
        )
        return msgspec.structs.replace(found, misses=misses(found, goal))

    def at_rate(self, mode: Mode, present: Sequence[int], rate_hz: float) -> Outcome | None:
        """Simulate requests at a rate; ``None`` if the devices cannot keep up with it."""
        if rate_hz > _MOST_LOAD * self.saturated(mode, present).per_second:
            return None
        return self._run(mode, present, Load(self.frames, self.cell.images, rate_hz=rate_hz, arrivals=self.arrivals))

    def saturated(self, mode: Mode, present: Sequence[int]) -> Outcome:
        """Simulate as many requests as keep all devices busy."""
        in_flight = 2 * self.cell.credit * len(self.cell.devices)
        return self._run(mode, present, Load(int(_SATURATED * self.frames), self.cell.images, in_flight=in_flight))

    def accuracy(self, mode: Mode, present: Sequence[int], outcome: Outcome | None = None) -> float:
        """Give the share of right answers of the devices that are left, by an outcome where they differ by frame."""
        if mode.is_certain or mode.policy == "replica":
            return self.cell.right_share(outcome if outcome is not None else self.saturated(mode, present))
        return self.cell.accuracy(mask_of([*(self._rules(mode, present).preference or present)]))

    def _slowest_ms(self, mode: Mode, remaining: Sequence[Sequence[int]], goal: Goal) -> float | None:
        """Give the highest p99 of those that are left; ``None`` if some cannot keep up with the rate."""
        outcomes = [self.at_rate(mode, present, goal.rate_hz) for present in remaining]
        known_ms = [outcome.percentile_ms(99) for outcome in outcomes if outcome is not None]
        return max(known_ms) if len(known_ms) == len(outcomes) else None

    def _rules(self, mode: Mode, present: Sequence[int]) -> Rules:
        return rules_of(self.cell, mode, present, self.promise.flips, self.promise.confidence)

    def _run(self, mode: Mode, present: Sequence[int], load: Load) -> Outcome:
        key = (mode, tuple(present), load)
        if key not in self._done:
            servers = {device: self.cell.devices[device].server for device in present}
            load = replace(load, credit=self.cell.credit, seed=self.seed)
            self._done[key] = simulate(self._rules(mode, present), servers, load)
        return self._done[key]

    def _watts(self, mode: Mode, loaded: Outcome, goal: Goal) -> float | None:
        """Add idle power and inferences; of ``single``, the devices that may have to take over are idle beside it."""
        cell = self.cell
        if not cell.has_power:
            return None
        switched_on: Sequence[int] = range(len(cell.devices))
        if mode.policy == "single":
            switched_on = preference(cell, mode.order, switched_on)[: 1 + goal.survive]
        idle_w = sum(cell.devices[number].idle_w or 0.0 for number in switched_on)
        each_j = sum(
            loaded.inferences(number) * (device.above_idle_j or 0.0) for number, device in enumerate(cell.devices)
        )
        return cell.extras_w + idle_w + goal.rate_hz * each_j


def remaining_after(devices: Sequence[int], lost: int) -> Iterator[tuple[int, ...]]:
    """List what any loss of so many devices leaves.

    >>> list(remaining_after((0, 1, 2), 1))
    [(0, 1), (0, 2), (1, 2)]
    """
    return combinations(devices, len(devices) - lost)


def misses(figures: Figures, goal: Goal) -> tuple[str, ...]:
    """Name the keys of a goal that a mode does not keep, with the devices lost that it has to survive.

    A deadline is kept with a tenth of it to spare.
    """
    slowest_ms, lost_ms = figures.p99_ms, figures.p99_lost_ms
    is_late = slowest_ms is not None and max(slowest_ms, lost_ms or 0.0) > ROOM * goal.deadline_ms
    worst = min(figures.accuracy, figures.accuracy_lost)
    found = {
        "rate": slowest_ms is None or (lost_ms is None and not is_late),
        "deadline-ms": is_late,
        "watts": goal.watts is not None and (figures.watts is None or figures.watts > goal.watts),
        "accuracy": goal.accuracy is not None and 100 * worst < goal.accuracy,
    }
    return tuple(key for key, is_missed in found.items() if is_missed)
