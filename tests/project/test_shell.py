"""What shellcheck says of every shell script of the repository."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELLS = re.compile(rb"#!\s*(/usr)?/bin/(env\s+)?(ba|da|k)?sh\b")


def shell_scripts() -> list[Path]:
    """Find them by extension and by first line, in what git would commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=30,
    ).stdout.split(b"\0")
    found = (ROOT / name.decode() for name in listed if name)
    return sorted(path for path in found if path.is_file() and is_shell(path))


def is_shell(path: Path) -> bool:
    with path.open("rb") as opened:
        return path.suffix in (".sh", ".bash") or SHELLS.match(opened.read(64)) is not None


def shellcheck(path: Path) -> str:
    tool = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if tool is None:
        assert platform.machine() != "x86_64", "no shellcheck: run make install"
        pytest.skip("no shellcheck on this machine: pip has it for x86 alone, apt-get install shellcheck elsewhere")
    done = subprocess.run([tool, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_the_scripts_that_are_known_are_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in shell_scripts()}
    assert {".ci/run", "engines/build-engines.sh"} <= names


@pytest.mark.parametrize("path", shell_scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_has_nothing_to_say(path: Path) -> None:
    assert shellcheck(path) == ""


def test_shellcheck_says_what_is_wrong(tmp_path: Path) -> None:
    script = tmp_path / "wrong.sh"
    script.write_text("#!/bin/sh\nrm -rf $1\n")
    assert "SC2086" in shellcheck(script)
