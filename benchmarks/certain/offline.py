"""Measure policies on the test images of a models folder, and print the table of docs/accuracy.md.

python benchmarks/certain/offline.py MODELS ROW [DATA]   # keeps results/ROW.json
python benchmarks/certain/offline.py                     # prints the tables of what is kept
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import get_args

import msgspec

from devit_contract.choices import Policy
from devit_contract.service.progress import no_progress
from devit_decompose.evaluation.policy_figures import Choice, PolicyFigures, evaluate_policies

RESULTS = Path(__file__).parent / "results"
CELLS = ("fashion-mnist", "committee")
"""Whose rows are kept: the shipped cell, and the committee of docs/accuracy.md."""
HEADER = (
    "| policy | promise | stages | order | devices asked | stages used | flips | test accuracy | million MACs "
    "| p against all |",
    "|---|---|---|---|---|---|---|---|---|---|",
)
CHOICES = [
    *(Choice(policy) for policy in get_args(Policy) if policy != "certain"),
    *(
        Choice("certain", flips=flips, stages=stages, order=order)
        for flips, stages, order in product((0.003, 0.01), ("1-1-1-1", "1-1-2", "1-3"), ("rotating", "best"))
    ),
]


def measure(models: Path, data: Path | None) -> dict[str, PolicyFigures]:
    """Play every policy on the same features; by the command that prints the same."""
    figures = evaluate_policies(models, CHOICES, data=data, progress=no_progress)
    return {_command(models, choice): found for choice, found in zip(CHOICES, figures, strict=True)}


def table(rows: dict[str, PolicyFigures]) -> list[str]:
    """Lines of one table."""
    return [*HEADER, *(_line(found) for found in rows.values())]


def kept(name: str) -> dict[str, PolicyFigures]:
    """Read the rows of ``results/NAME.json``."""
    return msgspec.json.decode((RESULTS / f"{name}.json").read_bytes(), type=dict[str, PolicyFigures])


def _command(models: Path, choice: Choice) -> str:
    words = ["devit", "evaluate", str(models), "--policy", choice.policy]
    if choice.policy == "certain":
        words += ["--flips", f"{choice.flips:g}", "--stages", choice.stages, "--order", choice.order]
    return " ".join([*words, "--json"])


def _line(found: PolicyFigures) -> str:
    how = found.certain
    plan = ["", "", ""] if how is None else [f"{how.promised_flips:.1%}".replace("%", " %"), how.stages, how.order]
    is_all = found.policy == "all"
    cells = [
        found.policy,
        *plan,
        f"{found.devices_asked:.2f} of {found.devices}",
        f"{found.stages:.2f}",
        "" if is_all else f"{100 * found.flips:.2f} %",
        f"{found.accuracy:.2f}" if is_all else f"{found.accuracy:.2f} ({found.accuracy - found.accuracy_all:+.2f})",
        f"{found.million_macs:.1f}",
        "" if is_all else f"{found.p_value:.2g}",
    ]
    return f"| {' | '.join(cells)} |"


def main(words: list[str]) -> None:
    """Measure, or print what is kept."""
    if words:
        models, name, *data = words
        RESULTS.mkdir(exist_ok=True)
        rows = measure(Path(models), Path(data[0]) if data else None)
        (RESULTS / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n")
    for name in CELLS:
        print("\n".join([f"{name}:", "", *table(kept(name)), ""]))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
