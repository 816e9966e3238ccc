"""Accuracies in the README are those of the shipped models."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_readmes_table_is_that_of_the_shipped_models() -> None:
    found = json.loads((ROOT / "examples" / "fashion-mnist" / "decomposition.json").read_text())
    by_count: dict[int, list[float]] = {1: [], 2: [], 3: [], 4: []}
    for subset in found["subsets"]:
        by_count[subset["mask"].bit_count()].append(subset["test_accuracy"] * 100)
    expected = [f"{found['teacher_test_accuracy'] * 100:.2f} %", f"{by_count[4][0]:.2f} %"]
    certain = runpy.run_path(str(ROOT / "benchmarks" / "certain" / "offline.py"))["kept"]("fashion-mnist")
    (asked,) = (row for command, row in certain.items() if "--flips 0.01 --stages 1-1-2 --order rotating" in command)
    expected.append(f"{asked.accuracy:.2f} %")
    expected += [f"{min(by_count[count]):.2f} to {max(by_count[count]):.2f} %" for count in (3, 2, 1)]
    rows = re.findall(
        r"^\| (?:teacher|four|the same|three|two|one)\b.*? \| (.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert rows == expected


def test_the_accuracy_pages_tables_are_those_of_the_kept_results() -> None:
    page = (ROOT / "docs" / "accuracy.md").read_text().splitlines()
    script = runpy.run_path(str(ROOT / "benchmarks" / "accuracy" / "table.py"))
    for rows in (script["SINGLES"], script["PAIRS"]):
        lines = script["table"](rows)
        if len(lines) > len(script["HEADER"]):
            assert [line for line in lines if line not in page] == []


def test_the_table_of_certain_answers_is_that_of_the_kept_results() -> None:
    page = (ROOT / "docs" / "accuracy.md").read_text().splitlines()
    script = runpy.run_path(str(ROOT / "benchmarks" / "certain" / "offline.py"))
    rows = script["kept"]("fashion-mnist")
    assert [line for line in script["table"](rows) if line not in page] == []
    assert len(rows) == len(script["CHOICES"])


def test_the_curve_is_drawn_from_every_kept_row(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "certain" / "curve.py"))
    script["main"].__globals__["PLOT"] = tmp_path / "curve.svg"
    script["main"]()
    drawn = (tmp_path / "curve.svg").read_text()
    assert "shipped cell: certain, rotating" in drawn
    assert "one model, total budget" in drawn
    assert sum(map(len, script["policies"]("committee").values())) == len(script["kept"]("committee"))


@pytest.mark.parametrize(("promise", "asked", "flips"), [(0.01, 1.6, 0.012), (0.003, 1.9, 0.0045)])
def test_the_default_stages_ask_few_devices_and_keep_their_promise(promise: float, asked: float, flips: float) -> None:
    """What the project promises of the shipped cell, in the kept results."""
    rows = runpy.run_path(str(ROOT / "benchmarks" / "certain" / "offline.py"))["kept"]("fashion-mnist")
    plan = f"--flips {promise:g} --stages 1-1-2 --order rotating"
    (figures,) = (found for command, found in rows.items() if plan in command)
    assert (figures.test_images, figures.is_stored_test_set) == (10_000, True)
    assert figures.devices_asked <= asked
    assert figures.flips <= flips
    assert figures.accuracy_all - figures.accuracy <= 0.35


def test_the_table_of_liars_is_that_of_the_kept_results() -> None:
    page = (ROOT / "docs" / "accuracy.md").read_text().splitlines()
    script = runpy.run_path(str(ROOT / "benchmarks" / "certain" / "liars.py"))
    kept = script["kept"]()
    assert [line for line in script["table"](kept) if line not in page] == []


def test_liars_are_named_within_fifty_frames_and_right_devices_are_not() -> None:
    """What the project promises of the shipped cell, in the kept results; weak faults are not among it."""
    kept = runpy.run_path(str(ROOT / "benchmarks" / "certain" / "liars.py"))["kept"]()
    strong = {name: row for name, row in kept.faults.items() if not name.startswith("weak")}
    assert len(strong) >= 12
    for name, row in strong.items():
        assert (row.frames, row.noticed, row.wrong_names) == (20_000, row.trials, 0), name
        assert row.worst_frames <= 50, name
    for name in ("clean", "clean, two devices a frame", "JPEG, quality 75", "all devices: bright-32"):
        assert (kept.clean[name].named, kept.clean[name].disagreements) == (0, 0), name
    assert kept.clean["clean"].frames >= 100_000
