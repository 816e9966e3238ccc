"""Sizes and classes of submodels by what each device can do in time, as a recipe on top of another one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from devit_contract.artefacts.files import read_toml_tables, write_bytes
from devit_contract.errors import InputError
from devit_profiling.plan.cell import Cell
from devit_profiling.plan.figures import Bench
from devit_profiling.plan.goal import Goal
from devit_profiling.plan.modes import Mode
from devit_profiling.plan.simulation import Server
from devit_profiling.plan.written import toml_lines

_HEAD = "# Sizes by what each device does in time, made by devit plan: build it with devit decompose."
_HALVINGS = 10
_SHORTEST_SHARE = 0.01
"""Of the deadline: a submodel that has less time is none."""


@dataclass(frozen=True)
class Size:
    """What one device's submodel may be."""

    device: str
    macs: int
    """Multiply-accumulates that the device does in the time."""
    scale: float
    """Against the multiply-accumulates of its submodel of today."""
    classes: int
    """Those that it is first trained on."""


def sizes_of(bench: Bench, mode: Mode, goal: Goal) -> tuple[float, list[Size]]:
    """Find the longest inference, in ms, with which a mode keeps a goal if all devices take it, and what fits in.

    Raises:
        InputError: Not even a hundredth of the deadline does.
    """
    cell = bench.cell
    time_ms = _longest_ms(bench, mode, goal)
    graphs = cell.manifest.submodels
    per_ms = [graph.macs / device.server.mean_ms for graph, device in zip(graphs, cell.devices, strict=True)]
    classes = shared(len(cell.manifest.labels), per_ms)
    return time_ms, [
        Size(device.name, round(speed * time_ms), speed * time_ms / graph.macs, own)
        for device, graph, speed, own in zip(cell.devices, graphs, per_ms, classes, strict=True)
    ]


def shared(total: int, weights: Sequence[float]) -> list[int]:
    """Share a number of classes by weights, at least one for each; who is furthest below its share gets what is left.

    >>> shared(10, [4.0, 2.0, 1.0, 1.0])
    [5, 3, 1, 1]
    """
    if total < len(weights):
        raise InputError(f"sizes: expected at least a class for each of {len(weights)} devices, found {total} classes")
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [1] * len(weights)
    for _ in range(total - len(weights)):
        parts[max(range(len(weights)), key=lambda place: exact[place] - parts[place])] += 1
    return parts


def write_recipe(out: Path, recipe: Path, sizes: Sequence[Size], baseline_macs: int | None) -> None:
    """Write a recipe that builds on another one, with the sizes of its students or of what is pruned.

    A student's multiply-accumulates grow about as the square of its widths, which are scaled so.

    Raises:
        InputError: The recipe cannot be read, or has neither ``[[students]]`` with a stem nor ``[shrink]``.
    """
    tables = read_toml_tables(recipe, "give the recipe of devit decompose")
    base = os.path.relpath(recipe, out.parent)
    lines = [_HEAD, f"base = ['{base}']"]
    students = tables.get("students", [])
    if "shrink" in tables and baseline_macs:
        budgets = [min(1.0, round(size.macs / baseline_macs, 4)) for size in sizes]
        lines += ["", "[shrink]", f"budgets = {budgets}"]
    elif students and all("stem" in student for student in students) and len(students) in (1, len(sizes)):
        for student, size in zip(students * len(sizes) if len(students) == 1 else students, sizes, strict=True):
            lines += ["", "[[students]]", *_student_lines(student, size.scale)]
    else:
        raise InputError(
            f"{recipe}: expected [[students]] with a stem, one or {len(sizes)}, or [shrink] and a baseline in the "
            "bundle: give another recipe"
        )
    if tables.get("partition", {}).get("method", "random") != "none":
        lines += ["", "[partition]", f"sizes = {[size.classes for size in sizes]}"]
    write_bytes(out, "\n".join([*lines, ""]).encode())


def _student_lines(student: dict[str, Any], scale: float) -> list[str]:
    heads = int(student.get("heads", 1))
    lines = toml_lines({key: value for key, value in student.items() if key != "stem"})
    layers = []
    for layer in student["stem"]:
        width = max(1, round(layer["width"] * math.sqrt(scale) / heads)) * heads  # which divide it
        layers.append("{ " + ", ".join(toml_lines(layer | {"width": width})) + " }")
    return [*lines, f"stem = [{', '.join(layers)}]"]


def _longest_ms(bench: Bench, mode: Mode, goal: Goal) -> float:
    wanted = replace(goal, watts=None, accuracy=None)

    def is_kept(time_ms: float) -> bool:
        return not replace(bench, cell=_alike(bench.cell, time_ms), _done={}).figures(mode, wanted).misses

    low, high = _SHORTEST_SHARE * goal.deadline_ms, goal.deadline_ms
    if not is_kept(low):
        raise InputError(
            f"sizes: no size keeps {goal.text}: an answer takes too long beyond the inference: raise deadline-ms"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_kept(middle) else (low, middle)
    return low


def _alike(cell: Cell, time_ms: float) -> Cell:
    servers = [Server(np.full(2, time_ms), device.server.overhead_ms) for device in cell.devices]
    return replace(
        cell,
        devices=tuple(replace(device, server=server) for device, server in zip(cell.devices, servers, strict=True)),
    )
