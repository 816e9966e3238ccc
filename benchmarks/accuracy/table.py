"""Print the tables of docs/accuracy.md from the kept results.

python benchmarks/accuracy/table.py
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from devit_decompose.evaluation.evaluate import mcnemar

RESULTS = Path(__file__).parent / "results"
HEADER = (
    "| row | seeds | test accuracy | p against the cell | any one device missing | one device left | million MACs |",
    "|---|---|---|---|---|---|---|",
)


class Row(NamedTuple):
    """One line: what it is called, and the results ``NAME-s<seed>.json`` behind it."""

    label: str
    name: str
    against: str
    """The cell that it is compared with, seed by seed."""


SINGLES = (
    Row("DeViT, four devices", "devit", ""),
    Row("one model, total budget", "total", "devit"),
    Row("four copies without partition", "copies", "devit"),
    Row("one model, one device's budget", "device", "devit"),
    Row("DeViT without distillation", "no-kd", "devit"),
    Row("DeViT without relation loss", "no-relation", "devit"),
    Row("DeViT without failout", "no-failout", "devit"),
    Row("widths 48, 64, 64, 96, relation of heads", "unequal-heads", "devit"),
    Row("widths 48, 64, 64, 96, the authors' relation", "unequal-devit", "devit"),
    Row("pruned from the teacher, same budget", "pruned", "devit"),
    Row("committee, four devices", "committee", "devit"),
    Row("committee, a small and a large device", "small-large", "devit"),
)
PAIRS = (
    Row("DeViT, four devices", "pairs-cell", ""),
    Row("one model, total budget", "pairs-total", "pairs-cell"),
    Row("one model, one device's budget", "pairs-device", "pairs-cell"),
)


def table(rows: tuple[Row, ...]) -> list[str]:
    """Lines of one table, for the rows that have results."""
    return [*HEADER, *(_line(row) for row in rows if _seeds(row.name))]


def missing(rows: tuple[Row, ...]) -> list[str]:
    """Names of the rows without results."""
    return [row.name for row in rows if not _seeds(row.name)]


def _seeds(name: str) -> dict[int, Any]:
    paths = sorted(RESULTS.glob(f"{name}-s*.json"))
    return {int(path.stem.rpartition("-s")[2]): json.loads(path.read_text()) for path in paths}


def _line(row: Row) -> str:
    found = _seeds(row.name)
    accuracies = [100 * each["subsets"][-1]["test_accuracy"] for each in found.values()]
    text = ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
    if len(accuracies) > 1:
        text += f": mean {np.mean(accuracies):.2f}, spread {max(accuracies) - min(accuracies):.2f}"
    cells = _seeds(row.against) if row.against else {}
    chances = [f"{_chance(found[seed], cells[seed]):.2g}" for seed in found if seed in cells]
    first = next(iter(found.values()))
    costs = [model["macs"] / 1e6 for model in first["submodels"]]
    cost = f"{costs[0]:.1f}" if len(costs) == 1 else f"{len(costs)} x {costs[0]:.1f}"
    if len(costs) > 1 and max(costs) - min(costs) > 0.1:
        cost = ", ".join(f"{each:.1f}" for each in costs)
    lost = [_range(found, len(costs) - 1), _range(found, 1)] if len(costs) > 1 else ["no answer", ""]
    return f"| {row.label} | {len(found)} | {text} | {', '.join(chances)} | {lost[0]} | {lost[1]} | {cost} |"


def _range(found: dict[int, Any], count: int) -> str:
    accuracies = [
        100 * subset["test_accuracy"]
        for each in found.values()
        for subset in each["subsets"]
        if subset["mask"].bit_count() == count
    ]
    return f"{min(accuracies):.2f} to {max(accuracies):.2f}"


def _chance(one: Any, other: Any) -> float:  # noqa: ANN401 - parsed JSON
    ours, theirs = _right(one), _right(other)
    return mcnemar(int(np.count_nonzero(ours & ~theirs)), int(np.count_nonzero(theirs & ~ours)))


def _right(result: Any) -> npt.NDArray[np.bool_]:  # noqa: ANN401 - parsed JSON
    packed = np.frombuffer(zlib.decompress(base64.b64decode(result["right"])), np.uint8)
    return np.unpackbits(packed).astype(np.bool_)


if __name__ == "__main__":
    print("\n".join(["", *table(SINGLES), "", *table(PAIRS), "", *missing(SINGLES + PAIRS)]))  # noqa: T201
