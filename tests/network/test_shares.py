"""A flood beside another client, and a hot board among cool ones: real processes and sockets."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from benchmarks.network.shares import WANTED, Case, running, say, told
from tests.network.conftest import TINY

from devit_contract.artefacts.keys import load_keys
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Client
from devit_contract.wire.words import ShedReason, Slowdown
from devit_pipeline.local_cell import LocalCell, LocalDevice

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

BOARD = Path(__file__).parents[1] / "data/boards/orin-nano-jp6.2"
DEADLINE_S = 60.0
FLOOD = 1000


@pytest.mark.parametrize(
    "case",
    [Case("paced", rate_hz=50.0), Case("files", rate_hz=30.0, camera="single", is_file=True)],
    ids=lambda case: case.name,
)
def test_a_flood_costs_another_client_no_frame(tmp_path: Path, case: Case) -> None:
    """Every request of the flood is answered too, most of them at once: not served, and counted by why."""
    with running(case, tmp_path, FLOOD) as (cell, camera, child):
        alone_us = camera.ask(4.0)
        say(child)
        beside_us = camera.ask(4.0)
        say(child)
        ended = told(child)
        with cell.client() as client:
            found = {each.name: each for each in client.status().clients}
    ratio = np.percentile(beside_us, 99) / np.percentile(alone_us, 99)
    print(f"{case.name}: p99 {ratio:.2f} x of that alone, wanted <= {WANTED:g} x; the flood: {ended}")
    assert (camera.lost, found["camera"].shed) == (0, {})
    flood = found["flood"]
    assert flood.shed.keys() <= {ShedReason.QUEUE, ShedReason.SHARE, ShedReason.DEADLINE, ShedReason.BYTES}
    assert flood.frames["shed"] == sum(flood.shed.values()) > FLOOD // 2
    for why, count in flood.shed.items():
        assert ended.get(why, 0) <= count  # what a client reads too slowly is dropped
    assert ended["full"] > 0
    assert (flood.waiting, flood.in_flight) == (0, 0)


def test_what_is_above_max_in_flight_is_refused_at_once_and_nothing_else(tmp_path: Path) -> None:
    case = Case("limited", limits={"camera": "max_in_flight = 3"})
    with running(case, tmp_path, 1) as (cell, _, _child):
        keys = cell.folder.parent / "keys/camera.key_secret"
        with Client.of_fleet(cell.fleet, load_keys(keys), timeout_s=30) as client:
            image = np.zeros((32, 32, 3), np.uint8)
            answers = list(client.stream([image] * 60, in_flight=20))
            (camera,) = (each for each in client.status().clients if each.name == "camera")
            events = [event.text for event in client.status().events if event.device == "camera"]
    refused = [answer for answer in answers if answer.shed]
    assert {answer.shed for answer in refused} == {ShedReason.MAX_IN_FLIGHT}
    assert camera.shed == {ShedReason.MAX_IN_FLIGHT: len(refused)}
    assert 17 <= len(refused) < 58
    assert refused[0].why == "more are under way than max_in_flight of this client in the node's fleet.toml"
    assert [text.count("max_in_flight") and text.count("(3)") for text in events] == [1]


def test_a_hot_board_is_asked_after_a_cool_one_where_the_policy_can_choose(tmp_path: Path, bundle: Bundle) -> None:
    """The boards are folders: SIMULATED."""
    devices = []
    for index, name in enumerate(("jetson1", "jetson2")):
        shutil.copytree(BOARD, tmp_path / name, symlinks=True)
        devices.append(LocalDevice(name, index, engine="null", root=str(tmp_path / name)))
    image = bundle.golden()["images"][0]
    with LocalCell(TINY, tmp_path / "cell", devices, deadline_ms=5000) as cell, cell.client() as client:
        assert {client.classify(image, policy="replica").mask for _ in range(10)} == {0b01, 0b10}
        (tmp_path / "jetson1/sys/class/thermal/cooling_device5/cur_state").write_text("1\n")
        end_s = time.monotonic() + DEADLINE_S
        while not (first := client.status().devices[0]).slowdowns:
            assert time.monotonic() < end_s
            client.wait(0.5)
        assert first.slowdowns == (Slowdown.ALERT,)
        assert first.throttling is not None
        assert first.throttling.is_simulated
        assert {client.classify(image, policy="replica").mask for _ in range(10)} == {0b10}
        assert client.classify(image).mask == 0b11
        event = client.status().events[0]
    assert event.device == "jetson1"
    assert event.text == (
        "slows down: its board reports that it is too hot (SIMULATED); "
        "others are asked before it where the policy lets the node choose"
    )
