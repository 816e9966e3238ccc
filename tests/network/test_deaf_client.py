"""A client with a right key asks without end and never reads: its link breaks off in full flow, again and again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from tests.network.conftest import TINY
from tests.network.hostile import MIB, Liar, bounded_memory, device_status, key_of, status_when
from tests.support.cell import tiny_devices

from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.codec import MAX_IMAGE_MESSAGE_BYTES, Dtype, Kind, Message, pack
from devit_contract.wire.messages import Control, PowerLine, Telemetry, body
from devit_contract.wire.sockets import connect_dealer, open_context
from devit_contract.wire.words import Question
from devit_pipeline.local_cell import LocalCell

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

DURATION_S = 20
ROOT = Path(__file__).parents[2]


def test_a_client_that_asks_and_never_listens_does_not_end_the_node(tmp_path: Path) -> None:
    """Libzmq 4.3.5 aborts where a heartbeat falls due on a link that broke off while its input was stopped."""
    devices = tiny_devices("null")
    with LocalCell(TINY, tmp_path / "cell", devices) as cell:
        node = cell.pid("node")
        command = [sys.executable, "-m", "tests.network.deaf_client", str(cell.folder), str(DURATION_S)]
        with bounded_memory(node, 32 * MIB, "a deaf client"):
            asked = subprocess.run(
                ["nice", "-n", "19", *command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
            )
            print(f"questions, links: {asked.stdout}")
            is_alive = Path(f"/proc/{node}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
            assert is_alive, cell.log_path("node").read_text()
        with cell.client() as client:
            assert [device.state for device in client.status().devices] == ["ready", "ready"]


def test_samples_that_their_client_does_not_take_are_told_of(tmp_path: Path, bundle: Bundle) -> None:
    """They are lost to it; a figure made of the others would lie in silence."""
    devices = tiny_devices("null")
    with LocalCell(TINY, tmp_path / "cell", devices) as cell, open_context() as context, cell.client() as client:
        cell.kill("jetson2")
        node = cell.fleet.node
        deaf, _ = connect_dealer(
            context,
            node.client_endpoint,
            keys=key_of(cell, "client"),
            node_key=node.public_key.encode(),
            max_bytes=MAX_IMAGE_MESSAGE_BYTES,
            events=zmq.EVENT_HANDSHAKE_SUCCEEDED,
        )
        deaf.setsockopt(zmq.RCVHWM, 1)  # of connections made from now on
        deaf.setsockopt(zmq.SNDTIMEO, 20_000)
        deaf.disconnect(node.client_endpoint)
        deaf.connect(node.client_endpoint)
        with Liar(cell, "jetson2", bundle.manifest) as device:
            device.greet()
            wish = Control(Question.SAMPLE_START, "jetson2", 100)
            deaf.send(pack(Message(Kind.CONTROL, Dtype.BODY, payload=body(wish), run_id=1, frame_id=1)))
            device.receive(Kind.CONTROL)  # a ping, or that
            samples = Telemetry("jetson2", tuple(PowerLine(number, "x" * 1000) for number in range(20)))
            message = Message(Kind.TELEMETRY, Dtype.BODY, payload=body(samples), boot_id=device.boot_id)
            for _ in range(3000):
                device.socket.send(pack(message))
            text = "power samples were lost: the client that asked for them does not take them"
            status = status_when(client, lambda status: text in [event.text for event in status.events], 20.0)
            assert ("jetson2", text) in [(event.device, event.text) for event in status.events]
            assert device_status(status, "jetson2").state == "ready"
