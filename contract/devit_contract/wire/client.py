"""The client: asks the fusion node, one image after the other or several in flight, and drives agents' sensors.

What is under way when the link or the node is lost is sent again, under its own number, as soon as the link is back;
whichever answer comes first counts, so that every request ends once: with an answer, or with an error when its time is
over.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import zmq

from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.keys import KeyPair
from devit_contract.errors import DevitError, InputError, LinkError, WireError
from devit_contract.wire.answer import Answer
from devit_contract.wire.codec import MAX_IMAGE_MESSAGE_BYTES, Dtype, Kind, Message, array_payload, pack, unpack
from devit_contract.wire.messages import (
    AnswerBody,
    Control,
    ControlReply,
    Description,
    Mark,
    NodeStatus,
    Refused,
    SamplingCost,
    Telemetry,
    UndividedState,
    body,
    read_body,
)
from devit_contract.wire.sockets import HANDSHAKE_FAILURES, connect_dealer, is_readable, open_context, reconnect

T = TypeVar("T")

__all__ = ["Answer", "Client", "Picture"]

Picture = npt.NDArray[np.uint8] | bytes | None
"""An image as the graph takes it, uint8 ``(H, W, C)``; the bytes of a picture file for the agents to decode; ``None``:
every agent takes the image of its own source."""

_NOW = int(zmq.NOBLOCK)
"""As a plain number: the enum class costs a microsecond at each use."""
_PATIENCE = 3
"""Handshakes that may fail before the first that does not: a node that stops in the midst of one is no refusal."""
_RETRY_S = 2.0
"""Pause before a link that was refused outright is made anew."""


@dataclass
class _Open:
    """What has been asked and not been answered."""

    data: bytes
    sent_s: float
    """On ``time.perf_counter``, for the latency."""
    end_s: float
    """On ``time.monotonic``: when it is given up."""


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
            events=HANDSHAKE_FAILURES | zmq.EVENT_HANDSHAKE_SUCCEEDED,
        )
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._polls_for_room = False
        self._poller.register(self._monitor.descriptor, zmq.POLLIN)
        self._run_id = secrets.randbits(64)
        self._numbers = count(1)
        self.links = 0
        """How often the node was reached: a new link after the first is a new listener to it."""
        self._failed_handshakes = 0
        self._retry_s = math.inf
        self.is_refused = False
        """Whether the node refuses this client, so that nothing will be answered."""
        self._labels: tuple[str, ...] = ()
        self._open: dict[int, _Open] = {}  # by rising number, so also by rising end
        self._unsent: deque[int] = deque()
        self._answers: dict[int, Answer | DevitError] = {}
        self._questions: set[int] = set()
        self._replies: dict[int, ControlReply | DevitError] = {}
        self._telemetry: list[Telemetry] = []

    @classmethod
    def of_fleet(cls, fleet: Fleet, keys: KeyPair | None, *, timeout_s: float = 10.0) -> Client:
        """Connect to a fleet's first node.

        Raises:
            InputError: The fleet uses keys and none was given.
        """
        require_key(fleet, keys)
        node = fleet.node
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
        if not self._labels:
            self.status()
        waiting: deque[int] = deque()
        try:
            for picture in pictures:
                waiting.append(self.submit(picture, mask=mask))
                while len(waiting) >= in_flight:
                    yield self._wait(waiting.popleft(), self._answers)
            while waiting:
                yield self._wait(waiting.popleft(), self._answers)
        finally:  # whoever takes no more must not find the rest among later answers
            for number in waiting:
                self._forget(number)

    def submit(self, picture: Picture, *, mask: int = 0) -> int:
        """Ask for one image without waiting; its answer comes by :meth:`collect`, under the number returned.

        Raises:
            InputError: The image is too large for any node.
            WireError: Its type does not travel.
        """
        dims: tuple[int, ...] = ()
        dtype, payload = Dtype.NONE, memoryview(b"")
        if isinstance(picture, bytes):
            dtype, payload = Dtype.ENCODED, memoryview(picture)
        elif picture is not None:
            dtype, dims, payload = array_payload(picture)
        if len(payload) > MAX_IMAGE_MESSAGE_BYTES - 1024:
            raise InputError(f"image: expected at most {MAX_IMAGE_MESSAGE_BYTES - 1024} bytes, found {len(payload)}")
        number = next(self._numbers)
        return self._ask(Message(Kind.REQUEST, dtype, dims, payload, mask=mask, run_id=self._run_id, frame_id=number))

    def collect(self, timeout_s: float, *, wake: int | None = None) -> list[tuple[int, Answer | DevitError]]:
        """Take what has been answered to :meth:`submit`, waiting for at least one where there is none.

        Every number comes back once: with its answer, or with the error that ended it (refused, or its time is over).

        Args:
            timeout_s: How long to wait at most; the list is empty then.
            wake: A file descriptor that ends the wait when it becomes readable.

        Raises:
            LinkError: The node refuses this client.
        """
        end_s = time.monotonic() + timeout_s
        self._pump(0.0)
        if wake is not None:
            self._poller.register(wake, zmq.POLLIN)
        try:
            is_woken = False
            while not self._answers and not is_woken and (left_s := end_s - time.monotonic()) > 0:
                is_woken = self._pump(left_s, wake)
        finally:
            if wake is not None:
                self._poller.unregister(wake)
        taken, self._answers = self._answers, {}
        return list(taken.items())

    def status(self) -> NodeStatus:
        """Ask the node for its state and its devices'."""
        reply = self._question(Control("status"))
        if reply.status is None:
            raise LinkError(f"{self.endpoint}: expected a status, found another answer: is the node of this version?")
        self._labels = reply.status.labels
        return reply.status

    def describe(self, device: str) -> Description:
        """Ask an agent what it runs on."""
        reply = self._question(Control("describe", device))
        if reply.description is None:
            raise LinkError(f"{device}: expected a description, found another answer: is the agent of this version?")
        return reply.description

    def mark(self, device: str) -> Mark:
        """Ask an agent for its clock and its counters, at this moment."""
        reply = self._question(Control("mark", device))
        if reply.mark is None:
            raise LinkError(f"{device}: expected a mark, found another answer: is the agent of this version?")
        return reply.mark

    def undivided(self, device: str, step: str) -> UndividedState:
        """Have an agent load, run, rest or free the bundle's undivided model, or ask for its state.

        Raises:
            LinkError: It failed; the text says why, and what to run.
        """
        reply = self._question(Control("undivided", device, step=step))
        if reply.undivided is None:
            raise LinkError(f"{device}: expected a state, found another answer: is the agent of this version?")
        if reply.undivided.problem:
            raise LinkError(f"{device}: {reply.undivided.problem}")
        return reply.undivided

    def start_sampling(self, device: str, interval_ms: int) -> None:
        """Have an agent sample power; lines come by :meth:`take_telemetry`."""
        self._question(Control("sample-start", device, interval_ms))

    def stop_sampling(self, device: str) -> SamplingCost | None:
        """Have an agent stop sampling; it tells what that has cost, where it had samples."""
        return self._question(Control("sample-stop", device)).sampling

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

    def _question(self, control: Control) -> ControlReply:
        number = next(self._numbers)
        self._questions.add(number)
        self._ask(Message(Kind.CONTROL, Dtype.BODY, payload=body(control), run_id=self._run_id, frame_id=number))
        reply = self._wait(number, self._replies)
        if reply.error:
            raise LinkError(reply.error)
        return reply

    def _wait(self, number: int, results: dict[int, T | DevitError]) -> T:
        try:
            while number not in results:
                self._pump(self.timeout_s)
            result = results[number]
        finally:
            self._forget(number)
        if isinstance(result, DevitError):
            raise result
        return result

    def _forget(self, number: int) -> None:
        """Await a number no more: neither its end nor a new link finds it again."""
        self._questions.discard(number)
        self._open.pop(number, None)
        self._answers.pop(number, None)
        self._replies.pop(number, None)

    def _ask(self, message: Message) -> int:
        data = pack(message)
        number = message.frame_id
        # Before sending: a client that is preempted behind it would count too little.
        self._open[number] = _Open(data, time.perf_counter(), time.monotonic() + self.timeout_s)
        self._unsent.append(number)
        self._flush()
        return number

    def _flush(self) -> None:
        """Send what waits, as far as the link takes it; without one it takes nothing."""
        while self._unsent:
            request = self._open.get(self._unsent[0])
            if request is not None:
                try:
                    self._socket.send(request.data, _NOW)
                except zmq.Again:
                    break
            self._unsent.popleft()
        if self._polls_for_room != bool(self._unsent):
            self._polls_for_room = bool(self._unsent)
            self._poller.modify(self._socket, zmq.POLLIN | (zmq.POLLOUT if self._unsent else 0))

    def _pump(self, timeout_s: float, wake: int | None = None) -> bool:
        """Receive what comes within a time, give up what is overdue; tell whether ``wake`` is readable."""
        if self._open:
            timeout_s = min(timeout_s, next(iter(self._open.values())).end_s - time.monotonic())
        timeout_s = min(timeout_s, self._retry_s - time.monotonic())
        ready = dict(self._poller.poll(max(0, math.ceil(timeout_s * 1000))))
        if self._monitor.descriptor in ready:
            self._watch_link()
        if time.monotonic() >= self._retry_s:
            self._retry_s = math.inf
            reconnect(self._socket, self.endpoint)
        if self._unsent:
            self._flush()
        while is_readable(self._socket):
            try:
                self._take(unpack(self._socket.recv(_NOW)))
            except WireError as err:
                raise LinkError(f"{self.endpoint}: expected a message of this protocol: {err}") from err
        self._expire()
        return wake in ready

    def _watch_link(self) -> None:
        for event, _ in self._monitor.read():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.links += 1
                self._retry_s, self.is_refused = math.inf, False
                if self.links > 1:
                    # Whatever was on its way when the last link ended, either way, is lost.
                    self._unsent = deque(self._open)
            else:
                self._failed_handshakes += 1
                is_outright = event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL  # libzmq never tries again
                if is_outright:
                    self._retry_s = time.monotonic() + _RETRY_S
                self.is_refused |= not self.links and (is_outright or self._failed_handshakes >= _PATIENCE)
        if self.is_refused:
            raise LinkError(
                f"{self.endpoint}: expected the node to accept this client, found that the handshake failed: check the "
                "client's entry in the node's fleet.toml, the node's public_key, and that the node is not hung"
            )

    def _expire(self) -> None:
        now_s = time.monotonic()
        while self._open:
            number, request = next(iter(self._open.items()))
            if request.end_s > now_s:
                return
            self._end(
                number,
                LinkError(
                    f"{self.endpoint}: expected an answer within {self.timeout_s:g} s, found none: "
                    "check that fusion-node runs there"
                ),
            )

    def _end(self, number: int, result: Answer | DevitError) -> None:
        del self._open[number]
        if number not in self._questions:
            self._answers[number] = result
        elif isinstance(result, DevitError):
            self._replies[number] = result

    def _take(self, message: Message) -> None:
        number = message.frame_id
        if message.kind is Kind.TELEMETRY:
            self._telemetry.append(read_body(message, Telemetry))
        elif message.run_id != self._run_id or number not in self._open:
            return  # an answer to an earlier client under the same route, or a second one to a request sent twice
        elif message.kind is Kind.CONTROL and number in self._questions:
            del self._open[number]
            self._replies[number] = read_body(message, ControlReply)
        elif message.kind is Kind.ANSWER:
            latency_s = time.perf_counter() - self._open[number].sent_s
            self._end(number, Answer.of(message, read_body(message, AnswerBody), latency_s, self._labels))
        elif message.kind is Kind.REFUSED:
            self._end(number, InputError(read_body(message, Refused).text))


def require_key(fleet: Fleet, keys: KeyPair | None) -> None:
    """Tell before connecting that a key is missing.

    Raises:
        InputError: The fleet uses keys and none was given.
    """
    if fleet.has_keys and keys is None:
        raise InputError(f"{fleet.node.client_endpoint}: expected a client key, found none: give one with --key")
