"""A node that a test speaks by hand, and the agent's process that connects to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy.typing as npt
import zmq

from devit_contract.wire.codec import Dtype, Kind, Message, array_payload, pack, unpack
from devit_contract.wire.messages import Control, ControlReply, Welcome, body, read_body
from devit_contract.wire.sockets import DEVICES, bind_router, open_context

TINY = Path(__file__).parents[1] / "data" / "tiny-bundle"
RUN = "from devit_edge_agent.cli import main; main()"
RUN_ID = 77


class HandMadeNode:
    """The node's side of the wire, message by message, without keys on loopback."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        self.store = store
        self._opened = open_context()
        self.socket, self.endpoint, _ = bind_router(self._opened.__enter__(), "tcp://127.0.0.1:0", DEVICES, None)
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        self._route = b""
        self.child: subprocess.Popen[str] | None = None

    def start(self, *options: str, config: str = "", bundle: Path = TINY, before: str = "") -> subprocess.Popen[str]:
        """Start the agent as ``jetson1`` with submodel 0; ``before`` is Python that its process runs first."""
        path = self.configure(config, bundle)
        self.child = subprocess.Popen(
            [sys.executable, "-c", before + RUN, "--config", str(path), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.child

    def configure(self, config: str = "", bundle: Path = TINY, name: str = "jetson1") -> Path:
        """Write ``agent.toml``."""
        path = self.folder / "agent.toml"
        path.write_text(
            f'schema = 1\nname = "{name}"\nsubmodel = 0\nnode = "{self.endpoint}"\n'
            f'bundle = "{bundle}"\nstore = "{self.store}"\n{config or "tegrastats = []"}\n'
        )
        return path

    def receive(self, *kinds: Kind) -> Message:
        """Take the next message of some kinds."""
        while True:
            self._route, data = self.socket.recv_multipart()
            message = unpack(data)
            if message.kind in kinds:
                return message

    def send(self, message: Message) -> None:
        self.socket.send_multipart([self._route, pack(message)])

    def welcome(self) -> Message:
        """Accept the agent, and give its HELLO."""
        hello = self.receive(Kind.HELLO)
        self.accept(hello)
        return hello

    def accept(self, hello: Message, feature_dtype: str = "float32") -> None:
        welcome, revision = body(Welcome(2, feature_dtype)), hello.engine_revision
        self.send(Message(Kind.WELCOME, Dtype.BODY, payload=welcome, engine_revision=revision, run_id=RUN_ID))

    def frame(self, image: npt.NDArray[Any] | bytes, number: int = 1, deadline_us: int = 0) -> Message:
        dtype, dims, payload = (Dtype.ENCODED, (), image) if isinstance(image, bytes) else array_payload(image)
        return Message(
            Kind.FRAME, dtype, dims, payload, run_id=RUN_ID, frame_id=number, dispatch_ns=5, deadline_us=deadline_us
        )

    def ask(self, control: Control) -> ControlReply:
        self.send(Message(Kind.CONTROL, Dtype.BODY, payload=body(control), run_id=RUN_ID, frame_id=9))
        return read_body(self.receive(Kind.CONTROL), ControlReply)

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
        self._opened.__exit__(None, None, None)
