"""The cell fails for real: agents and nodes are killed, hung, absent, and the gateway says so and comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.running import DEADLINE_S, INFER, Gateway, Reply, as_json

from devit_contract.artefacts.keys import new_keys
from devit_pipeline.local_cell import LocalCell

Images = npt.NDArray[np.uint8]
MakeCell = Callable[..., LocalCell]
Start = Callable[..., Gateway]


def is_ok(reply: Reply) -> bool:
    return reply.status == 200


def is_full(reply: Reply) -> bool:
    return reply.status == 200 and set(reply.json()["outputs"][1]["data"]) == {"full"}


def is_down(reply: Reply) -> bool:
    return reply.status == 503


def test_too_few_devices_fail_the_batch_and_tell_its_states(make_cell: MakeCell, start: Start, images: Images) -> None:
    cell = make_cell(min_devices=2)
    gateway = start(to=cell)
    assert gateway.ask("/readyz").status == 200
    cell.kill("jetson2")
    unready = gateway.ask_until("/readyz", is_down)
    assert "expected at least 2 ready devices, found 1 (jetson1 ready, jetson2 absent)" in unready.json()["error"]
    reply = gateway.ask(INFER, as_json(images[:3]))
    assert reply.status == 503
    assert reply.json()["states"] == ["failed"] * 3
    assert "jetson2: absent" in reply.json()["error"]
    assert gateway.ask("/v2/health/ready").status == 503
    assert gateway.ask("/v2/health/live").status == 200
    cell.start_agents(["jetson2"])
    gateway.ask_until("/readyz", is_ok)
    gateway.ask_until(INFER, is_full, as_json(images[:3]))


def test_a_lost_device_costs_no_answer(make_cell: MakeCell, start: Start, images: Images) -> None:
    cell = make_cell()
    gateway = start(to=cell)
    cell.kill("jetson1")
    found = gateway.ask(INFER, as_json(images[:2])).json()
    states = {output["name"]: output["data"] for output in found["outputs"]}
    assert states["mask"] == [0b10, 0b10]
    assert states["state"] == ["partial", "partial"]
    assert gateway.ask("/readyz").status == 200


def test_the_pages_of_the_model_are_never_told_from_memory(make_cell: MakeCell, start: Start, images: Images) -> None:
    """The node may be gone for good, or come back with another bundle."""
    cell = make_cell()
    gateway = start("--timeout-s", "1", to=cell)
    for page in ("/v2/models/devit", "/v2/models/devit/config"):
        gateway.ask_until(INFER, is_full, as_json(images[:1]))  # from now on it knows the node for a second
        os.kill(cell.pid("node"), signal.SIGSTOP)
        os.waitid(os.P_PID, cell.pid("node"), os.WSTOPPED)
        reply = gateway.ask(page)
        os.kill(cell.pid("node"), signal.SIGCONT)
        assert reply.status == 503
        assert "check that fusion-node runs there" in reply.json()["error"]
        gateway.ask_until(page, is_ok)


@pytest.mark.system
def test_a_killed_node_is_told_at_once_and_its_return_is_noticed(
    make_cell: MakeCell, start: Start, images: Images
) -> None:
    """By a gateway that has seen it, and by one that is started while it is away."""
    cell = make_cell()
    gateway = start("--timeout-s", "1", to=cell)
    assert gateway.ask(INFER, as_json(images[:1])).status == 200
    cell.kill("node")
    start_s = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        asked = [("/readyz", None), (INFER, as_json(images)), ("/v2/models/devit", None)]
        for reply in pool.map(lambda page: gateway.ask(*page), asked):
            assert reply.status == 503
            assert "check that fusion-node runs there" in reply.json()["error"]
            assert "\n" not in reply.json()["error"]
    assert time.monotonic() - start_s < 5
    assert gateway.ask("/livez").status == 200
    families = {f.name: f for f in text_string_to_metric_families(gateway.ask("/metrics").body.decode())}
    assert families["devit_node_up"].samples[0].value == 0
    assert "devit_frames" not in families

    late = start("--timeout-s", "1", to=cell)
    assert (late.first_line["ready"], late.first_line["pid"]) == (True, late.process.pid)
    assert late.ask("/livez").status == 200
    assert late.ask("/readyz").status == 503
    cell.start_node()
    for each in (gateway, late):
        each.ask_until("/readyz", is_ok)
        each.ask_until(INFER, is_full, as_json(images[:2]))


def test_requests_under_way_end_when_the_node_hangs_and_when_it_is_killed(
    make_cell: MakeCell, start: Start, images: Images
) -> None:
    cell = make_cell(deadline_ms=20_000)
    gateway = start("--timeout-s", "1.5", to=cell)
    assert gateway.ask(INFER, as_json(images[:2])).status == 200  # from now on it knows the node for a second
    os.kill(cell.pid("node"), signal.SIGSTOP)
    start_s = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        # 256 images, of which the node may have 34 at once: the others must not wait for those in turn.
        statuses = [reply.status for reply in pool.map(lambda _: gateway.ask(INFER, as_json(images)), range(4))]
    assert statuses == [503] * 4
    assert time.monotonic() - start_s < 9  # in turn they would take 12
    os.kill(cell.pid("node"), signal.SIGCONT)
    gateway.ask_until(INFER, is_full, as_json(images[:2]))

    # A stopped agent holds the frames open; then the node goes, and nobody will ever answer.
    os.kill(cell.pid("jetson1"), signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gateway.ask, INFER, as_json(images[:2]))
        gateway.ask_until("/metrics", lambda reply: b"devit_frames_open 2.0" in reply.body)
        cell.kill("node")
        assert asked.result(DEADLINE_S).status == 503
    os.kill(cell.pid("jetson1"), signal.SIGCONT)


def frames_ended(gateway: Gateway) -> float:
    families = {f.name: f for f in text_string_to_metric_families(gateway.ask("/metrics").body.decode())}
    return sum(sample.value for sample in families["devit_frames"].samples)


def post(body: bytes) -> bytes:
    return f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_crowd_is_refused_and_costs_nothing_once_it_has_left(
    make_cell: MakeCell, start: Start, images: Images
) -> None:
    """Nobody waits for its 312 images any more; only those that the node has got are still worked on."""
    cell = make_cell(deadline_ms=20_000)
    gateway = start(to=cell)
    gateway.ask_until(INFER, is_full, as_json(images[:1]))
    before = frames_ended(gateway)
    for name in ("jetson1", "jetson2"):
        os.kill(cell.pid(name), signal.SIGSTOP)
    with ExitStack() as stack:
        for count in (57, *[1] * 255):
            link = stack.enter_context(socket.create_connection(gateway.address, DEADLINE_S))
            link.sendall(post(as_json(images[:count])))
        assert gateway.ask("/readyz").status == 200
        refused = gateway.ask(INFER, as_json(images[:1]))
        assert (refused.status, "256 requests wait already" in refused.json()["error"]) == (503, True)
    assert gateway.ask("/livez").status == 200  # so that it has seen them leave
    for name in ("jetson1", "jetson2"):
        os.kill(cell.pid(name), signal.SIGCONT)
    assert is_full(gateway.ask(INFER, as_json(images[:1])))
    assert frames_ended(gateway) - before < 64


def test_a_stop_in_the_middle_of_a_body_is_one_line(start: Start, images: Images) -> None:
    gateway = start()
    with socket.create_connection(gateway.address, DEADLINE_S) as link:
        link.sendall(post(as_json(images[:1]))[:-1])
        assert gateway.ask("/livez").status == 200  # so that it has seen the other one come
        gateway.process.terminate()
        assert link.recv(100).startswith(b"HTTP/1.1 503 ")
    assert gateway.process.wait(DEADLINE_S) == 0
    assert (
        gateway.said
        == "gateway: stopped; requests refused, as they had not come whole or were not answered in time: 1\n"
    )
    gateway.forget_log()


def test_a_key_that_the_node_does_not_know_is_told(cell: LocalCell, start: Start, tmp_path: Path) -> None:
    new_keys(tmp_path, "stranger")
    gateway = start("--timeout-s", "1", key=tmp_path / "stranger.key_secret")
    reply = gateway.ask("/readyz")
    assert reply.status == 503
    assert "no answer within 1 s" in reply.json()["error"]
    assert gateway.ask("/livez").status == 200


def test_it_ends_cleanly_by_ctrl_c_and_with_its_starter(start: Start) -> None:
    first, second = start(), start("--stop-with-stdin")
    os.kill(first.process.pid, signal.SIGINT)
    assert second.process.stdin is not None
    second.process.stdin.close()
    assert [each.process.wait(DEADLINE_S) for each in (first, second)] == [0, 0]


def run(*options: str) -> tuple[int, str]:
    command = [sys.executable, "-c", "from devit_pipeline.cli import main; main()", "gateway", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("address", "says"), [("taken", "choose another port"), ("0.0.0.0:0", "--token-file"), ("everywhere", "--http")]
)
def test_an_address_that_does_not_do_is_one_line(cell: LocalCell, gateway: Gateway, address: str, says: str) -> None:
    fleet = ["--fleet", str(cell.fleet_path), "--key", str(cell.client_key_path)]
    code, said = run(*fleet, "--http", gateway.host if address == "taken" else address)
    assert (code, said.count("\n")) == (1, 1)
    assert says in said


def test_a_fleet_with_keys_wants_the_gateways_own(cell: LocalCell) -> None:
    code, said = run("--fleet", str(cell.fleet_path), "--http", "127.0.0.1:0")
    assert (code, said.count("\n")) == (1, 1)
    assert "--key" in said
