"""What lies in examples/ is what the code reads."""

from __future__ import annotations

from pathlib import Path

from devit_contract.fleet import load_agent_config, load_fleet
from devit_contract.manifest import Preprocess
from devit_contract.preprocess import load_image

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_fleet_and_agent_files_are_valid_and_fit_together() -> None:
    fleet = load_fleet(EXAMPLES / "fleet.toml")
    agent = load_agent_config(EXAMPLES / "agent.toml")
    assert agent.node == fleet.node[0].endpoint
    assert agent.node_public_key == fleet.node[0].public_key
    assert fleet.find_device(agent.name).submodel == agent.submodel


def test_every_example_picture_is_read_as_it_is() -> None:
    spec = Preprocess(height=28, width=28, colour="gray")
    pictures = sorted((EXAMPLES / "images").glob("*.png"))
    assert len(pictures) == 10
    for path in pictures:
        assert load_image(path, spec).shape == (28, 28, 1)
