"""Joules as a metric: real agents run a (simulated) sensor, and the gateway adds its samples up."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.running import Gateway, Reply
from tests.network.proxy import Proxy

from devit_contract.wire.client import Client
from devit_gateway.power_watch import PowerWatch
from devit_pipeline.local_cell import LocalCell

BOARD_MODEL = "NVIDIA Jetson Orin Nano Developer Kit (SIMULATED)"
SENSOR = (sys.executable, "-c", "import sys; from devit_profiling.simulator.program import main; sys.exit(main())")
DEADLINE_S = 30.0
METRIC = "devit_device_energy_joules_total"


def energies_j(reply: Reply) -> dict[str, float]:
    """Joules by device; all of them must say that they are simulated, and what they cover."""
    found = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            if sample.name == METRIC:
                assert sample.labels["simulated"] == "true"
                assert sample.labels["scope"] == "module input (VDD_IN)"
                found[sample.labels["device"]] = sample.value
    return found


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """The root folder of a simulated board."""
    root = tmp_path / "board"
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_text(BOARD_MODEL + "\0")
    return root


@pytest.mark.system
def test_joules_of_every_device_rise_and_survive_restarts(
    make_cell: Callable[..., LocalCell], start: Callable[..., Gateway], board: Path
) -> None:
    cell = make_cell(tegrastats=SENSOR, root=str(board))
    gateway = start("--sample-power", "50", to=cell)
    both = gateway.ask_until("/metrics", lambda reply: len(energies_j(reply)) == 2)
    first_j = energies_j(both)
    more = gateway.ask_until("/metrics", lambda reply: all(j > first_j[name] for name, j in energies_j(reply).items()))
    cell.kill("jetson2")
    cell.start_agents(["jetson2"])
    before_j = max(energies_j(more)["jetson2"], energies_j(gateway.ask("/metrics"))["jetson2"])
    gateway.ask_until("/metrics", lambda reply: energies_j(reply)["jetson2"] > before_j + 0.01)
    cell.kill("node")
    cell.start_node()
    last_j = energies_j(gateway.ask_until("/metrics", lambda reply: b"devit_node_up 1.0" in reply.body))
    gateway.ask_until("/metrics", lambda reply: all(j > last_j[name] + 0.5 for name, j in energies_j(reply).items()))


def test_joules_go_on_after_the_link_to_the_node_was_lost_for_a_moment(
    make_cell: Callable[..., LocalCell], board: Path
) -> None:
    """The node knows the old link's listener no more, and the agents have stopped sampling."""
    cell = make_cell(tegrastats=SENSOR, root=str(board))
    node = cell.fleet.node

    def energy_j() -> float:
        return min((reading.energy_j for reading in watch.readings), default=0.0) if len(watch.readings) == 2 else 0.0

    def wait_for(joules: float) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while energy_j() <= joules:
            assert time.monotonic() < end_s
            select.select([], [], [], 0.01)

    with Proxy(node.client_endpoint, delay_ms=0, jitter_ms=0) as proxy:

        def connect() -> Client:
            return Client(proxy.endpoint, keys=cell.client_keys, node_key=node.public_key.encode())

        with PowerWatch(connect, 50) as watch:
            wait_for(0.0)
            proxy.tell("reset")
            proxy.tell("flow")
            wait_for(energy_j() + 5.0)


def test_without_the_option_there_is_no_figure(gateway: Gateway) -> None:
    assert METRIC.encode() not in gateway.ask("/metrics").body
