"""What pyproject.toml, constraints.txt and CHANGELOG.md say of each other."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from devit_contract.extras import PACKAGES, Extra
from devit_pipeline.cli import COMMANDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    found = {re.split(r"[<>=!~;\[ ]", text, maxsplit=1)[0].lower().replace("_", "-") for text in requirements}
    return found - {"devit"}


def test_every_dependency_has_an_exact_version_in_the_constraints() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    required = names(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        required |= names(extra)
    assert required - names(lines) == set()


def test_a_device_depends_on_no_training_or_gpu_package() -> None:
    light = names(PROJECT["dependencies"])
    for extra in ("agent", "fusion", "profile", "cli", "demo"):
        light |= names(PROJECT["optional-dependencies"][extra])
    assert not light & {"torch", "onnx", "onnxsim", "onnxscript", "tensorrt", "pycuda", "cuda-python", "cuda-bindings"}


def test_the_changelog_has_a_heading_for_this_version() -> None:
    assert f"## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text()


def test_console_scripts_that_are_commands_too_say_so_in_the_overview() -> None:
    twins = {"agent": "edge-agent", "fuse": "fusion-node", "profile": "profile"}
    for command, script in twins.items():
        assert script in PROJECT["scripts"]
        assert f"(= {script})" in COMMANDS[command][1]


def brought(extra: str) -> set[str]:
    """Names of all packages that an extra brings, with those of the extras in it."""
    found: set[str] = set()
    for text in PROJECT["optional-dependencies"][extra]:
        inner = re.match(r"devit\[(.+)\]", text)
        found |= set().union(*map(brought, inner[1].split(","))) if inner else names([text])
    return found


@pytest.mark.parametrize("extra", PACKAGES)
def test_an_extra_brings_what_is_asked_for_by_its_name(extra: Extra) -> None:
    assert {package.lower().replace("_", "-") for package in PACKAGES[extra]} <= brought(extra)
