"""The images of docker/, built instruction by instruction in chroots, and a laptop's cell of them as processes.

No Docker engine is here, and none is claimed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from tests.docker.compose import services
from tests.docker.dockerfile import ROOT, read_stages
from tests.docker.image import NOT_HERE, Builder, Image, make_debian, sh
from tests.docker.running import Container, new_volume
from tests.network.namespaces import Namespace, namespace

from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Client
from devit_contract.wire.codec import State
from devit_pipeline import demo

LAPTOP = services("laptop")
DEVIT = f"devit-{version('devit')}"

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root and debootstrap (apt-get install debootstrap)")
    assert request.config.cache is not None
    start_s = time.monotonic()
    root = tmp_path_factory.mktemp("debian") / "root"
    make_debian(root, Path(request.config.cache.mkdir("debootstrap")).absolute())
    print(f"docker: a Debian in {time.monotonic() - start_s:.0f} s")
    return root


@pytest.fixture(scope="module")
def jetson(tmp_path_factory: pytest.TempPathFactory, debian: Path) -> Image:
    start_s = time.monotonic()
    image = Builder(tmp_path_factory.mktemp("jetson"), debian).build("docker/jetson.Dockerfile")
    print(f"docker: jetson.Dockerfile in {time.monotonic() - start_s:.0f} s, not run: {image.skipped}")
    return image


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory, jetson: Image) -> Builder:
    """The other images' bases have Python; what the Jetson's apt line made of Debian stands in for them."""
    return Builder(tmp_path_factory.mktemp("images"), jetson.stages["python"])


@pytest.fixture(scope="module")
def laptop_images(builder: Builder) -> dict[str, Image]:
    """By name in compose.yaml, each built with the arguments that stand there."""
    made: dict[str, Image] = {}
    for service in LAPTOP.values():
        if service["image"] not in made:
            start_s = time.monotonic()
            build = service["build"]
            made[service["image"]] = builder.build(build["dockerfile"], build.get("args"))
            print(f"docker: {service['image']} in {time.monotonic() - start_s:.0f} s")
    return made


def test_the_jetsons_image_starts_its_commands_and_lacks_only_what_nvidia_has(jetson: Image) -> None:
    """Debian stands in for Ubuntu, x86 for arm64; TensorRT's repository is not reachable."""
    assert [text.split()[0] for text in jetson.skipped] == ["ADD", "RUN"]
    assert all(NOT_HERE in text for text in jetson.skipped)
    for command in (("edge-agent", "--help"), ("devit", "build", "--help"), ("devit", "doctor", "--help")):
        assert "Usage" in jetson.run(*command)
    assert jetson.run("id", "-u").strip() == "10001"
    seen = jetson.run("python3", "-c", "import sys, importlib.metadata as m; print(m.version('cuda-python'), sys.path)")
    assert seen.startswith("12.6")
    assert "/usr/lib/python3/dist-packages" in seen, "TensorRT's binding comes by apt and lies there"


def test_what_the_workstations_image_installs_is_what_the_tests_run_with() -> None:
    """A dry run, as torch alone has gigabytes: the line asks for nothing that this environment does not hold."""
    _, stages = read_stages(ROOT / "docker" / "export.Dockerfile")
    (line,) = (one.text for one in stages[0].instructions if "pip install" in one.text)
    words = shlex.split(line.partition("pip install")[2])
    assert words[-1] == ".[export,timm]"
    said = sh(sys.executable, "-m", "pip", "install", "--dry-run", *words, cwd=ROOT)
    assert [line.split() for line in said.splitlines() if "Would install" in line] == [["Would", "install", DEVIT]]


def test_the_nodes_image_starts_its_commands_as_nobody_in_particular(laptop_images: dict[str, Image]) -> None:
    image = laptop_images[LAPTOP["laptop-node"]["image"]]
    for command in (("fusion-node", "--help"), ("devit", "gateway", "--help"), ("devit", "--help")):
        assert "Usage" in image.run(*command)
    assert image.run("id", "-u").strip() == "10001"
    with pytest.raises(AssertionError, match="Permission denied"):
        image.run("touch", "/opt/devit/bin/devit")


def test_a_laptops_cell_gets_healthy_answers_and_ends(laptop_images: dict[str, Image], tmp_path: Path) -> None:
    """With the mounts, user, capabilities and read-only root of compose.yaml, in the order of its conditions."""
    store = new_volume(tmp_path / "engines", laptop_images[LAPTOP["laptop-engines"]["image"]], "/engines")
    running: dict[str, Container] = {}
    with namespace() as network, ExitStack() as stack:
        for names in in_order(LAPTOP):
            for name in names:
                image = laptop_images[LAPTOP[name]["image"]]
                container = Container(image, LAPTOP[name], network, {"laptop-engines": store})
                running[name] = stack.enter_context(container)
            for name in names:
                if "healthcheck" in LAPTOP[name]:
                    running[name].wait_healthy()
                else:
                    assert running[name].wait(60) == 0, running[name].log()
        check_answers(network)
        check_confinement(running["laptop-agent-1"])
        # Without a node an agent is not healthy, and says why.
        assert running.pop("laptop-node").stop() == 0
        said = running["laptop-agent-1"].wait_healthy(False)
        assert "waiting for the node" in said
        for name, container in running.items():
            if "healthcheck" in LAPTOP[name]:
                assert container.stop() == 0, container.log()


def in_order(chosen: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Give names of services, those together whose conditions are met by the ones before."""
    left = dict(chosen)
    while left:
        met = [name for name, service in left.items() if not set(service.get("depends_on", ())) & set(left)]
        assert met, f"conditions that lead back to themselves: {list(left)}"
        yield met
        for name in met:
            del left[name]


def check_answers(network: Namespace) -> None:
    images, labels = demo.test_images(Bundle(demo.SHIPPED / "bundle"))
    with network.inside():
        with urlopen("http://127.0.0.1:8080/readyz", timeout=10) as reply:
            assert reply.status == 200
        with Client.of_fleet(load_fleet(ROOT / "docker/laptop/fleet.toml"), None, timeout_s=30) as client:
            start_s = time.monotonic()
            answers = list(client.stream(images[:200]))
            duration_s = time.monotonic() - start_s
    assert {answer.state for answer in answers} == {State.FULL}
    found = [answer.probabilities().argmax() for answer in answers]
    accuracy = float(np.mean(np.array(found) == labels[:200]))
    print(f"docker: 200 images in {duration_s:.1f} s by the laptop's cell, {accuracy:.1%} right")
    assert accuracy > 0.85


def check_confinement(container: Container) -> None:
    status = container.execute("cat", "/proc/self/status").stdout
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert fields["Uid"].split() == ["10001"] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    for place in ("/opt/devit/x", "/bundle/x", "/cell/x", "/engines/x", "/x"):
        assert "Read-only file system" in container.execute("touch", place).stderr, place
    assert container.execute("touch", "/tmp/x").returncode == 0
