"""Connections without a right key, by the thousand: nothing of them is let in, and the cell does not notice."""

from __future__ import annotations

import secrets
import selectors
import socket as tcp
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from tests.network.conftest import TINY, Golden
from tests.network.hostile import MIB, bounded_memory, status_when
from tests.network.open_loop import OpenLoop
from tests.network.zmtp_peer import ZmtpPeer, greeting

from devit_contract.artefacts.fleet import Node
from devit_pipeline.local_cell import LocalCell, LocalDevice

pytestmark = [pytest.mark.nightly(part="endurance"), pytest.mark.timeout(300)]

COUNT = 1000
AT_ONCE = 250
RATE_HZ = 50.0
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory, devices: list[LocalDevice]) -> Iterator[LocalCell]:
    null = [LocalDevice(device.name, device.submodel, engine="null") for device in devices]
    with LocalCell(TINY, tmp_path_factory.mktemp("cell"), null, deadline_ms=1000) as running:
        yield running


def reach(endpoint: str) -> tcp.socket:
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    return tcp.create_connection((host, int(port)), PATIENCE_S)


def shake_hands(endpoint: str, keys: tuple[bytes, bytes] | None, node_key: bytes) -> None:
    """Try to get in, and to say something, as jetson1.

    Raises:
        AssertionError: That worked.
    """
    try:
        with ZmtpPeer(endpoint, b"jetson1", keys=keys, node_key=node_key) as peer:
            peer.send(b"let me in")
            assert peer.is_shut(PATIENCE_S), "let in"
    except OSError:  # the node has shut the connection, in the midst of it
        return


def with_wrong_keys(endpoint: str, node: Node) -> None:
    shake_hands(endpoint, zmq.curve_keypair(), node.public_key.encode())


def with_another_nodes_key(endpoint: str, _: Node) -> None:
    shake_hands(endpoint, zmq.curve_keypair(), zmq.curve_keypair()[0])


def without_keys(endpoint: str, _: Node) -> None:
    shake_hands(endpoint, None, b"")


def with_garbage(endpoint: str, _: Node) -> None:
    starts = (b"", b"\xff", b"\x01\x00", b"GET / HTTP/1.1\r\n", greeting(b"CURVE") + b"\x06\x00\x00\x7f")
    with reach(endpoint) as connection, suppress(OSError):
        connection.sendall(secrets.choice(starts) + secrets.token_bytes(400))
        while connection.recv(1000):
            pass


def half_open(endpoint: str, node: Node) -> None:
    """Say the first half of a handshake, and wait."""
    whole = greeting(b"CURVE")
    with reach(endpoint) as connection, selectors.DefaultSelector() as selector:
        connection.sendall(whole[: secrets.choice((0, 1, 10, 12, 64))])
        selector.register(connection, selectors.EVENT_READ)
        start_s = time.monotonic()
        with suppress(OSError):
            while connection.recv(1000):
                pass
        assert time.monotonic() - start_s < PATIENCE_S


KINDS: list[Callable[[str, Node], None]] = [
    with_wrong_keys,
    with_another_nodes_key,
    without_keys,
    with_garbage,
    half_open,
]


@pytest.mark.parametrize("come", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_a_thousand_connections_without_a_right_key_get_nowhere_and_are_counted(
    cell: LocalCell, golden: Golden, come: Callable[[str, Node], None]
) -> None:
    node = cell.fleet.node
    with cell.client() as client:
        before = client.status()
        with (
            bounded_memory(cell.pid("node"), 32 * MIB, come.__name__),
            OpenLoop(cell, golden.pictures, rate_hz=RATE_HZ, frames=750) as traffic,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            assert traffic.wait_for(50)
            start_s = time.monotonic()
            endpoints = (node.endpoint, node.client_endpoint)
            tries = [pool.submit(come, endpoints[number % 2], node) for number in range(COUNT)]
            for one in tries:
                one.result(PATIENCE_S)
            took_s = time.monotonic() - start_s
            record = traffic.finish()
        expected = before.refused_handshakes + COUNT
        after = status_when(client, lambda status: status.refused_handshakes >= expected, deadline_s=10.0)
    print(f"{come.__name__}: {COUNT} in {took_s:.1f} s; {record.summary()}")
    assert record.states == {"FULL": 750}
    assert [(device.links, device.rejected) for device in after.devices] == [(1, {}), (1, {})]
    assert after.unknown_peers == before.unknown_peers
    assert after.refused_handshakes == expected
    assert len(record.later_than(0.100)) <= 75, record.summary()


@pytest.mark.parametrize("key", [b"", b"too short\n", b"#" * 40 + b"\n", b"\x00\xff" * 20], ids=repr)
@pytest.mark.parametrize("who", ["node", "jetson1"])
def test_a_malformed_key_file_ends_the_process_before_it_opens_or_makes_a_connection(
    cell: LocalCell, tmp_path: Path, who: str, key: bytes
) -> None:
    path = tmp_path / f"{who}.key_secret"
    path.write_bytes(key)
    path.chmod(0o600)
    if who == "node":
        fleet = tmp_path / "fleet.toml"
        node = cell.fleet.node
        text = cell.fleet_path.read_text()
        for endpoint in (node.endpoint, node.client_endpoint):
            text = text.replace(endpoint, "tcp://127.0.0.1:0")
        fleet.write_text(text)
        entry = "from devit_fusion.cli import main; main()"
        arguments = ["--bundle", str(TINY), "--fleet", str(fleet), "--key", str(path)]
    else:
        config = tmp_path / "agent.toml"
        config.write_text((cell.folder / "jetson1.toml").read_text().replace("keys/jetson1.key_secret", str(path)))
        entry = "from devit_edge_agent.cli import main; main()"
        arguments = ["--config", str(config), "--engine", "null"]
    done = subprocess.run(
        [sys.executable, "-c", entry, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 78
    assert done.stdout == ""
    assert "expected a key of 40 Z85 characters" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
