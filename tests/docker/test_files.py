"""What can be said of docker/ without a Docker engine, which no test has: form, sources, settings."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.docker.compose import COMPOSE, binds, load_compose, services
from tests.docker.dockerfile import DOCKERFILES, ROOT, copied_sources, read_stages

from devit_engines.doctor.jetpack import release_boards
from devit_pipeline.service import GROUPS

NAMES = [path.name for path in DOCKERFILES]


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        assert platform.machine() != "x86_64", f"no {name}: run make install"
        pytest.skip(f"no {name} on this machine: pip has it for x86 alone")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_there_is_an_image_for_the_workstation_the_jetson_and_the_node() -> None:
    assert NAMES == ["export.Dockerfile", "fusion.Dockerfile", "jetson.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    done = run(tool("hadolint"), "--config", ROOT / ".hadolint.yaml", path)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_says_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM debian\nRUN cd /tmp && sudo make\n")
    assert "DL3004" in run(tool("hadolint"), "--config", ROOT / ".hadolint.yaml", wrong).stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES)
def test_every_source_that_is_copied_is_in_a_fresh_clone_and_reaches_the_builder(path: Path) -> None:
    sources = copied_sources(path)
    assert "pyproject.toml" in sources
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for source in sources:
        assert run("git", "ls-files", source).stdout, f"{source} is not committed"
        assert f"!{source}" in sent, f".dockerignore keeps {source} from the builder"
    # What the wheel is made of is all there, and nothing is sent for nothing.
    places = re.findall(r'^  "(\w+)/devit_\w+",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(places) <= set(sources)
    assert {line.removeprefix("!") for line in sent if line.startswith("!")} == set(sources)


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES)
def test_an_image_has_stages_a_base_with_a_tag_and_a_numeric_user(path: Path) -> None:
    arguments, stages = read_stages(path)
    assert len(stages) >= 2
    bases = [argument.text for argument in arguments if argument.text.startswith("BASE")]
    assert bases
    for base in bases:
        assert re.fullmatch(r"BASE\d?=[a-z]+:[\d.]+(-[a-z]+)*", base), base
    users = [one.text for one in stages[-1].instructions if one.name == "USER"]
    assert users == ["10001:10001"]


def test_the_image_for_jetpack_7_is_for_orin_and_thor() -> None:
    """roboflow/inference pull request 2651 has one image of r39.2 for both; JetPack 7.1, r38.4, is for Thor alone."""
    _, stages = read_stages(ROOT / "docker" / "jetson.Dockerfile")
    releases = {
        stage.name: one.text.removeprefix("L4T_RELEASE=r")
        for stage in stages
        for one in stage.instructions
        if one.text.startswith("L4T_RELEASE=r")
    }
    assert releases == {"jetpack6": "36.4", "jetpack7": "39.2"}
    boards = {stage: release_boards(f"{release}.0") for stage, release in releases.items()}
    assert boards == {"jetpack6": ("sm_87",), "jetpack7": ("sm_87", "sm_110")}


def test_compose_follows_the_compose_specification() -> None:
    done = run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_slip_in_compose_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("read_only: true", "read_only: [true]"))
    assert run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", wrong).returncode == 1


def test_no_service_has_more_rights_than_the_common_part_leaves_it() -> None:
    """What those rights are in a running cell is checked in chroots by test_images."""
    compose = load_compose()
    common = {name: compose["x-service"][name] for name in ("read_only", "user", "cap_drop", "security_opt")}
    for name, service in compose["services"].items():
        assert common.items() <= service.items(), name
        assert not {"privileged", "cap_add", "ports", "devices", "pid", "ipc"} & set(service), name
        assert "healthcheck" in service or service["restart"] == "no", f"{name} runs on, and nothing checks its health"


def test_the_groups_of_a_jetsons_unit_are_those_of_its_containers_by_numbers_that_may_be_set() -> None:
    numbers = {f"{group.upper()}_GID": str(105 + place) for place, group in enumerate(GROUPS)}
    for service in load_compose(numbers)["services"].values():
        if service["profiles"] == ["jetson"]:
            assert service["group_add"] == list(numbers.values())


def test_secrets_are_files_that_are_declared_and_lie_where_nothing_is_committed() -> None:
    compose = load_compose()
    used = {secret for service in compose["services"].values() for secret in service.get("secrets", ())}
    assert used == set(compose["secrets"])
    for secret in compose["secrets"].values():
        path = (COMPOSE.parent / secret["file"]).resolve()
        assert run("git", "check-ignore", path).returncode == 0, f"{path} could be committed"
    for service in compose["services"].values():
        paths = [word for word in service["command"] if word.startswith("/run/secrets/")]
        assert {path.removeprefix("/run/secrets/") for path in paths} <= set(service.get("secrets", ()))


def test_what_a_service_is_built_from_and_mounts_is_there() -> None:
    compose = load_compose()
    for name, service in compose["services"].items():
        build = service["build"]
        assert (COMPOSE.parent / build["context"]).resolve() == ROOT
        path = ROOT / build["dockerfile"]
        assert path in DOCKERFILES
        for argument in build.get("args", {}):
            assert f"ARG {argument}" in path.read_text(), f"{name}: {path.name} has no ARG {argument}"
        if service["profiles"] == ["laptop"]:
            assert all(source.is_dir() for source, _, _ in binds(service)), name
        named = [volume.split(":")[0] for volume in service["volumes"] if not volume.startswith(".")]
        assert set(named) <= set(compose["volumes"])


def test_images_of_one_name_are_built_one_way() -> None:
    builds: dict[str, Any] = {}
    for service in services().values():
        assert builds.setdefault(service["image"], service["build"]) == service["build"]
    assert len(builds) == 3
