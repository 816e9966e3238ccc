"""A node in a thread of its own, and devices that a test speaks by hand, message by message, over real sockets."""

from __future__ import annotations

import secrets
import threading
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import zmq

from devit_contract.artefacts.calibration import Calibration
from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.head import FusionHead
from devit_contract.artefacts.keys import KeyPair
from devit_contract.artefacts.manifest import Bundle
from devit_contract.wire.client import Answer, Client, Picture
from devit_contract.wire.codec import Dtype, Kind, Message, Reason, array_payload, pack, unpack
from devit_contract.wire.messages import Control, Hello, body, read_body
from devit_contract.wire.sockets import Context, connect_dealer, open_context
from devit_contract.wire.words import Question
from devit_fusion.node import FusionNode
from devit_fusion.roster.watched import WatchedFleet

DEADLINE_S = 20.0
IMAGE = np.zeros((6, 8, 1), np.uint8)
REVISION = 7


class Device:
    """One device; whatever it says, it says because a test told it to."""

    def __init__(self, context: Context, bundle: Bundle, endpoint: str, submodel: int, **link: bytes | KeyPair) -> None:
        keys, node_key, name = link.get("keys"), link.get("node_key"), link.get("name")
        self.submodel = submodel
        self.boot_id = secrets.randbits(64)
        self.run_id = 0
        digest = bundle.manifest.file("submodel", device=submodel, variant="fp32").sha256
        self.dim = bundle.manifest.submodels[submodel].output_dim
        agent = link.get("agent", f"jetson{submodel}".encode())
        assert isinstance(agent, bytes)
        self.hello = Hello(agent.decode(), submodel, self.dim, digest, "by hand", ("float32",), "0")
        self.socket, self.monitor = connect_dealer(
            context,
            endpoint,
            name=name if isinstance(name, bytes) else None,
            keys=keys if isinstance(keys, KeyPair) else None,
            node_key=node_key if isinstance(node_key, bytes) else None,
            max_bytes=1 << 20,
            events=zmq.EVENT_DISCONNECTED,
        )
        self.socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        self.socket.setsockopt(zmq.SNDTIMEO, int(DEADLINE_S * 1000))

    def greet(self) -> Message:
        self.say(Kind.HELLO, body(self.hello), engine_revision=REVISION)
        answer = self.hear(Kind.WELCOME, Kind.REFUSED)
        self.run_id = answer.run_id
        return answer

    def say(self, kind: Kind, payload: bytes, *, frame_id: int = 0, engine_revision: int = 0) -> None:
        message = Message(
            kind,
            Dtype.BODY,
            payload=payload,
            engine_revision=engine_revision,
            run_id=self.run_id,
            frame_id=frame_id,
            boot_id=self.boot_id,
        )
        self.socket.send(pack(message))

    def hear(self, *kinds: Kind) -> Message:
        while True:
            message = unpack(self.socket.recv())
            is_ping = message.kind is Kind.CONTROL and read_body(message, Control).question is Question.PING
            if message.kind in kinds and not is_ping:
                return message

    def feature(self, frame: Message, feature: npt.NDArray[np.float32] | None = None) -> bytes:
        values = np.ones(self.dim, np.float32) if feature is None else feature
        return pack(
            Message(
                Kind.FEATURE,
                *array_payload(values),
                device=self.submodel,
                engine_revision=REVISION,
                run_id=self.run_id,
                frame_id=frame.frame_id,
                boot_id=self.boot_id,
                dispatch_ns=frame.dispatch_ns,
            )
        )

    def skip(self, frame: Message, reason: Reason) -> None:
        message = Message(Kind.SKIP, reason=reason, run_id=self.run_id, frame_id=frame.frame_id, boot_id=self.boot_id)
        self.socket.send(pack(message))

    def leave(self) -> None:
        self.socket.send(pack(Message(Kind.LEAVE, run_id=self.run_id, boot_id=self.boot_id)))

    def close(self) -> None:
        """Leave, as a device whose power was cut: its link is gone."""
        self.socket.disable_monitor()
        self.socket.close(0)


class Asked:
    """A client that asks without waiting, so that the test can play the devices meanwhile."""

    def __init__(self, client: Client, *, mask: int = 0, picture: Picture = IMAGE) -> None:
        self._answer: Answer | None = None
        self._thread = threading.Thread(target=self._ask, args=(client, picture, mask), daemon=True)
        self._thread.start()

    def _ask(self, client: Client, picture: Picture, mask: int) -> None:
        self._answer = client.classify(picture, mask=mask)

    def answer(self) -> Answer:
        self._thread.join(DEADLINE_S)
        assert self._answer is not None
        return self._answer


class Scene:
    """A node in a thread of its own, and whoever talks to it."""

    def __init__(
        self,
        stack: ExitStack,
        bundle: Bundle,
        fleet: Fleet,
        keys: KeyPair | None,
        head: FusionHead | None = None,
        calibration: Calibration | None = None,
        watched: WatchedFleet | None = None,
    ) -> None:
        self._stack, self._bundle, self._fleet = stack, bundle, fleet
        self._kept: list[Device] = []
        stack.callback(self._kept.clear)  # behind the context: a socket that is forgotten before it warns
        self._context = stack.enter_context(open_context())
        self.node = stack.enter_context(
            FusionNode(bundle, fleet, keys, head=head, calibration=calibration, watched=watched)
        )
        stop = threading.Event()
        self.reload = threading.Event()
        """To be set in the place of SIGHUP."""
        thread = threading.Thread(target=self.node.serve, args=(stop.is_set, self._should_reload), daemon=True)
        thread.start()
        stack.callback(thread.join, DEADLINE_S)
        stack.callback(stop.set)

    def _should_reload(self) -> bool:
        return self.reload.is_set() and not self.reload.clear()  # which gives None

    def device(self, submodel: int, *, to_clients_port: bool = False, **link: bytes | KeyPair) -> Device:
        endpoint = self.node.client_endpoint if to_clients_port else self.node.endpoint
        self._kept.append(Device(self._context, self._bundle, endpoint, submodel, **link))
        return self._kept[-1]

    def greeted(self, submodel: int, **link: bytes | KeyPair) -> Device:
        device = self.device(submodel, **link)
        assert device.greet().kind is Kind.WELCOME
        return device

    def client(self, keys: KeyPair | None = None) -> Client:
        node_key = self._fleet.node.public_key.encode() or None
        client = Client(self.node.client_endpoint, keys=keys, node_key=node_key, timeout_s=DEADLINE_S)
        return self._stack.enter_context(client)
