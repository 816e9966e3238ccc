"""The modes that a cell can run in, and their rules for the simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devit_contract.choices import Order, Policy
from devit_profiling.plan.cell import Cell
from devit_profiling.plan.simulation import Rules

_SHAPES = ((1,), (1, 1), (1, 1, 1), (2,))
"""Devices asked in each stage that may end a frame; the rest are asked together in a last one."""


@dataclass(frozen=True)
class Mode:
    """One way to serve, as ``fleet.toml`` writes it."""

    policy: Policy
    stages: tuple[int, ...] = ()
    """Of ``certain``: without the last stage, which asks the rest."""
    order: Order = "rotating"
    early_release: bool = False

    @property
    def is_certain(self) -> bool:
        """Whether an answer may be given before all devices have."""
        return self.policy == "certain" or self.early_release

    def title(self, devices: int) -> str:
        """Name it for people.

        >>> Mode("certain", (1, 1)).title(4), Mode("all").title(4)
        ('certain 1-1-2 rotating', 'cell')
        """
        if self.policy == "all":
            return "cell, early release" if self.early_release else "cell"
        if self.policy != "certain":
            return self.policy
        return f"certain {stages_text(self.stages, devices)} {self.order}"


def stages_text(stages: Sequence[int], devices: int) -> str:
    """Name all devices by stage.

    >>> stages_text((1, 1), 4), stages_text((1, 1, 1), 3)
    ('1-1-2', '1-1-1')
    """
    rest = devices - sum(stages)
    return "-".join(map(str, [*stages, rest] if rest > 0 else stages))


def modes_of(cell: Cell) -> list[Mode]:
    """List the modes from the simplest to the one that asks most; orders that ask the same devices come once.

    Those that answer on fewer than the quorum are left out.
    """
    count, everyone = len(cell.devices), range(len(cell.devices))
    fixed: tuple[Order, ...] = ("best", "cost")
    if preference(cell, "best", everyone) == preference(cell, "cost", everyone):
        fixed = ("best",)
    modes: list[Mode] = [Mode("single", order="best")] if cell.min_devices == 1 else []
    if count == 1:
        return modes
    modes += [Mode("replica")] if cell.min_devices == 1 else []
    if cell.calibration is not None and cell.calibration.trial is not None:
        shapes = [shape for shape in _SHAPES if sum(shape) < count and shape[0] >= cell.min_devices]
        orders: tuple[Order, ...] = ("rotating", *fixed)
        modes += [Mode("certain", shape, order) for shape in shapes for order in orders]
        modes.append(Mode("all", early_release=True))
    return [*modes, Mode("all")]


def preference(cell: Cell, order: Order, present: Sequence[int]) -> tuple[int, ...]:
    """Rank devices for an order; empty where it depends on the load."""
    if order == "rotating":
        return ()
    if order == "best":
        return tuple(sorted(present, key=lambda device: -cell.accuracy(1 << device)))
    return tuple(sorted(present, key=lambda device: cell.devices[device].server.mean_ms))


def rules_of(cell: Cell, mode: Mode, present: Sequence[int], flips: float, confidence: float) -> Rules:
    """Say which devices are asked when, where only those of ``present`` are left."""
    order = preference(cell, mode.order, present)
    if mode.policy == "single":
        return Rules((1,), order[:1])
    if mode.policy == "replica":
        return Rules((1,))
    count = len(present)
    if mode.policy == "all":
        tests = max(1, len(cell.devices) - 1)
        certain = cell.certain(flips, confidence, tests) if mode.early_release else None
        return Rules((count,), certain=certain, tests_each=mode.early_release)
    stages: list[int] = []
    for size in mode.stages:
        stages.append(min(size, count - sum(stages)))
    rest = count - sum(stages)
    certain = cell.certain(flips, confidence, len(mode.stages))
    return Rules(tuple(size for size in [*stages, rest] if size > 0), order, certain)
