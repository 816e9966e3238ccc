from __future__ import annotations

import re
import resource
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from devit_pipeline.cli import COMMANDS, app

DEVIT = [sys.executable, "-c", "from devit_pipeline.cli import main; main()"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEVIT, *arguments], capture_output=True, text=True, timeout=60, check=False)


def cpu_s(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def test_the_overview_names_every_command_in_the_order_of_the_pipeline() -> None:
    lines = run("--help").stdout.splitlines()
    found = [words[1] for line in lines if len(words := line.split()) > 2 and words[1] in COMMANDS]
    assert found == list(COMMANDS)


def test_the_overview_takes_under_three_tenths_of_a_second_of_cpu() -> None:
    """It loads no command's module. CPU time, and the best of three, so that what else runs does not decide."""
    assert min(cpu_s("--help") for _ in range(3)) <= 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself_in_the_words_of_the_overview(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"], prog_name="devit")
    assert done.exit_code == 0, done.output
    first_words = " ".join(COMMANDS[command][1].split()[:4])
    assert f"devit {command}" in done.stdout
    assert first_words in " ".join(done.stdout.split())


def test_a_named_failure_is_one_line_and_exit_code_1() -> None:
    done = run("build", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: nowhere/manifest.json")


def test_an_unknown_command_is_wrong_usage_and_the_nearest_is_named() -> None:
    done = run("biuld", "bundle")
    assert done.returncode == 2
    assert "No such command 'biuld'. Did you mean 'build'?" in " ".join(done.stderr.split())


def test_the_version_is_that_of_the_package() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"devit {version('devit')}\n")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_whole_at_80_columns_without_types_of_flags_and_completion(command: str) -> None:
    children = (
        re.findall(r"^│ (\w+)  ", help_of(command), re.MULTILINE) if command in ("keys", "engines", "profile") else []
    )
    assert bool(children) == (command in ("keys", "engines", "profile"))
    for words in (command, *(f"{command} {child}" for child in children)):
        shown = help_of(words)
        assert "-h" in shown, words
        assert not re.search(r"<bool>|completion|…", shown), words


def help_of(words: str) -> str:
    done = CliRunner().invoke(app, [*words.split(), "-h"], prog_name="devit", env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout
