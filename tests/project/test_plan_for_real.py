"""The check of plans on a running cell runs, and its goals can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from devit_profiling.plan.goal import parse_goal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[2] / "benchmarks" / "certain"


def test_there_are_ten_goals_of_known_fleets() -> None:
    found = tomllib.loads((FOLDER / "goals.toml").read_text())
    assert len({goal["goal"] for goal in found["goal"]}) == 10
    for goal in found["goal"]:
        assert goal["fleet"] in found["fleet"]
        assert parse_goal(goal["goal"], 50).text.startswith(goal["goal"].split(", ")[0])


@pytest.mark.nightly(part="endurance")
def test_a_picked_mode_is_run_with_and_without_a_lost_device_and_beside_single(tmp_path: Path) -> None:
    goals = tmp_path / "goals.toml"
    fleet = "[fleet.small]\npaces_ms = [10, 10, 10, 10]\nidle_w = 2.0\nabove_idle_j = 0.1\n"
    goals.write_text(f"{fleet}[[goal]]\nfleet = 'small'\ngoal = 'deadline-ms=3000, rate=10, survive=1'\n")
    command = [sys.executable, str(FOLDER / "plan_for_real.py"), "--json", "--goals", str(goals), "--requests", "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode in (0, 1), done.stderr
    (row,) = json.loads(done.stdout)["goals"]
    whole, without = row["runs"]
    assert whole["requests"] == whole["answered"] == without["answered"] == 40
    assert without["devices_asked"] <= 3
    assert row["single"]["devices_asked"] == 1
    assert row["is_kept"] is not None
