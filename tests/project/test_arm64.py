"""The agent on arm64, from the built wheel: emulated by qemu-user, in a cell whose other parts run on x86."""

from __future__ import annotations

import json
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.edge_agent.hand_made_node import HandMadeNode
from tests.project.arm64 import QEMU, Arm64Python

from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.answer import Answer
from devit_contract.wire.codec import Kind, State
from devit_engines.building.build_all import build_engines, load_engine
from devit_engines.building.store import Store
from devit_pipeline import demo
from devit_pipeline.local_cell import LocalCell, LocalDevice

BUNDLE = Bundle(demo.SHIPPED / "bundle")
IMAGES = demo.test_images(BUNDLE)[0][:20]  # (20, 28, 28, 1)
READY_DEADLINE_S = 60.0

pytestmark = [pytest.mark.nightly(part="installs"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Arm64Python:
    for tool in (QEMU, "apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on this machine (Debian: apt install qemu-user-static)")
    assert request.config.cache is not None
    made = Arm64Python(tmp_path_factory.mktemp("arm64"), Path(request.config.cache.mkdir("arm64")))
    print(f"arm64: Debian's Python in {made.unpacking_s:.0f} s, devit[agent] in {made.installing_s:.0f} s")
    return made


@pytest.fixture(scope="module")
def mixed_store(tmp_path_factory: pytest.TempPathFactory, arm64: Arm64Python) -> Path:
    """Engines of both processors; their keys tell them apart by the version of ONNX Runtime."""
    folder = tmp_path_factory.mktemp("store")
    build_engines(BUNDLE, Store(folder))
    start_s = time.monotonic()
    options = ("--submodels", "0", "--store", folder, "--json")
    (built,) = json.loads(arm64.run(arm64.script("devit"), "build", BUNDLE.folder, *options))
    accuracy = built["record"]["accuracy"]
    print(f"arm64: devit build and its accuracy check in {time.monotonic() - start_s:.0f} s: {accuracy}")
    return folder


@contextmanager
def running_agent(arm64: Arm64Python, config: Path) -> Iterator[subprocess.Popen[str]]:
    command = arm64.command(arm64.script("edge-agent"), "--config", config)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen(command, env=arm64.environment, text=True, **pipes)
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=20)


def wait_ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        assert selector.select(READY_DEADLINE_S), "the arm64 agent was not ready in time"
    line = child.stdout.readline()
    if not line:
        pytest.fail(f"the arm64 agent ended: {child.communicate(timeout=20)[1]}")
    assert json.loads(line)["ready"] is True


def test_what_runs_is_arm64(arm64: Arm64Python) -> None:
    assert arm64.run("-c", "import platform; print(platform.machine())").strip() == "aarch64"


def test_features_of_an_arm64_agent_are_those_of_x86(arm64: Arm64Python, mixed_store: Path, tmp_path: Path) -> None:
    with load_engine(BUNDLE, Store(mixed_store), 0) as engine:
        expected = np.stack([engine.features(image[np.newaxis])[0] for image in IMAGES])
    node = HandMadeNode(tmp_path, mixed_store)
    node.socket.rcvtimeo = int(READY_DEADLINE_S * 1000)
    try:
        with running_agent(arm64, node.configure(bundle=BUNDLE.folder)) as child:
            node.welcome()
            wait_ready(child)
            found = []
            for number, image in enumerate(IMAGES, 1):
                node.send(node.frame(image, number))
                found.append(node.receive(Kind.FEATURE, Kind.SKIP).array())
    finally:
        node.close()
    difference = float(np.abs(np.stack(found) - expected).max())
    print(f"arm64: {expected.shape[0]} features of {expected.shape[1]}, largest difference to x86 {difference:.1e}")
    assert difference <= 1e-5
    assert float(np.abs(expected).max()) > 0.1


def test_an_arm64_agent_takes_the_place_of_an_x86_one_in_a_cell(
    arm64: Arm64Python, mixed_store: Path, tmp_path: Path
) -> None:
    """Same name and keys, TCP and CURVE: the answers stay full and the same."""
    devices = [LocalDevice(f"jetson{number + 1}", number) for number in range(len(BUNDLE.manifest.submodels))]
    with LocalCell(BUNDLE.folder, tmp_path / "cell", devices, store=mixed_store, deadline_ms=5000) as cell:
        with cell.client() as client:
            of_x86 = list(client.stream(IMAGES, in_flight=1))
            cell.kill("jetson1")
            with running_agent(arm64, cell.folder / "jetson1.toml") as child:
                wait_ready(child)
                start_s = time.monotonic()
                of_both = list(client.stream(IMAGES, in_flight=1))
                duration_s = time.monotonic() - start_s
                engine = next(device.engine for device in client.status().devices if device.name == "jetson1")
        assert [answer.state for answer in of_x86 + of_both] == [State.FULL] * 2 * len(IMAGES)
        difference = np.abs(logits(of_both) - logits(of_x86)).max()
        print(f"arm64: {len(IMAGES) / duration_s:.0f} full answers/s from {engine} and three x86 agents")
        print(f"arm64: logits within {difference:.1e} of those of x86 alone")
        assert "1.20.1" in engine
        assert difference <= 1e-4


def logits(answers: list[Answer]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.stack([answer.logits for answer in answers if answer.logits is not None])
