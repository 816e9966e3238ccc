"""A client with a right key that asks for the status and never reads a reply, as a process.

``python -m tests.network.deaf_client FOLDER SECONDS``, with the folder of a running cell.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import zmq

from devit_contract.artefacts.fleet import load_fleet
from devit_contract.artefacts.keys import load_keys
from devit_contract.wire.codec import MAX_IMAGE_MESSAGE_BYTES, Dtype, Kind, Message, pack
from devit_contract.wire.messages import Control, body
from devit_contract.wire.sockets import connect_dealer, open_context
from devit_contract.wire.words import Question


def main() -> None:
    """Run as a process."""
    folder = Path(sys.argv[1])
    node = load_fleet(folder / "fleet.toml").node
    question = pack(Message(Kind.CONTROL, Dtype.BODY, payload=body(Control(Question.STATUS)), run_id=1, frame_id=1))
    with open_context() as context:
        socket, monitor = connect_dealer(
            context,
            node.client_endpoint,
            keys=load_keys(folder / "keys" / "client.key_secret"),
            node_key=node.public_key.encode(),
            max_bytes=MAX_IMAGE_MESSAGE_BYTES,
            events=zmq.EVENT_HANDSHAKE_SUCCEEDED,
        )
        socket.setsockopt(zmq.SNDTIMEO, 100)
        end_s, asked = time.monotonic() + float(sys.argv[2]), 0
        while time.monotonic() < end_s:
            try:
                socket.send(question)
                asked += 1
            except zmq.Again:
                pass  # the link is gone or full, and comes back
        print(asked, len(monitor.read()))


if __name__ == "__main__":
    main()
