"""What a device and a newcomer install: light, without training packages, on the Pythons of JetPack 6 and 7."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JETPACK_PYTHONS = ("3.10", "3.12")
HEAVY = {"torch", "onnx", "onnxsim", "onnxscript", "torchvision"}
DEVICE_PLACES = ("contract", "engines", "edge_agent")
NODE_PLACES = ("fusion", "gateway", "profiling")
PLACES = {"3.10": (*DEVICE_PLACES, *NODE_PLACES), "3.12": DEVICE_PLACES}
"""Whose tests a Python runs: what looks after a node is tested on the oldest and, by ``make test``, on our own."""

pytestmark = [pytest.mark.nightly(part="installs"), pytest.mark.timeout(900)]


def find_python(version: str) -> str:
    """Find an interpreter by version, on PATH or where pyenv keeps them."""
    kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    candidates = [*map(str, kept), shutil.which(f"python{version}") or ""]
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", "import venv, sys; print(sys.version)"], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.startswith(version):
            return candidate
    pytest.skip(f"no Python {version} with venv on this machine")


def sh(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def install(python: str, venv: Path, *what: str) -> Path:
    sh(python, "-m", "venv", venv)
    pip = [venv / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    sh(*pip, "-c", ROOT / "constraints.txt", *what)
    return venv / "bin/python"


def test_an_agents_install_is_light_and_holds_no_training_package(tmp_path: Path) -> None:
    """On JetPack 7's Python; test_clean_account does the same on JetPack 6's, and goes on from there."""
    python = install(find_python("3.12"), tmp_path / "venv", f"{ROOT}[agent]")
    packages = json.loads(sh(python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"))
    assert not {package["name"].lower() for package in packages} & HEAVY
    size_mb = int(sh("du", "-sm", tmp_path / "venv").split()[0])
    print(f"Python 3.12: agent environment of {size_mb} MB")
    assert size_mb <= 300
    sh(python.parent / "edge-agent", "--help")


@pytest.mark.parametrize("version", JETPACK_PYTHONS)
def test_what_runs_on_devices_passes_its_tests_on_jetpacks_python(version: str, tmp_path: Path) -> None:
    tools = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")
    python = install(find_python(version), tmp_path / "venv", f"{ROOT}[demo,pair]", *tools)
    tests = [f"tests/{place}" for place in PLACES[version]]
    out = sh(python, "-m", "pytest", "-q", "-n", "2", "-m", "not system and not nightly and not jetson", *tests)
    passed = re.search(r"(\d+) passed", out)
    print(f"Python {version}: {out.splitlines()[-1]}")
    assert passed is not None
    assert int(passed[1]) > 100


@pytest.mark.parametrize("version", JETPACK_PYTHONS)
def test_make_demo_runs_from_a_fresh_clone_in_time_twice(version: str, tmp_path: Path) -> None:
    """Only Python with venv, make and the clone: the whole pipeline in 120 s, with engines in store in 60 s."""
    clone = tmp_path / "clone"
    sh("git", "clone", "-q", ROOT, clone)
    durations_s = []
    for _ in range(2):
        out = sh("make", "demo", f"PYTHON={find_python(version)}", cwd=clone, XDG_CACHE_HOME=str(tmp_path))
        duration = re.search(r"test images, (\d+) s", out)
        assert duration is not None, out
        durations_s.append(int(duration[1]))
        report = re.search(r"report: (\S+)", out)
        assert report is not None
        assert (clone / report[1]).exists()
    for command in ("decompose examples/fashion-mnist.toml", "assemble --models a --data b", "evaluate a", "export a"):
        words = [str(clone / ".venv/bin/devit"), *command.split()]
        done = subprocess.run(words, cwd=clone, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert re.fullmatch(r"error: .+ (-m pip install 'devit\[\w+\]'|of a later Python)\n", done.stderr), done.stderr
    print(f"make demo, Python {version}: {durations_s[0]} s, then {durations_s[1]} s")
    assert durations_s[0] <= 120
    assert durations_s[1] <= 60
