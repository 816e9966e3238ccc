"""Accuracies in the README are those of the shipped models."""

from __future__ import annotations

import json
import re
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


def test_the_accuracy_page_tells_what_the_kept_rows_say() -> None:
    """Each row's accuracies, and those with three devices and with one, follow from the kept results."""
    results = ROOT / "benchmarks" / "accuracy" / "results"
    page = (ROOT / "docs" / "accuracy.md").read_text()
    rows = {"DeViT, four": "devit", "one model, total": "total", "four copies": "copies", "one model, one": "device"}
    for start, name in rows.items():
        row = re.search(rf"^\| {start}.*$", page, re.MULTILINE)
        assert row is not None, start
        kept = [json.loads(path.read_text())["subsets"] for path in sorted(results.glob(f"{name}-s*.json"))]
        assert kept, name
        wanted = [f"{subsets[-1]['test_accuracy'] * 100:.2f}" for subsets in kept]
        for count in (3, 1) if len(kept[0]) == 15 else ():
            found = [
                each["test_accuracy"] * 100 for subsets in kept for each in subsets if each["mask"].bit_count() == count
            ]
            wanted.append(f"{min(found):.2f} to {max(found):.2f}")
        for figure in wanted:
            assert figure in row[0], (name, figure)
