"""The ``console`` blocks of the README and of docs/ do what they show; every other command line at least parses.

A block that cannot run here, as it needs a Jetson, root, or a second machine, is an ``sh`` block.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
from tests.project.pages import PAGES, ROOT, blocks, command_lines, commands_and_outputs, our_commands, parse

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
BUNDLE = ROOT / "pipeline" / "devit_pipeline" / "fashion_mnist" / "bundle"
LANGUAGES = {"console", "sh", "toml", "python", "text"}


def matches(shown: str, printed: str) -> bool:
    """Whether what stands between each ``...`` is printed, in that order; spaces and line ends count as one space."""
    rest = " ".join(printed.split())
    for part in filter(str.strip, shown.split("...")):
        _, found, rest = rest.partition(" ".join(part.split()))
        if not found:
            return False
    return True


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines that one page has built are there for the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.system
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=lambda page: page.name)
def test_the_console_blocks_print_what_the_page_shows(page: Path, tmp_path: Path, cache: Path) -> None:
    """In the order of the page; what is said to go on in another terminal goes on in the background."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(BUNDLE, tmp_path / "bundle")  # a page may sign it
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "XDG_CACHE_HOME": str(cache)}
    served: list[subprocess.Popen[str]] = []
    try:
        for block in blocks(page, "console"):
            for command, shown in commands_and_outputs(block):
                words = shlex.split(command)
                if "decompose" in words and not FASHION_MNIST.exists():
                    print(f"not run, as {FASHION_MNIST} is absent (apt install dataset-fashion-mnist): {command}")
                    continue
                if "--serve" in words:
                    words += ["--port", "0"]  # a cell of the machine's user may have the usual ones
                    served.append(
                        subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=PIPE, stderr=STDOUT, text=True)
                    )
                    stdout = served[-1].stdout
                    assert stdout is not None
                    printed = ""
                    while not matches(shown, printed) and (line := stdout.readline()):
                        printed += line
                else:
                    shell = ["bash", "-c", command]
                    done = subprocess.run(
                        shell, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
                    )
                    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
                    printed = done.stdout
                assert matches(shown, printed), f"$ {command}\n{printed}"
    finally:
        for child in served:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=30)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_names_commands_and_options_that_are_there(page: Path) -> None:
    for line in command_lines(page):
        for words in our_commands(line):
            try:
                parse(words)
            except Exception as err:
                pytest.fail(f"{page.name}: {line}\n{type(err).__name__}: {err}")


@pytest.mark.parametrize("line", ["devit biuld bundle", "x | profile --device jetson1", "sudo bin/devit keys new"])
def test_a_command_line_that_is_wrong_would_be_found(line: str) -> None:
    (words,) = our_commands(line)
    with pytest.raises(Exception, match=r"biuld|--device|NAME|name"):
        parse(words)


def test_every_block_is_of_a_language_that_some_test_looks_at() -> None:
    for page in PAGES:
        fences = [line[3:] for line in page.read_text().splitlines() if line.startswith("```")]
        found = {language for language in fences if language and not language.startswith("{")}
        assert found <= LANGUAGES, page
