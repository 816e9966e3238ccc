"""The joules of a whole cell: its measured devices added over the same windows, each answer once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from devit_profiling.energy import resolution_w
from devit_profiling.interval import NORMAL_95, Estimate, estimate
from devit_profiling.joules import DeviceEnergy
from devit_profiling.power import Power


class CellEnergy(msgspec.Struct, frozen=True):
    """The named devices of the cell together, over the same windows."""

    scope: str
    not_measured: str
    is_simulated: bool
    mean_w: float | None = None
    total_j_per_answer: Estimate | None = None
    resolution_j_per_answer: float | None = None
    offset_j_per_answer: float | None = None
    """As :attr:`~.joules.DeviceEnergy.offset_j_per_inference`, of all devices together."""


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
    steps_mw = [step for power in powers for step in power.step_mw]
    fixed_w = [power.fixed_95_w(energy.mean_w or 0.0) for power, energy in zip(powers, energies, strict=True)]
    each_s = sum(seconds) / sum(answers[number] for number in numbers)
    steps_95 = NORMAL_95 * math.hypot(*(energy.steps_w or 0.0 for energy in energies)) * each_s
    return CellEnergy(
        scope=scope,
        not_measured="",
        is_simulated=is_simulated,
        mean_w=sum(sum(joules[number]) for number in numbers) / sum(seconds),
        total_j_per_answer=estimate([sum(joules[number]) / answers[number] for number in numbers], steps_95),
        resolution_j_per_answer=resolution_w(steps_mw) * each_s,
        offset_j_per_answer=math.hypot(*fixed_w) * each_s,
    )
