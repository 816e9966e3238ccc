"""What is in examples/, and the laptop's cell of docker/: every file is read by the program it is for."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.files import read_tensors
from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.head import FusionHead
from devit_contract.artefacts.manifest import Bundle, Preprocess
from devit_contract.artefacts.preprocess import load_image
from devit_decompose.models.weights import load_model
from devit_decompose.models_folder.decomposition import load_decomposition
from devit_decompose.recipe.checks import check_recipe
from devit_decompose.recipe.reader import load_recipe
from devit_edge_agent.config import load_agent_config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LAPTOP = ROOT / "docker" / "laptop"
BASES_OF = {
    "common": "devit-cifar-100",
    **{name: f"{name}-cifar-100" for name in ("decct", "dedeit", "devit")},
    **{name: f"devit-{name}" for name in ("cifar-100", "flowers-102", "imagenet-1k", "stanford-cars")},
}
"""What is no recipe by itself, and a recipe that names it as its base."""


def tracked(*folders: str) -> list[Path]:
    command = ["git", "ls-files", *folders]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=30)
    return [ROOT / name for name in listed.stdout.splitlines()]


def read_recipe(path: Path) -> None:
    check_recipe(load_recipe(path))


def read_base(path: Path) -> None:
    recipe = path.with_name(f"{BASES_OF[path.stem]}.toml")
    assert path.name in recipe.read_text() + "".join(base.read_text() for base in recipe.parent.glob("de*t.toml"))
    read_recipe(recipe)


def read_picture(path: Path) -> None:
    assert load_image(path, Preprocess(height=28, width=28, colour="gray")).shape == (28, 28, 1)


def read_model(path: Path) -> None:
    models = load_decomposition(path.parent)
    record = models.teacher if path.stem == "teacher" else models.submodels[int(path.stem.removeprefix("submodel-"))]
    load_model(path, record.config)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fleet's and the agent's file, with keys in place of the placeholders."""
    folder, keys = tmp_path_factory.mktemp("filled"), defaultdict(lambda: zmq.curve_keypair()[0].decode())
    for name in WITH_KEYS:
        text = (EXAMPLES / name).read_text()
        (folder / name).write_text(re.sub(r"paste-the-public-key[^\"]*", lambda found: keys[found[0]], text))
    return folder


WITH_KEYS = ("fleet.toml", "agent.toml")
READERS: dict[str, Callable[[Path], object]] = {
    "examples/fleet.toml": load_fleet,
    "examples/agent.toml": load_agent_config,
    "examples/fashion-mnist/decomposition.json": lambda path: load_decomposition(path.parent),
    "examples/fashion-mnist/fusion.safetensors": FusionHead.load,
    "examples/fashion-mnist/calibration.safetensors": lambda path: Calibration.load(path, devices=4),
    "examples/fashion-mnist/samples.safetensors": lambda path: read_tensors(path, ""),
    "examples/fashion-mnist/quantization.safetensors": lambda path: read_tensors(path, ""),
    "examples/fashion-mnist/*.safetensors": read_model,
    "examples/images/*.png": read_picture,
    **{f"examples/paper/{base}.toml": read_base for base in BASES_OF},
    "examples/paper/*.toml": read_recipe,
    "examples/*.toml": read_recipe,
    "docker/laptop/fleet.toml": load_fleet,
    "docker/laptop/agent-*.toml": load_agent_config,
}
"""Who reads a file, by the first pattern that fits; texts for people have no reader."""


def test_every_example_file_is_read_by_the_program_it_is_for(filled: Path) -> None:
    wrong = []
    for path in tracked("examples", "docker/laptop"):
        if path.name in ("NOTICE", "README.md"):
            assert path.read_text().strip(), path
            continue
        reader = next((reader for pattern, reader in READERS.items() if path.match(pattern)), None)
        if reader is None:
            wrong.append(f"{path}: no program reads it: add its reader here")
            continue
        try:
            reader(filled / path.name if path.parent == EXAMPLES and path.name in WITH_KEYS else path)
        except Exception as err:
            wrong.append(f"{path}: {err!r}")
    assert wrong == []


def test_the_example_fleet_and_agent_files_fit_together(filled: Path) -> None:
    fleet = load_fleet(filled / "fleet.toml")
    agent = load_agent_config(filled / "agent.toml")
    assert agent.node == fleet.node.endpoint
    assert agent.node_public_key == fleet.node.public_key
    assert fleet.find_device(agent.name).submodel == agent.submodel


def test_the_laptops_agents_are_its_fleet_and_cover_the_shipped_bundle() -> None:
    fleet = load_fleet(LAPTOP / "fleet.toml")
    agents = [load_agent_config(path) for path in sorted(LAPTOP.glob("agent-*.toml"))]
    bundle = Bundle(ROOT / "pipeline/devit_pipeline/fashion_mnist/bundle")
    assert [(agent.name, agent.submodel) for agent in agents] == [(one.name, one.submodel) for one in fleet.device]
    assert [agent.submodel for agent in agents] == list(range(len(bundle.manifest.submodels)))
    assert {agent.node for agent in agents} == {fleet.node.endpoint}


def test_there_are_ten_example_pictures() -> None:
    assert len(list((EXAMPLES / "images").glob("*.png"))) == 10
