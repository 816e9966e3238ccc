"""``profile parse`` on recorded logs."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from devit_contract.errors import InputError
from devit_profiling.cli import app

DATA = Path(__file__).parents[2] / "data" / "tegrastats"
PROGRAM = [sys.executable, "-c", "from devit_profiling.cli import main; main()", "parse"]
DEADLINE_S = 60.0
runner = CliRunner()


def parse(*arguments: str | Path, stdin: str | None = None) -> str:
    result = runner.invoke(app, ["parse", *map(str, arguments)], input=stdin, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_summary_tells_board_rule_cadence_and_ranges() -> None:
    text = parse(DATA / "orin_nano_l4t36_02_load_log.txt")
    words = [line.split() for line in text.splitlines()]
    assert ["VDD_IN,", "mW", "13,588", "15,370", "15,558", "18", "total"] in words
    assert any(line[:2] == ["VDD_SOC,", "mW"] and line[-2:] == ["inside", "another"] for line in words)
    assert "samples: 18, unparsed lines: 1" in text
    assert "period: 1000 ms by stamps of whole seconds, give or take 59 ms" in text
    assert "board: Jetson Orin Nano (orin-nano), guessed" in text
    assert "total: VDD_IN, module input (VDD_IN)" in text
    assert max(map(len, text.splitlines())) <= 80


def test_summary_of_a_sum_names_its_parts() -> None:
    text = parse(DATA / "agx_orin_l4t36_02_log.txt", "--board", "agx-orin")
    assert "total: VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0, sum of 3 module rails" in text
    assert "board: Jetson AGX Orin (agx-orin)\n" in text
    assert text.count("part of the total") == 3
    assert max(map(len, text.splitlines())) <= 80


def test_summary_without_a_total_says_why() -> None:
    assert "board: not known by its lines" in parse(DATA / "agx_xavier_l4t32_04_nopower.txt")
    text = parse(DATA / "agx_xavier_l4t32_04_nopower.txt", "--board", "agx-xavier")
    assert (
        "total: none; expected the rails GPU, CPU, SOC, CV, VDDRQ, SYS5V of Jetson AGX Xavier, found these: none"
        in text
    )
    assert "period: unknown" in text


def test_summary_shows_the_first_line_that_is_no_sample() -> None:
    text = " ".join(parse(DATA / "orin_nano_l4t36_02_load_log.txt").split())
    assert "first unparsed: line 19 has no RAM 1697/7620MB: 'LOAD_SMOKE_SUMMARY device=cuda'..." in text


def test_samples_alone_go_to_standard_output_and_the_rest_is_told_beside() -> None:
    result = runner.invoke(app, ["parse", "-", "--json"], input="Tue Jan 26\nRAM 1/2MB\n")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1)
    assert result.stderr == "warning: unparsed lines: 1; line 1 has no RAM 1697/7620MB: 'Tue Jan 26'\n"


def test_a_packed_log_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    content = (DATA / "orin_nano_l4t36_04_100ms_log.txt").read_bytes()
    packed = tmp_path / "log.gz"
    packed.write_bytes(gzip.compress(content)[:-9])
    result = runner.invoke(app, ["parse", str(packed)])
    assert result.exit_code == 0
    assert re.search(r"samples: 6\d\d, unparsed lines: 0", result.stdout)
    assert result.stderr.startswith(f"warning: {packed}: the gzip file is damaged or cut off")


def test_simulated_lines_are_called_so() -> None:
    assert "SIMULATED" in parse("-", stdin="SIMULATED RAM 1/2MB\n")


def test_json_is_an_object_a_sample() -> None:
    lines = parse(DATA / "orin_nano_l4t36_02_load_log.txt", "--json").splitlines()
    assert len(lines) == 18
    assert json.loads(lines[0])["total_mw"] == 13588


def test_csv_is_read_from_standard_input() -> None:
    text = parse("-", "--csv", stdin=(DATA / "nano_l4t32_02.txt").read_text())
    (row,) = csv.DictReader(text.splitlines())
    assert (row["POM_5V_IN_mw"], row["AO_c"]) == ("1022", "39.5")


def test_unknown_board_is_refused_with_the_known_ones() -> None:
    result = runner.invoke(app, ["parse", "-", "--board", "pi"], input="")
    assert isinstance(result.exception, InputError)
    assert "expected one of tx1, nano" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["parse", "-", "--json", "--csv"], "--json or --csv"),
        (["--devices", "jetson1", "parse", "-"], "unexpected extra argument"),
        (["parse"], "LOG"),
    ],
)
def test_contradictory_options_are_wrong_usage(arguments: list[str], text: str) -> None:
    result = runner.invoke(app, arguments, input="")
    assert result.exit_code == 2
    assert text in result.output


@pytest.mark.parametrize("options", [[], ["--json"], ["--csv"]])
def test_log_without_a_sample_is_one_line_and_exit_code_1(options: list[str]) -> None:
    result = subprocess.run(
        [*PROGRAM, "-", *options], input="hello\n", capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: standard input: expected lines of tegrastats")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_reader_that_leaves_ends_it_quietly(option: str) -> None:
    """As ``| head`` does."""
    command = [*PROGRAM, str(DATA / "orin_nano_l4t36_04_100ms_log.txt"), option]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert os.read(process.stdout.fileno(), 10)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.wait(DEADLINE_S)


def test_every_line_comes_out_as_soon_as_it_is_read() -> None:
    """A running tegrastats may stand before the pipe."""
    command = [*PROGRAM, "-", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("RAM 1697/7620MB tj@41C\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["ram_used_mb"] == 1697
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("arguments", [["--help"], ["parse", "--help"]])
def test_help_fits_80_columns(arguments: list[str]) -> None:
    result = runner.invoke(app, arguments, env={"COLUMNS": "80", "TERM": "dumb"})
    assert "parse" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
