"""Commands in a smaller installation than they need: one line with the pip install to run, before any work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from devit_contract.extras import PACKAGES, Extra
from devit_pipeline.cli import COMMANDS

RECIPE = Path(__file__).parents[2] / "examples" / "fashion-mnist.toml"
HIDE = """
import importlib.machinery, os
hidden, find = os.environ["HIDDEN"].split(","), importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)
"""
"""As ``sitecustomize``: to every process of a test, these packages are not installed."""
DEMO: dict[str, tuple[str, Extra | None]] = {
    "decompose": (f"{RECIPE}", "decompose"),
    "assemble": ("--models vit_tiny_patch16_224 --data absent", "timm"),
    "evaluate": ("absent", "decompose"),
    "export": ("absent", "export"),
    "sign": ("absent --key absent", None),
    "build": ("absent", None),
    "engines": ("list", None),
    "doctor": ("", None),
    "selftest": ("", None),
    "keys": ("list", None),
    "fleet": ("list", None),
    "pair": ("--bundle absent", "pair"),
    "join": ("127.0.0.1 AAAAAA", "pair"),
    "fuse": ("--bundle absent --fleet absent", None),
    "gateway": ("--fleet absent", None),
    "views": ("absent absent", None),
    "agent": ("--config absent", None),
    "install-service": ("fusion --prefix /srv/devit --dry-run", None),
    "status": ("", None),
    "classify": ("absent", None),
    "profile": ("--devices jetson1", None),
    "bench-device": ("absent --name jetson1 --submodel 0", None),
    "plan": ("--bundle absent --goal rate=10", None),
    "record": ("--fleet absent --out absent", "record"),
    "replay": ("absent", "record"),
    "demo": ("--models absent", "export"),
}
"""What follows each command, and which extra it lacks where ``make demo`` has installed."""
NODE: dict[str, Extra] = {
    "pair --bundle absent": "pair",
    "gateway --fleet absent": "http",
    "profile --devices jetson1": "profile",
    "profile --devices local": "profile",
    "profile report absent": "profile",
    "profile sweep --power-modes 0 --deadline-ms 9 --bundle absent": "profile",
    "demo": "demo",
}
"""Which extra a command lacks where a node alone is installed."""


def run(code: str, arguments: str, folder: Path, *installed: Extra) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder, where of all extras only some are installed."""
    here = {package for extra in installed for package in PACKAGES[extra]}
    everything = {package for packages in PACKAGES.values() for package in packages}
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(HIDE)
    (folder / "empty").mkdir()
    environment = os.environ | {
        "HIDDEN": ",".join(everything - here),
        "PYTHONPATH": str(folder / "site"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    command = [sys.executable, "-c", code, *arguments.split()]
    return subprocess.run(
        command, cwd=folder / "empty", env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def check_told(done: subprocess.CompletedProcess[str], extra: Extra, folder: Path) -> None:
    assert (done.returncode, done.stdout) == (1, ""), done
    command = re.escape(f"run {sys.executable} -m pip install 'devit[{extra}]'")
    assert re.fullmatch(rf"error: \w+ (is not installed|cannot be imported \(.+\)): {command}\n", done.stderr)
    assert list((folder / "empty").iterdir()) == []


def commands(*, lacking: bool) -> list[object]:
    """Most lack nothing, and say so in seconds."""
    marks = () if lacking else pytest.mark.system
    return [pytest.param(name, marks=marks) for name, (_, extra) in DEMO.items() if (extra is not None) is lacking]


@pytest.mark.parametrize("command", [*commands(lacking=True), *commands(lacking=False)])
def test_each_command_works_after_make_demo_or_says_what_to_install(command: str, tmp_path: Path) -> None:
    arguments, lacking = DEMO[command]
    done = run("from devit_pipeline.cli import main; main()", f"{command} {arguments}", tmp_path, "cli", "demo")
    if lacking is not None:
        check_told(done, lacking, tmp_path)
    else:
        assert "Traceback" not in done.stderr
        assert "pip install" not in done.stderr
        assert done.returncode == 0 or done.stderr.count("\n") == done.stderr.count("error: ") == 1, done


def test_every_command_is_tried() -> None:
    assert set(DEMO) == set(COMMANDS)


@pytest.mark.parametrize("command", NODE)
def test_what_is_not_installed_on_a_node_is_told_before_anything_is_read_or_measured(
    command: str, tmp_path: Path
) -> None:
    done = run("from devit_pipeline.cli import main; main()", command, tmp_path, "cli")
    check_told(done, NODE[command], tmp_path)


@pytest.mark.parametrize("script", ["devit", "edge_agent", "fusion_node", "profile"])
def test_without_command_line_tools_every_script_says_what_to_install(script: str, tmp_path: Path) -> None:
    """As after ``pip install .``, which is enough for the client library."""
    check_told(run(f"from devit_pipeline.entry import {script}; {script}()", "", tmp_path), "cli", tmp_path)
