"""The joules of a whole cell: its devices, its node and what else it needs, over the same windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from devit_contract.artefacts.fleet import Extra
from devit_profiling.figures.energy import resolution_w
from devit_profiling.figures.evidence import Evidence
from devit_profiling.figures.interval import NORMAL_95, Estimate, estimate
from devit_profiling.figures.joules import DeviceEnergy
from devit_profiling.figures.power import Power
from devit_profiling.record.record import NODE, DeviceRecord, Run

PartKind = Literal["device", "node", "extra"]


class CellPart(msgspec.Struct, frozen=True):
    """One consumer of the cell, over the windows of the sum."""

    name: str
    kind: PartKind
    scope: str
    """What its joules cover; of an extra, where its watts come from; empty: not measured."""
    is_simulated: bool = False
    mean_w: float | None = None
    j_per_answer: float | None = None
    left_out: str = ""
    """Why it is not in the sum of all parts; empty where it is."""


class WholeCell(msgspec.Struct, frozen=True):
    """The joules of all parts that are known, added."""

    scope: str
    """Every part by name."""
    left_out: tuple[str, ...]
    """What is not in it, and why."""
    is_simulated: bool
    mean_w: float
    total_j_per_answer: Estimate
    """Stated watts have no interval, and widen this one by nothing."""


class CellEnergy(msgspec.Struct, frozen=True):
    """The named devices of the cell together, over the same windows; and with all else that is known."""

    scope: str
    not_measured: str
    is_simulated: bool
    mean_w: float | None = None
    """Of the named devices, as are the figures up to the offset."""
    total_j_per_answer: Estimate | None = None
    resolution_j_per_answer: float | None = None
    offset_j_per_answer: float | None = None
    """As :attr:`~.joules.DeviceEnergy.offset_j_per_inference`, of all devices together."""
    parts: tuple[CellPart, ...] = ()
    """Devices, node, extras."""
    node: DeviceEnergy | None = None
    """Of the node's machine, its inferences being the answers; absent where it was not sampled."""
    whole: WholeCell | None = None
    """Absent where the devices have no sum."""


@dataclass(frozen=True)
class CellContext:
    """What a cell needs besides its devices."""

    node: DeviceEnergy | None
    node_left_out: str
    """Why the node's machine is in no sum; empty where it is."""
    extras: Sequence[Extra]


def node_left_out(evidence: Evidence, energy: DeviceEnergy | None = None) -> str:
    """Say why the node's machine is in no sum; empty where it is. Without its energy, the samples alone count."""
    run, power = evidence.run, evidence.node
    if run.node is None:
        return "this run was recorded before the node's sensor was looked for"
    if power is None:
        return run.node.sensor_problem
    if power.not_measured:
        return power.not_measured
    same = [device.name for device in run.devices if _is_here(device, run)]
    if same and not power.is_simulated:
        return f"it runs on the machine of {', '.join(same)}, whose joules contain it"
    return energy.not_measured if energy is not None else ""


def _is_here(device: DeviceRecord, run: Run) -> bool:
    """Check whether a device is the host: its clock always reads what that machine's does."""
    name = device.name
    readings = [
        (boundary.asked_ns[name], boundary.snapshots[name].monotonic_ns)
        for boundary in run.boundaries
        if name in boundary.asked_ns
    ]
    return bool(readings) and all(before_ns <= at_ns <= after_ns for (before_ns, after_ns), at_ns in readings)


def cell_energy(
    energies: Sequence[DeviceEnergy],
    powers: Sequence[Power],
    answers: Mapping[int, int],
    devices: int,
    context: CellContext,
) -> CellEnergy:
    """Add the named devices of a scenario in which all devices work; without the joules of one there is no sum.

    Energies and powers have the same order. Answers are counted by window, failed frames left out; ``devices`` is the
    size of the cell.
    """
    scope = f"{len(energies)} of {devices} devices of the cell, without the fusion node: "
    scope += " + ".join(f"{energy.device} {energy.scope or 'not measured'}" for energy in energies)
    is_simulated = any(energy.is_simulated for energy in energies)
    missing = [energy.device for energy in energies if energy.not_measured]
    if missing:
        return CellEnergy(scope, f"no joules of {', '.join(missing)}, and a sum of the others is no cell", is_simulated)
    summed = [*energies, *([context.node] if context.node is not None and not context.node_left_out else [])]
    windows = [_joules(energy) for energy in summed]
    numbers = [number for number in sorted(windows[0]) if answers.get(number) and all(number in own for own in windows)]
    if not numbers:
        return CellEnergy(scope, "no window with power of all named devices and an answer", is_simulated)
    seconds = {window.number: window.duration_s for window in energies[0].windows if window.number in numbers}
    steps_mw = [step for power in powers for step in power.step_mw]
    fixed_w = [power.fixed_95_w(energy.mean_w or 0.0) for power, energy in zip(powers, energies, strict=True)]
    spans = _Spans(seconds, answers)
    total_j = {number: sum(own[number] for own in windows[: len(energies)]) for number in numbers}
    return CellEnergy(
        scope=scope,
        not_measured="",
        is_simulated=is_simulated,
        mean_w=sum(total_j.values()) / spans.total_s,
        total_j_per_answer=_per_answer(total_j, spans, energies),
        resolution_j_per_answer=resolution_w(steps_mw) * spans.each_s,
        offset_j_per_answer=math.hypot(*fixed_w) * spans.each_s,
        parts=_parts(summed, len(energies), spans, context),
        node=context.node,
        whole=_whole(summed, spans, context, devices - len(energies)),
    )


@dataclass(frozen=True)
class _Spans:
    """The windows of a sum."""

    seconds: Mapping[int, float]
    answers: Mapping[int, int]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def each_s(self) -> float:
        """Mean time per answer, in seconds."""
        return self.total_s / sum(self.answers[number] for number in self.seconds)


def _joules(energy: DeviceEnergy) -> dict[int, float]:
    """By window, as if what samples leave uncovered had the mean power."""
    return {window.number: window.energy.mean_w * window.duration_s for window in energy.windows}


def _per_answer(joules: Mapping[int, float], spans: _Spans, energies: Sequence[DeviceEnergy]) -> Estimate:
    steps_95 = NORMAL_95 * math.hypot(*(energy.steps_w or 0.0 for energy in energies)) * spans.each_s
    return estimate([joules[number] / spans.answers[number] for number in spans.seconds], steps_95)


def _parts(summed: Sequence[DeviceEnergy], devices: int, spans: _Spans, context: CellContext) -> tuple[CellPart, ...]:
    parts = []
    for place, energy in enumerate(summed):
        mean_w = sum(_joules(energy)[number] for number in spans.seconds) / spans.total_s
        kind: PartKind = "device" if place < devices else "node"
        parts.append(CellPart(energy.device, kind, energy.scope, energy.is_simulated, mean_w, mean_w * spans.each_s))
    if context.node_left_out:
        parts.append(CellPart(NODE, "node", "", left_out=context.node_left_out))
    for extra in context.extras:
        each_j = extra.watts * spans.each_s
        parts.append(CellPart(extra.name, "extra", extra.source, mean_w=extra.watts, j_per_answer=each_j))
    return tuple(parts)


def _whole(summed: Sequence[DeviceEnergy], spans: _Spans, context: CellContext, unnamed: int) -> WholeCell:
    extras_w = sum(extra.watts for extra in context.extras)
    joules = {
        number: sum(_joules(energy)[number] for energy in summed) + extras_w * seconds
        for number, seconds in spans.seconds.items()
    }
    names = [f"{energy.device} {energy.scope}" for energy in summed]
    names += [f"{extra.name} {extra.watts:g} W stated ({extra.source})" for extra in context.extras]
    left_out = [f"{NODE}: {context.node_left_out}"] if context.node_left_out else []
    left_out += [f"{unnamed} devices of the cell that were not named"] if unnamed else []
    return WholeCell(
        scope=" + ".join(names),
        left_out=tuple(left_out),
        is_simulated=any(energy.is_simulated for energy in summed),
        mean_w=sum(joules.values()) / spans.total_s,
        total_j_per_answer=_per_answer(joules, spans, summed),
    )
