"""What is read without typer means the same with it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.service.plain import plain_options
from devit_edge_agent import cli as agent_cli
from devit_edge_agent import start
from devit_fusion import cli as node_cli
from devit_fusion import node
from devit_pipeline import entry

SERVICES = {
    "edge-agent": (entry.edge_agent, agent_cli.app, start),
    "fusion-node": (entry.fusion_node, node_cli.app, node),
}
NAMES = ("--config", "--engine", "--bundle", "--fleet", "--key")
VALUES = ("agent.toml", "paced:5", "-", "-1", "", "--key", "a b")
PARTS = st.one_of(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)),
    st.sampled_from([("--stop-with-stdin",), ("--stop_with_stdin",), ("--help",), ("--",), ("--engine=null",), ("x",)]),
)


def by_typer(name: str, words: list[str]) -> dict[str, Any]:
    """Give what the command line would run the service with."""
    script, app, module = SERVICES[name]
    found: dict[str, Any] = {}

    def run(*values: object, **more: object) -> None:
        found.update(zip(script.args[2], values, strict=False), **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, script.args[1].partition(":")[2], run)
        typer.main.get_command(app).main(words, prog_name=name, standalone_mode=False)
    return found


@pytest.mark.parametrize("name", SERVICES)
@examples(5)
@given(parts=st.lists(PARTS, max_size=4))
def test_options_are_read_as_the_command_line_reads_them(name: str, parts: list[tuple[str, ...]]) -> None:
    words = list(chain.from_iterable(parts))
    plain = plain_options(words, *SERVICES[name][0].args[2:])
    if plain is not None:
        nothing = {"engine": "built", "key": None, "stop_with_stdin": False}
        assert {**nothing, **plain} == {**nothing, **by_typer(name, words)}


@pytest.mark.parametrize("words", ["", "--help", "--config", "--config a --config b", "--config=a", "--config a b"])
def test_what_is_not_plain_is_left_to_the_command_line(words: str) -> None:
    assert plain_options(words.split(), *entry.edge_agent.args[2:]) is None
