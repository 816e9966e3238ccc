"""Draw accuracy against compute per answer, all kept rows of Fashion-MNIST in one plot, as in docs/accuracy.md.

python benchmarks/certain/curve.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parent))
from offline import CELLS, kept

ACCURACY = Path(__file__).parents[1] / "accuracy" / "results"
PLOT = Path(__file__).parents[2] / "docs" / "_static" / "accuracy-and-compute.svg"
SINGLES = {"device": "one model, one device's budget", "total": "one model, total budget"}
"""Results of single models, over all their seeds."""
TITLES = {"fashion-mnist": "shipped cell", "committee": "committee"}


class Point(NamedTuple):
    """One row."""

    million_macs: float
    """Of an answer, on average."""
    accuracy: float
    """Percent of the test images."""


def single_models() -> dict[str, Point]:
    """Average each single model over its seeds."""
    points = {}
    for name, title in SINGLES.items():
        found = [json.loads(path.read_text()) for path in sorted(ACCURACY.glob(f"{name}-s*.json"))]
        accuracies = [max(one["subsets"], key=lambda subset: subset["mask"])["test_accuracy"] for one in found]
        macs = sum(record["macs"] for record in found[0]["submodels"])
        points[title] = Point(macs / 1e6, 100 * sum(accuracies) / len(accuracies))
    return points


def policies(cell: str) -> dict[str, list[Point]]:
    """Group a cell's rows by policy and order, rising in compute."""
    groups: dict[str, list[Point]] = {}
    for figures in kept(cell).values():
        how = figures.certain
        group = figures.policy if how is None else f"certain, {how.order}"
        groups.setdefault(group, []).append(Point(figures.million_macs, figures.accuracy))
    return {group: sorted(points) for group, points in groups.items()}


def main() -> None:
    """Write the plot; the same results give the same bytes."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "accuracy and compute"
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for cell, colour in zip(CELLS, ("tab:blue", "tab:orange"), strict=True):
        marks = {"all": "s", "single": "^", "replica": "v", "certain, rotating": "o", "certain, best": "x"}
        for group, points in policies(cell).items():
            label = f"{TITLES[cell]}: {group}"
            axes.plot(*zip(*points, strict=True), marks[group], color=colour, label=label, markersize=6)
    for (title, point), mark in zip(single_models().items(), ("P", "*"), strict=True):
        axes.plot(*point, mark, color="black", label=title, markersize=10)
    axes.set(xlabel="million multiply-accumulates an answer, mean", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(PLOT, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
