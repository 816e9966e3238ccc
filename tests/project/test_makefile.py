"""``make`` looks at Python before it installs anything: recent enough, and the one that ``.venv`` has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.project.pages import DOCS, ROOT

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OLDER = """\
#!/bin/sh
[ "$1" = -c ] || exit 3
exec {python} -c "import sys; sys.version_info = (3, 9, 18, 'final', 0); $2"
"""
"""A Python that says it is 3.9, and makes no virtual environment."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python3.9").write_text(OLDER.format(python=sys.executable))
    (tmp_path / "python3.9").chmod(0o755)
    return tmp_path


def make(clone: Path, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command, environment = ["make", "--no-print-directory", *map(str, words)], os.environ | variables
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=60, check=False)


def installed(clone: Path, python: Path) -> None:
    """Make a ``.venv`` in which everything is up to date."""
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/python").symlink_to(python)
    (clone / ".venv/full.done").touch()


@pytest.mark.parametrize("target", ["demo", "install", "test"])
def test_a_python_that_is_too_old_is_told_before_anything_is_made(clone: Path, target: str) -> None:
    done = make(clone, target, f"PYTHON={clone / 'python3.9'}")
    assert done.returncode == 2
    assert re.search(r"error: \S+python3\.9 is Python 3\.9, expected 3\.10 or later: .* make demo PYTHON=", done.stderr)
    assert not (clone / ".venv").exists()


def test_a_virtual_environment_of_an_older_python_is_told(clone: Path) -> None:
    installed(clone, clone / "python3.9")
    done = make(clone, "install")
    assert done.returncode == 2
    assert "error: .venv/bin/python is Python 3.9, expected 3.10 or later: run make clean" in done.stderr


def test_a_virtual_environment_of_another_python_than_the_one_that_is_named_is_told(clone: Path) -> None:
    installed(clone, Path(sys.executable))
    older = str(clone / "python3.9")
    for done in (make(clone, "install", f"PYTHON={older}"), make(clone, "install", PYTHON=older)):
        assert done.returncode == 2
        assert f"error: .venv has Python {HERE}, {older} is 3.9: run make clean" in done.stderr


def test_what_is_installed_is_left_alone(clone: Path) -> None:
    installed(clone, Path(sys.executable))
    for words in (["install"], ["install", f"PYTHON={sys.executable}"]):
        assert (make(clone, *words).returncode, make(clone, *words).stderr) == (0, "")


def test_a_virtual_environment_that_cannot_be_made_leaves_no_half_of_one(clone: Path) -> None:
    """As on Debian without python3-venv."""
    half = clone / "half"
    half.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\nmkdir -p .venv/bin; exit 1\n')
    half.chmod(0o755)
    assert make(clone, "install", f"PYTHON={half}").returncode == 2
    assert not (clone / ".venv").exists()


def test_the_cpu_builds_that_the_page_installs_are_those_of_the_constraints() -> None:
    (command,) = re.findall(r"uv pip install --torch-backend cpu (.+)", (DOCS / "laptop.md").read_text())
    assert [word.partition("==")[0] for word in command.split()] == ["torch", "torchvision"]
    assert set(command.split()) <= set((ROOT / "constraints.txt").read_text().splitlines())
