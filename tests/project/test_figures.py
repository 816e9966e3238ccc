"""Accuracies in the README are those of the shipped models."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readmes_table_is_that_of_the_shipped_models() -> None:
    found = json.loads((ROOT / "examples" / "fashion-mnist" / "decomposition.json").read_text())
    by_count: dict[int, list[float]] = {1: [], 2: [], 3: [], 4: []}
    for subset in found["subsets"]:
        by_count[subset["mask"].bit_count()].append(subset["test_accuracy"] * 100)
    expected = [f"{found['teacher_test_accuracy'] * 100:.2f} %", f"{by_count[4][0]:.2f} %"]
    expected += [f"{min(by_count[count]):.2f} to {max(by_count[count]):.2f} %" for count in (3, 2, 1)]
    rows = re.findall(
        r"^\| (?:teacher|four|three|two|one)\b.*? \| (.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert rows == expected


def test_the_accuracy_pages_tables_are_those_of_the_kept_results() -> None:
    page = (ROOT / "docs" / "accuracy.md").read_text().splitlines()
    script = runpy.run_path(str(ROOT / "benchmarks" / "accuracy" / "table.py"))
    for rows in (script["SINGLES"], script["PAIRS"]):
        lines = script["table"](rows)
        if len(lines) > len(script["HEADER"]):
            assert [line for line in lines if line not in page] == []
