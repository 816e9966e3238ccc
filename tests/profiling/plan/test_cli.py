"""``devit bench-device`` and ``devit plan`` as commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.profiling.plan.made_cell import TINY, calibration_of, made_profile
from typer.testing import CliRunner, Result

from devit_contract.artefacts.files import write_json
from devit_contract.errors import InputError, ManifestError
from devit_pipeline.cli import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLEET = """schema = 2
[node]
endpoint = "tcp://127.0.0.1:7711"
client_endpoint = "tcp://127.0.0.1:7712"
[[device]]
name = "dev0"
submodel = 0
[[device]]
name = "dev1"
submodel = 1
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a fleet of two devices of 10 ms, their profiles, and a calibration."""
    (tmp_path / "fleet.toml").write_text(FLEET)
    (tmp_path / "profiles").mkdir()
    for number in range(2):
        write_json(tmp_path / "profiles" / f"dev{number}.json", made_profile(f"dev{number}", number))
    calibration_of((0.3, 0.3)).save(tmp_path / "calibration.safetensors")
    return tmp_path


def plan(desk: Path, goal: str, *more: str | Path) -> Result:
    arguments = ["plan", "--bundle", TINY, "--fleet", desk / "fleet.toml", "--goal", goal, *more]
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_table_has_80_columns_and_says_what_was_picked_and_why(desk: Path) -> None:
    found = plan(desk, "rate=20", "--calibration", desk / "calibration.safetensors", "--out", desk / "planned.toml")
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert max(map(len, [line for line in lines if not line.startswith("next: ")])) <= 80
    assert lines[0].strip() == "goal: deadline-ms=50, rate=20, survive=0"
    assert [line.split()[0] for line in lines[4:10]] == ["single", "replica", "1-1", "1-1", "cell,", ">cell"]
    assert "picked: cell: of the modes that keep the goal it is the most accurate" in found.stdout
    assert "time beyond the inference: assumed: 0.5 ms" in found.stdout
    assert tomllib.loads((desk / "planned.toml").read_text())["serving"] == {"policy": "all"}
    assert lines[-1].startswith("next: fusion-node --bundle")


def test_json_has_all_modes_and_comes_again_by_the_same_seed(desk: Path) -> None:
    options = ("--calibration", desk / "calibration.safetensors", "--json")
    first, again, other = (plan(desk, "rate=20", *options, "--seed", str(seed)) for seed in (1, 1, 2))
    assert first.stdout == again.stdout != other.stdout
    found = json.loads(first.stdout)
    assert found["picked"] in found["modes"]
    assert {"p50_ms", "p99_ms", "answers_per_s", "j_per_answer", "accuracy_one_lost"} <= found["picked"].keys()


def test_without_a_calibration_it_says_that_certain_is_left_out(desk: Path) -> None:
    found = plan(desk, "rate=20")
    assert found.exit_code == 0, found.output
    assert "certain: left out" in found.stdout


def test_a_goal_that_no_mode_keeps_is_one_line_with_the_nearest(desk: Path) -> None:
    found = plan(desk, "rate=20, deadline-ms=5", "--json")
    assert found.stdout == ""
    assert isinstance(found.exception, InputError)
    assert "the nearest goal that one does is deadline-ms=" in str(found.exception)


def test_a_device_without_its_profile_is_named_with_the_command(desk: Path) -> None:
    (desk / "profiles" / "dev1.json").unlink()
    refused = plan(desk, "rate=1").exception
    assert isinstance(refused, InputError)
    assert str(refused) == (
        "dev1: expected one profile of submodel 1, found 0: run devit bench-device there with --name dev1 --submodel 1"
    )
    write_json(desk / "profiles" / "other.json", made_profile("dev2", 7))
    assert isinstance(plan(desk, "rate=1").exception, ManifestError)


def test_a_device_is_measured_into_the_folder_that_a_plan_reads(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    options = ["--engine", "paced:4", "--no-power", "--duration", "0.4"]
    found = CliRunner().invoke(app, ["bench-device", str(TINY), "--name", "dev1", "--submodel", "1", *options])
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("dev1, paced:4 engine: ")
    assert "no joules: left out by the plan (--no-power)" in found.stdout
    assert found.stdout.endswith("profile: profiles/dev1.json\n")
    assert json.loads((desk / "profiles" / "dev1.json").read_bytes())["p50_ms"] >= 4
    assert plan(desk, "rate=20").exit_code == 0
