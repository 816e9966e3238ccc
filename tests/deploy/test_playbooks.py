"""What Ansible itself says of the playbooks, and of the inventory that is their example."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROGRAMS = Path(sys.executable).parent
ANSIBLE_LINT = shutil.which("ansible-lint", path=str(PROGRAMS))

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.skipif(ANSIBLE_LINT is None, reason="needs ansible-lint, which needs Python 3.11: make install"),
]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs there, with nothing of whoever runs the tests."""
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(DEPLOY / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    }
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.system
def test_ansible_lint_has_nothing_to_say() -> None:
    done = run(DEPLOY, "ansible-lint", "--offline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failure(s), 0 warning(s)" in done.stderr, done.stderr


@pytest.mark.system
def test_ansible_lint_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "wrong.yml").write_text("- hosts: all\n  tasks:\n    - shell: ls\n")
    shutil.copyfile(DEPLOY / ".ansible-lint", tmp_path / ".ansible-lint")
    done = run(tmp_path, "ansible-lint", "--offline", "wrong.yml")
    assert done.returncode != 0
    assert "no-changed-when" in done.stdout


@pytest.mark.parametrize("inventory", ["example", "cells"])
def test_every_playbook_takes_an_example_inventory(inventory: str) -> None:
    playbooks = ("site.yml", "upgrade.yml", "upgrade_cell.yml", "rollback.yml")
    done = run(DEPLOY, "ansible-playbook", "-i", f"inventories/{inventory}", "--list-hosts", *playbooks)
    assert (done.returncode, done.stderr) == (0, "")
    for said in done.stdout.split("\nplaybook: ")[1:]:
        assert {"node1", "jetson1", "jetson2", "jetson3", "jetson4"} <= set(said.split()), said


@pytest.mark.parametrize("inventory", ["example", "cells"])
def test_an_example_inventory_is_a_whole_fleet(inventory: str) -> None:
    """What Ansible makes of it: nothing without a default is left out, each submodel has one device in a cell."""
    done = run(DEPLOY, "ansible-inventory", "-i", f"inventories/{inventory}", "--list")
    assert (done.returncode, done.stderr) == (0, "")
    listed: dict[str, Any] = json.loads(done.stdout)
    hosts = listed["_meta"]["hostvars"]
    devices, nodes = members(listed, "devices"), members(listed, "nodes")
    asked_for = {"devit_version", "devit_wheel", "devit_bundle", "devit_allowed_signers"}
    assert all(asked_for < hosts[name].keys() for name in (*nodes, *devices))
    assert all("devit_address" in hosts[name] for name in nodes)
    assert {hosts[name]["devit_node"] for name in devices} == set(nodes)
    for node in nodes:
        submodels = [hosts[name]["devit_submodel"] for name in devices if hosts[name]["devit_node"] == node]
        assert sorted(submodels) == list(range(len(submodels)))


def members(listed: dict[str, Any], group: str) -> list[str]:
    """All hosts of a group and of the groups in it."""
    found: list[str] = list(listed[group].get("hosts", []))
    return found + [name for child in listed[group].get("children", []) for name in members(listed, child)]


def test_systemd_is_spoken_to_through_its_module_alone() -> None:
    for path in DEPLOY.rglob("*.yml"):
        assert "systemctl" not in path.read_text(), path


def test_every_file_of_yaml_is_valid() -> None:
    found = [*DEPLOY.rglob("*.yml"), *DEPLOY.glob(".ansible-lint")]
    assert len(found) > 20
    for path in found:
        assert yaml.safe_load(path.read_text()), path


@pytest.mark.parametrize("page", ["deploy/README.md", "docs/fleet.md"])
def test_every_playbook_that_a_page_names_is_there(page: str) -> None:
    named = re.findall(r"(?:inventories/mine |`)([a-z_]+\.yml)", (DEPLOY.parent / page).read_text())
    assert {"site.yml", "upgrade.yml", "rollback.yml"} <= set(named)
    assert [name for name in named if not (DEPLOY / name).is_file()] == []


def test_every_variable_that_a_playbook_uses_is_told_where_the_readme_says() -> None:
    """Those that a role uses are all named in the defaults, with a value or as what is asked for."""
    defaults = (DEPLOY / "roles/devit/defaults/main.yml").read_text()
    texts = [path.read_text() for path in DEPLOY.rglob("*") if path.suffix in (".yml", ".j2")]
    used = {name for text in texts for name in re.findall(r"\bdevit_[a-z_]+\b", text)}
    assert sorted(name for name in used if not re.search(rf"^(# )?{name}:", defaults, re.M)) == []
