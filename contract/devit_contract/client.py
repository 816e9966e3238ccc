"""The client: asks the fusion node, one image after the other or several in flight, and drives agents' sensors."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from devit_contract.errors import InputError, LinkError, WireError
from devit_contract.fleet import Fleet
from devit_contract.head import Float32Array
from devit_contract.keys import KeyPair
from devit_contract.messages import (
    AnswerBody,
    Control,
    ControlReply,
    Description,
    DeviceTiming,
    Mark,
    NodeStatus,
    Refused,
    Telemetry,
    body,
    read_body,
)
from devit_contract.sockets import connect_dealer, open_context
from devit_contract.wire import (
    MAX_IMAGE_MESSAGE_BYTES,
    Dtype,
    Kind,
    Message,
    State,
    array_payload,
    pack,
    unpack,
)

Picture = npt.NDArray[np.uint8] | bytes
"""An image as the graph takes it, uint8 ``(H, W, C)``, or the bytes of a picture file for the agents to decode."""

_REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL  # one side has keys, the other has not
)


@dataclass(frozen=True)
class Answer:
    """One classified image."""

    state: State
    mask: int
    """Bit i is set where device i's feature is in the answer."""
    logits: Float32Array | None
    """Shape ``(K,)``; ``None`` where the frame failed."""
    latency_s: float
    """From the request to its answer, on the client's clock."""
    devices: tuple[DeviceTiming, ...]
    missing: dict[int, str]
    wait_us: int
    collect_us: int
    fuse_us: int

    def probabilities(self) -> Float32Array:
        """Softmax of the logits, shape ``(K,)``.

        Raises:
            LinkError: The frame failed, so there are none.
        """
        if self.logits is None:
            reasons = ", ".join(f"device {device}: {why}" for device, why in sorted(self.missing.items()))
            raise LinkError(f"expected an answer, found a failed frame ({reasons}): see devit status")
        shifted = np.exp(self.logits - self.logits.max())
        return np.asarray(shifted / shifted.sum(), np.float32)


class Client:
    """A connection to one fusion node; a context manager, for one thread."""

    def __init__(
        self, endpoint: str, *, keys: KeyPair | None = None, node_key: bytes | None = None, timeout_s: float = 10.0
    ) -> None:
        """Connect in the background; the first question finds out whether anybody answers.

        Args:
            endpoint: The node's ``client_endpoint``.
            keys: Own keys, if the node wants any.
            node_key: The node's public key, with ``keys``.
            timeout_s: How long any single answer may take.
        """
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._opened = open_context()
        context = self._opened.__enter__()
        self._socket, self._monitor = connect_dealer(
            context,
            endpoint,
            name=None,
            keys=keys,
            node_key=node_key,
            max_bytes=MAX_IMAGE_MESSAGE_BYTES,
            events=_REFUSALS,
        )
        self._run_id = secrets.randbits(64)
        self._next_id = 1
        self._sent_s: dict[int, float] = {}
        self._answers: dict[int, Answer] = {}
        self._replies: dict[int, ControlReply] = {}
        self._telemetry: list[Telemetry] = []

    @classmethod
    def of_fleet(cls, fleet: Fleet, keys: KeyPair | None, *, timeout_s: float = 10.0) -> Client:
        """Connect to a fleet's first node.

        Raises:
            InputError: The fleet uses keys and none was given.
        """
        node = fleet.node[0]
        if fleet.has_keys and keys is None:
            raise InputError(f"{node.client_endpoint}: expected a client key, found none: give one with --key")
        node_key = node.public_key.encode() if fleet.has_keys else None
        return cls(node.client_endpoint, keys=keys, node_key=node_key, timeout_s=timeout_s)

    def __enter__(self) -> Client:
        """Use the connection in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; answers that are under way are lost. Calling it twice is allowed."""
        if self._socket.closed:
            return
        self._socket.disable_monitor()
        self._opened.__exit__(None, None, None)

    def classify(self, picture: Picture, *, mask: int = 0) -> Answer:
        """Ask for one image and wait for its answer.

        Args:
            picture: The image.
            mask: Devices to ask, bit i for device i; 0 asks all.

        Raises:
            LinkError: Nobody answers, or the node refuses this client.
            InputError: The node refuses the image.
        """
        return next(self.stream([picture], in_flight=1, mask=mask))

    def stream(self, pictures: Iterable[Picture], *, in_flight: int = 4, mask: int = 0) -> Iterator[Answer]:
        """Ask for many images, several in flight, and yield their answers in the order of the images.

        The iterable is read as answers come, so it may be endless or end by a clock.

        Raises:
            LinkError: Nobody answers, or the node refuses this client.
            InputError: The node refuses an image.
        """
        waiting: deque[int] = deque()
        for picture in pictures:
            waiting.append(self._request(picture, mask))
            while len(waiting) >= in_flight:
                yield self._wait_answer(waiting.popleft())
        while waiting:
            yield self._wait_answer(waiting.popleft())

    def status(self) -> NodeStatus:
        """Ask the node for its state and its devices'."""
        reply = self._ask(Control("status"))
        if reply.status is None:
            raise LinkError(f"{self.endpoint}: expected a status, found another answer: is the node of this version?")
        return reply.status

    def describe(self, device: str) -> Description:
        """Ask an agent what it runs on."""
        reply = self._ask(Control("describe", device))
        if reply.description is None:
            raise LinkError(f"{device}: expected a description, found another answer: is the agent of this version?")
        return reply.description

    def mark(self, device: str) -> Mark:
        """Ask an agent for its clock and its counters, at this moment."""
        reply = self._ask(Control("mark", device))
        if reply.mark is None:
            raise LinkError(f"{device}: expected a mark, found another answer: is the agent of this version?")
        return reply.mark

    def start_sampling(self, device: str, interval_ms: int) -> None:
        """Have an agent sample power; lines come by :meth:`take_telemetry`."""
        self._ask(Control("sample-start", device, interval_ms))

    def stop_sampling(self, device: str) -> None:
        """Have an agent stop sampling."""
        self._ask(Control("sample-stop", device))

    def take_telemetry(self) -> list[Telemetry]:
        """Hand out the power samples that have come so far, oldest first, and forget them."""
        self._pump(0.0)
        taken, self._telemetry = self._telemetry, []
        return taken

    def wait(self, duration_s: float) -> None:
        """Receive what comes for a while, without asking anything."""
        end_s = time.monotonic() + duration_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._pump(left_s)

    def _request(self, picture: Picture, mask: int) -> int:
        dims: tuple[int, ...] = ()
        if isinstance(picture, bytes):
            dtype, payload = Dtype.ENCODED, memoryview(picture)
        else:
            dtype, dims, payload = array_payload(picture)
        if len(payload) > MAX_IMAGE_MESSAGE_BYTES - 1024:
            raise InputError(f"image: expected at most {MAX_IMAGE_MESSAGE_BYTES - 1024} bytes, found {len(payload)}")
        number = self._take_number()
        # Before sending: a client that is preempted behind it would count too little.
        self._sent_s[number] = time.perf_counter()
        self._send(Message(Kind.REQUEST, dtype, dims, payload, mask=mask, run_id=self._run_id, frame_id=number))
        return number

    def _ask(self, control: Control) -> ControlReply:
        number = self._take_number()
        self._send(Message(Kind.CONTROL, Dtype.BODY, payload=body(control), run_id=self._run_id, frame_id=number))
        end_s = time.monotonic() + self.timeout_s
        while number not in self._replies:
            self._pump_until(end_s)
        reply = self._replies.pop(number)
        if reply.error:
            raise LinkError(reply.error)
        return reply

    def _wait_answer(self, number: int) -> Answer:
        end_s = time.monotonic() + self.timeout_s
        while number not in self._answers:
            self._pump_until(end_s)
        return self._answers.pop(number)

    def _take_number(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _send(self, message: Message) -> None:
        data = pack(message)
        end_s = time.monotonic() + self.timeout_s
        while True:
            try:
                self._socket.send(data, zmq.NOBLOCK)
            except zmq.Again:
                # No link yet, or its buffer is full: go on receiving, which empties it.
                self._pump_until(end_s, zmq.POLLIN | zmq.POLLOUT)
            else:
                return

    def _pump_until(self, end_s: float, events: int = zmq.POLLIN) -> None:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise LinkError(
                f"{self.endpoint}: expected an answer within {self.timeout_s:g} s, found none: "
                "check that fusion-node runs there"
            )
        self._pump(left_s, events)

    def _pump(self, timeout_s: float, events: int = zmq.POLLIN) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, events)
        poller.register(self._monitor.socket, zmq.POLLIN)
        poller.poll(max(0, round(timeout_s * 1000)))
        if self._monitor.read():
            raise LinkError(
                f"{self.endpoint}: expected the node to accept this client, found that the handshake failed: check "
                "the client's entry in the node's fleet.toml, the node's public_key, and that the node is not hung"
            )
        while True:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._take(unpack(data))
            except WireError as err:
                raise LinkError(f"{self.endpoint}: expected a message of this protocol: {err}") from err

    def _take(self, message: Message) -> None:
        if message.kind is Kind.TELEMETRY:
            self._telemetry.append(read_body(message, Telemetry))
        elif message.run_id != self._run_id:
            return  # an answer to an earlier client under the same route
        elif message.kind is Kind.CONTROL:
            self._replies[message.frame_id] = read_body(message, ControlReply)
        elif message.kind is Kind.ANSWER and message.frame_id in self._sent_s:
            latency_s = time.perf_counter() - self._sent_s.pop(message.frame_id)
            self._answers[message.frame_id] = _answer(message, read_body(message, AnswerBody), latency_s)
        elif message.kind is Kind.REFUSED:
            raise InputError(read_body(message, Refused).text)


def _answer(message: Message, content: AnswerBody, latency_s: float) -> Answer:
    logits: npt.NDArray[Any] | None = np.frombuffer(content.logits, "<f4") if content.logits else None
    return Answer(
        state=message.state,
        mask=message.mask,
        logits=logits,
        latency_s=latency_s,
        devices=content.devices,
        missing=content.missing,
        wait_us=content.wait_us,
        collect_us=content.collect_us,
        fuse_us=content.fuse_us,
    )
