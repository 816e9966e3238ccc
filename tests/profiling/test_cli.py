"""The command line: what it prints, where it ends, and its one-line errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from typer.testing import CliRunner

from devit_contract.errors import InputError
from devit_profiling.cli import app, load_of, spelled_out
from devit_profiling.figures.analysis import Report

if TYPE_CHECKING:
    from conftest import FakeRun, LiveCell
else:
    FakeRun = LiveCell = object

runner = CliRunner()


def profile(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the console script's entry as a process."""
    code = "from devit_profiling.cli import main; main()"
    command: Sequence[str] = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_report_is_made_again_from_a_run(fake_run: FakeRun, tmp_path: Path) -> None:
    folder = fake_run.changed(simulated_board="orin-nano").write(tmp_path / "run")
    result = runner.invoke(app, ["--from", str(folder)])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Profile: SIMULATED power")
    assert any(line.split()[:1] == ["jetson1"] for line in lines)
    assert lines[-1] == f"report: {folder / 'report.html'}"
    assert max(len(line) for line in lines[:-1]) <= 80
    assert (folder / "report.html").is_file()


def test_quick_look_is_called_so_in_the_table(fake_run: FakeRun, tmp_path: Path) -> None:
    folder = replace(fake_run, is_quick=True).write(tmp_path / "run")
    assert runner.invoke(app, ["--from", str(folder)]).stdout.startswith("Quick look")


def test_json_is_the_report_and_nothing_else(fake_run: FakeRun, tmp_path: Path) -> None:
    folder = fake_run.write(tmp_path / "run")
    result = runner.invoke(app, ["--from", str(folder), "--json"])
    report = msgspec.json.decode(result.stdout, type=Report)
    assert report == msgspec.json.decode((folder / "report.json").read_bytes(), type=Report)


def test_flags_and_missing_sensors_are_told_below_the_table(fake_run: FakeRun, tmp_path: Path) -> None:
    folder = fake_run.changed(idle_after_mw=5000).write(tmp_path / "run")
    assert "idle power drifted" in runner.invoke(app, ["--from", str(folder)]).stdout
    folder = fake_run.changed(idle_mw=None, sensor_problem="no sensor is set").write(tmp_path / "other")
    assert "jetson1: power not measured: no sensor is set" in runner.invoke(app, ["--from", str(folder)]).stdout


def test_devices_and_from_exclude_each_other(tmp_path: Path) -> None:
    for arguments in (["--quick"], ["--devices", "jetson1", "--from", str(tmp_path)]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2
        assert "--devices" in result.output


def test_running_cell_is_profiled_from_its_fleet_file(live_cell: LiveCell, tmp_path: Path) -> None:
    """A window of half a second is too short for joules: that is told before it is measured."""
    options = ["--quick", "--idle", "0.3", "--warm-up", "0", "--duration", "0.5", "--interval-ms", "20"]
    command = ["--devices", "jetson1, jetson2", "--fleet", str(live_cell.fleet_path), "--out", str(tmp_path), *options]
    refused = profile(*command)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"error: plan: windows of 0\.5 s .*: choose --duration 10 or longer.*\n", refused.stderr)
    result = runner.invoke(app, [*command, "--no-power"])
    assert result.exit_code == 0
    (folder,) = tmp_path.iterdir()
    assert "jetson1; jetson2: power not measured: left out by the plan (--no-power)" in result.stdout
    assert json.loads((folder / "report.json").read_bytes())["pictures"].startswith("32 random images of 6 x 8 x 1")


def test_rate_is_kept_and_told_with_how_long_it_takes(live_cell: LiveCell, tmp_path: Path) -> None:
    options = ["--quick", "--idle", "0.3", "--warm-up", "0", "--duration", "0.5", "--interval-ms", "20", "--rate", "50"]
    command = ["--devices", "jetson1", "--fleet", str(live_cell.fleet_path), "--out", str(tmp_path), "--no-power"]
    result = runner.invoke(app, [*command, *options])
    assert result.exit_code == 0
    assert re.match(r"this takes about 1 s, until \d\d:\d\d:\d\d local time\n", result.stderr)
    (folder,) = tmp_path.iterdir()
    report = msgspec.json.decode((folder / "report.json").read_bytes(), type=Report)
    pace = report.scenarios[0].pace
    assert pace is not None
    assert pace.asked_hz == 50
    assert 40 < pace.sent_hz < 60
    assert "50.0 requests a second were due" in " ".join(result.stdout.split())


def test_rate_max_keeps_twice_the_credit_of_a_device_under_way(live_cell: LiveCell) -> None:
    assert load_of("max", None, live_cell.fleet_path) == {"in_flight": 4}


def test_rate_is_a_number_or_max_and_excludes_in_flight(live_cell: LiveCell) -> None:
    base = ["--devices", "jetson1", "--fleet", str(live_cell.fleet_path)]
    for arguments in (["--rate", "fast"], ["--rate", "5", "--in-flight", "2"]):
        assert runner.invoke(app, [*base, *arguments]).exit_code == 2


def test_unknown_device_is_named_before_anything_is_connected(live_cell: LiveCell) -> None:
    result = runner.invoke(app, ["--devices", "jetson9", "--fleet", str(live_cell.fleet_path)])
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == "device 'jetson9': expected one of jetson1, jetson2"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--from", "nowhere"], "error: nowhere/run.json: cannot be read"),
        (["--devices", "jetson1", "--fleet", "nowhere.toml"], "error: nowhere.toml: cannot be read"),
        (["--devices", "jetson1", "--windows", "0"], "error: plan: windows: expected 1 to 1000, found 0"),
        (["local", "--board", "orin"], "error: board 'orin': expected one of tx1, nano,"),
        (
            ["local", "--no-power"],
            "error: left out by the plan (--no-power); --bundle DIR measures latency all the same",
        ),
    ],
)
def test_error_is_one_line_and_exit_code_1(arguments: list[str], text: str) -> None:
    result = profile(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(text)
    assert len(result.stderr.splitlines()) == 1


def test_help_names_every_option_with_its_unit_and_default() -> None:
    for command, words in (
        ([], ("--devices", "--from", "cell", "local", "report", "compare", "sweep")),
        (["cell"], ("--devices", "--quick", "--duration", "--rate", "seconds", "milliseconds", "default: 10")),
        (["local"], ("--bundle", "--quick", "--duration", "seconds", "milliseconds", "default: 10")),
    ):
        result = runner.invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        for word in words:
            assert word in result.stdout


def test_command_may_be_left_out_and_is_found_by_its_options(fake_run: FakeRun, tmp_path: Path) -> None:
    """Scripts may go on to say ``--devices`` and ``--from-log`` alone."""
    folder = str(fake_run.write(tmp_path / "run"))
    spellings = (["report", folder], ["--from-log", folder], ["--from", folder], [f"--from-log={folder}"])
    assert len({runner.invoke(app, arguments).stdout for arguments in spellings}) == 1
    for arguments, command in (
        (["--devices", "jetson1"], "cell"),
        (["--quick", "--devices=jetson1,local"], "cell"),
        (["--windows", "2", "--devices", "local"], "local"),
        (["compare", "--json"], "compare"),
        (["--help"], "--help"),
    ):
        assert spelled_out(arguments)[0] == command
    assert spelled_out(["--windows", "2", "--devices=local", "--json"]) == ["local", "--windows", "2", "--json"]


def test_plotting_library_is_loaded_for_reports_alone() -> None:
    """The agent imports this package for its sampler, on boards without matplotlib."""
    modules = ("cli", "load.cell_run", "figures.analysis", "report.report")
    code = f"import sys, {', '.join(f'devit_profiling.{module}' for module in modules)};"
    code += "print(sorted({'matplotlib', 'jinja2', 'rich'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "matplotlib" not in result.stdout
    assert "jinja2" not in result.stdout
