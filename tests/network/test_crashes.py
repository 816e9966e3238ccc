"""Aborts of libzmq that were found by trial: whoever talks to these sockets in this way must not end the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TAKEN_NAME = """
import zmq
from devit_contract.wire.sockets import DEVICES, bind_router, open_context, receive_routed
from tests.network.zmtp_peer import ZmtpPeer

with open_context() as context:
    router, endpoint, _ = bind_router(context, "tcp://127.0.0.1:0", DEVICES, None)
    router.setsockopt(zmq.RCVTIMEO, 10_000)
    older = ZmtpPeer(endpoint, b"jetson1")
    older.send(b"one")
    assert router.recv_multipart() == [b"jetson1", b"one"]
    newer = ZmtpPeer(endpoint, b"jetson1")
    for _ in range(1000):  # more than the queue of a connection holds
        newer.send(b"nobody hears this")
    for _ in range(3):
        older.send(b"still here")
        assert router.recv_multipart() == [b"jetson1", b"still here"]
        assert not router.poll(700)  # a heartbeat
    newer.close()
    assert not router.poll(1500)
    older.send(b"two")
    assert router.recv_multipart() == [b"jetson1", b"two"]
print("alive")
"""

FULL_QUEUE = """
import zmq
from devit_contract.wire.sockets import DEVICES, bind_router, connect_dealer, open_context

MESSAGES = 1000
with open_context() as context:
    router, endpoint, _ = bind_router(context, "tcp://127.0.0.1:0", DEVICES, None)
    router.setsockopt(zmq.SNDHWM, 0)
    router.setsockopt(zmq.RCVTIMEO, 10_000)
    dealer, monitor = connect_dealer(
        context, endpoint, name=b"jetson1", keys=None, node_key=None, max_bytes=1 << 20,
        events=zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED,
    )
    assert monitor.socket.poll(10_000)
    monitor.read()
    dealer.send(b"I am here")
    router.recv_multipart()
    for _ in range(MESSAGES):
        router.send_multipart([b"jetson1", bytes(20_000)])
    monitor.socket.poll(4000)  # longer than its heartbeats wait
    dealer.setsockopt(zmq.RCVTIMEO, 10_000)
    for _ in range(MESSAGES):
        assert len(dealer.recv()) == 20_000
print("alive")
"""


@pytest.mark.parametrize(
    "script", [TAKEN_NAME, FULL_QUEUE], ids=["a name that is taken", "a queue that nobody empties"]
)
def test_the_process_lives_through(script: str) -> None:
    """Libzmq asserts in its heartbeats where the input of a connection has stopped."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
