"""The benchmark of policies on a running cell gives its figures. How fast anything was is never judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly(part="endurance")
def test_every_part_of_the_running_cell_is_held_against_policy_all() -> None:
    command = [sys.executable, "-m", "benchmarks.certain.running", "--json", "--duration", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert [each["wanted"] for each in figures] == [
        ">= 2.2 x",
        "<= 2.2 x",
        "<= 1.1 x",
        "<= 2.2 x",
        "<= 1.1 x",
        "<= 2.2 x",
        "<= 0.55 x",
        "<= 1.1 x",
        "<= 0.6 x",
    ]
    for each in figures:
        relation, bound, _ = each["wanted"].split()
        assert each["compared"] == pytest.approx(each["devit"] / each["other"], rel=0.01)
        assert each["holds"] is (
            each["compared"] >= float(bound) if relation == ">=" else each["compared"] <= float(bound)
        )
        assert each["samples"] > 0
