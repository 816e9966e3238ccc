"""A message that never ends, from a peer that speaks ZMTP by hand: libzmq's own sockets send whole messages alone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from devit_contract.client import Client
from devit_contract.sockets import open_context
from devit_contract.wire import State
from devit_fusion.flood import CHECK_NS, FloodGuard

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
IMAGE = np.zeros((6, 8, 1), np.uint8)
DEADLINE_S = 20.0
MIB = 1 << 20
# https://rfc.zeromq.org/spec/23: signature, version 3.0, mechanism NULL, as-server 0, filler.
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
PART = b"\x01\xff" + bytes(255)
"""A frame of 255 bytes behind which another one comes."""


def zmtp_peer(endpoint: str, name: bytes) -> socket.socket:
    """Connect and shake hands as a DEALER."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    peer = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
    peer.sendall(GREETING)
    body = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    body += b"\x08Identity" + len(name).to_bytes(4, "big") + name
    peer.sendall(bytes([0x04, len(body)]) + body)
    received = b""
    while b"READY" not in received:
        received += peer.recv(4096)
    return peer


def send_without_end(peer: socket.socket, limit_bytes: int) -> int:
    """Send parts of one message until the connection is shut; give how many bytes the kernel took."""
    burst = PART * 64
    sent = 0
    try:
        while sent < limit_bytes:
            peer.sendall(burst)
            sent += len(burst)
    except OSError:
        pass
    return sent


@contextmanager
def running_node(tmp_path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A node of two devices without keys, and one agent."""
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        'schema = 1\n[[node]]\nendpoint = "tcp://127.0.0.1:0"\nclient_endpoint = "tcp://127.0.0.1:0"\n'
        '[[device]]\nname = "jetson1"\nsubmodel = 0\n[[device]]\nname = "jetson2"\nsubmodel = 1\n'
    )
    node = [sys.executable, "-c", "from devit_fusion.cli import main; main()", "--stop-with-stdin"]
    agent = [sys.executable, "-c", "from devit_edge_agent.cli import main; main()", "--stop-with-stdin"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([*node, "--bundle", TINY, "--fleet", fleet], **pipes) as first:  # type: ignore[call-overload]
        addresses = json.loads(first.stdout.readline())
        config = tmp_path / "agent.toml"
        config.write_text(
            f'schema = 1\nname = "jetson1"\nsubmodel = 0\nnode = "{addresses["endpoint"]}"\nbundle = "{TINY}"\n'
            "tegrastats = []\n"
        )
        with subprocess.Popen([*agent, "--config", config, "--engine", "null"], **pipes) as second:  # type: ignore[call-overload]
            assert second.stdout.readline()
            yield first.pid, addresses
            second.terminate()
        first.terminate()


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.parametrize("port", ["endpoint", "client_endpoint"])
def test_a_message_that_does_not_end_shuts_its_own_link_soon_and_others_are_served_meanwhile(
    tmp_path: Path, port: str
) -> None:
    with running_node(tmp_path) as (pid, addresses), Client(addresses["client_endpoint"]) as client:
        assert client.classify(IMAGE, mask=0b01).state is State.PARTIAL
        before = resident_bytes(pid)
        sent: list[int] = []
        peer = zmtp_peer(addresses[port], b"jetson2")
        flood = threading.Thread(target=lambda: sent.append(send_without_end(peer, 256 * MIB)), daemon=True)
        flood.start()
        served = 0
        while flood.is_alive():
            served += client.classify(IMAGE, mask=0b01).mask == 0b01
        peer.close()
        print(f"{port}: shut after {sent[0] / MIB:.1f} MiB, {served} answers meanwhile, ", end="")
        print(f"memory {(resident_bytes(pid) - before) / MIB:+.1f} MiB")
        # What the kernel took and the node never read is in it too.
        assert sent[0] < 12 * MIB
        assert resident_bytes(pid) - before < 32 * MIB
        assert client.classify(IMAGE, mask=0b01).mask == 0b01
        status = client.status()
    assert status.floods == 1
    assert any("its message did not end" in event.text for event in status.events)


def test_a_link_that_delivers_its_messages_may_send_for_ever() -> None:
    with open_context() as context:
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        monitor = router.get_monitor_socket(zmq.EVENT_ACCEPTED)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.connect(f"tcp://127.0.0.1:{port}")
        guard = FloodGuard(limit_bytes=100_000)
        now_ns = time.monotonic_ns()
        monitor.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        guard.accepted(int.from_bytes(monitor.recv_multipart()[0][2:6], sys.byteorder), now_ns)
        router.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        for number in range(200):
            dealer.send(bytes(5000))
            guard.delivered(router.recv_multipart(copy=False)[1])
            guard.check(now_ns + number * CHECK_NS)
        assert guard.cut == 0
        for _ in range(30):
            dealer.send(bytes(5000))  # 150 kB, which nobody reads
        end_s = time.monotonic() + DEADLINE_S
        number = 200
        while guard.cut == 0:
            assert time.monotonic() < end_s
            number += 1
            guard.check(now_ns + number * CHECK_NS)
        router.disable_monitor()
        assert guard.next_ns() is None
