"""The client: asks the fusion node, one image after the other or several in flight, and drives agents' sensors.

When the link or the node is lost, pending requests are sent again under their own numbers as soon as the link is back,
or another node of the fleet is active. The first answer counts, so each request ends once: with an answer, or with an
error when its time is over.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import TypeVar

from devit_contract.artefacts.fleet import Fleet
from devit_contract.artefacts.keys import KeyPair
from devit_contract.choices import IMAGE_CODINGS, ImageCoding, Policy
from devit_contract.errors import (
    DevitError,
    InputError,
    NoAnswerError,
    PeerProtocolError,
    QuestionFailedError,
    WireError,
)
from devit_contract.service.closing import Closing
from devit_contract.wire.answer import Answer
from devit_contract.wire.codec import Dtype, Kind, Message, pack
from devit_contract.wire.messages import (
    AnswerBody,
    BaselineState,
    Control,
    ControlReply,
    Description,
    Mark,
    Refused,
    SamplingCost,
    Telemetry,
    body,
    read_body,
    read_text,
)
from devit_contract.wire.node_links import NodeAddress, NodeLinks
from devit_contract.wire.requests import Picture, Request, Requests, image_request
from devit_contract.wire.status import NodeStatus
from devit_contract.wire.words import BaselineStep, Question

T = TypeVar("T")

__all__ = ["Answer", "Client", "Picture"]


def _keep_quiet(_text: str) -> None:
    """Tell nobody: the error of a question says why it failed."""


class Client(Closing):
    """A connection to one fusion node, or to all of a fleet; a context manager, for one thread."""

    def __init__(
        self,
        endpoint: str,
        *,
        keys: KeyPair | None = None,
        node_key: bytes | None = None,
        timeout_s: float = 10.0,
        tell: Callable[[str], None] = _keep_quiet,
        standby: Sequence[NodeAddress] = (),
    ) -> None:
        """Connect to a node's ``client_endpoint`` in the background; the first question finds out whether it answers.

        A node with keys takes ``keys``, this client's own, with ``node_key``, the node's public one. Any single answer
        may take ``timeout_s``. Nodes of ``standby`` are asked when they are active instead. While the client waits for
        a node that it cannot reach, it gives ``tell`` one line with the reason, and then once a minute.

        Raises:
            AddressError: The endpoint is not usable.
        """
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._requests = Requests()
        self._run_id = secrets.randbits(64)
        self._link = NodeLinks((NodeAddress(endpoint, node_key), *standby), keys, self._run_id, tell)
        self._numbers = count(1)
        self._links = 0  # as known here
        self._images: ImageCoding = "raw"  # as the node wants them
        self._labels: tuple[str, ...] = ()
        self._names: dict[int, str] = {}
        self._telemetry: list[Telemetry] = []

    @property
    def links(self) -> int:
        """How often a node was reached; each time, it forgets who subscribed to power samples."""
        return self._link.changes

    @property
    def is_refused(self) -> bool:
        """Whether the node refuses this client, so that it will answer nothing."""
        return self._link.is_refused

    @classmethod
    def of_fleet(
        cls, fleet: Fleet, keys: KeyPair | None, *, timeout_s: float = 10.0, tell: Callable[[str], None] = _keep_quiet
    ) -> Client:
        """Connect to a fleet's nodes; a key must be given if the fleet has keys, see :func:`require_key`."""
        require_key(fleet, keys)
        (endpoint, key), *standby = (
            NodeAddress(node.client_endpoint, node.public_key.encode() if fleet.has_keys else None)
            for node in fleet.nodes
        )
        return cls(endpoint, keys=keys, node_key=key, timeout_s=timeout_s, tell=tell, standby=standby)

    def close(self) -> None:
        """Close the connection; pending answers are lost. Calling it twice is allowed."""
        self._link.close()

    def classify(self, picture: Picture, *, mask: int = 0, policy: Policy | None = None) -> Answer:
        """Ask for one image and wait for its answer.

        ``mask`` has bit i for each device i that may be asked, and 0 allows all; ``policy`` says which of them are
        asked, and ``None`` is the fleet's.

        Raises:
            NoAnswerError: The node does not answer in time.
            RefusedError: The node refuses this client.
            InputError: The node refuses the image.
        """
        return next(self.stream([picture], in_flight=1, mask=mask, policy=policy))

    def stream(
        self, pictures: Iterable[Picture], *, in_flight: int = 4, mask: int = 0, policy: Policy | None = None
    ) -> Iterator[Answer]:
        """Ask for many images, several in flight, and yield their answers in the order of the images.

        The iterable is read as answers come, so it may be endless or end by a clock. It raises what :meth:`classify`
        does.
        """
        if not self._labels:
            self.status()
        waiting: deque[int] = deque()
        try:
            for picture in pictures:
                waiting.append(self.submit(picture, mask=mask, policy=policy))
                while len(waiting) >= in_flight:
                    yield self._wait(waiting.popleft(), self._requests.answers)
            while waiting:
                yield self._wait(waiting.popleft(), self._requests.answers)
        finally:  # a caller that stops early must not find the rest among later answers
            for number in waiting:
                self._requests.forget(number)

    def submit(self, picture: Picture, *, mask: int = 0, policy: Policy | None = None, deadline_ms: float = 0.0) -> int:
        """Ask for one image without waiting; its answer comes by :meth:`collect`, under the number returned.

        ``deadline_ms`` is how long it may take at the node, if that is less than the fleet's.

        Raises:
            InputError: The image is too large for any node.
            WireError: Its type cannot be sent.
        """
        number, start_s = next(self._numbers), time.perf_counter()
        wanted = image_request(
            picture,
            mask=mask,
            run_id=self._run_id,
            number=number,
            policy=policy,
            coding=self._images,
            deadline_ms=deadline_ms,
        )
        self._send(wanted, start_s)
        return number

    def collect(self, timeout_s: float, *, wake: int | None = None) -> list[tuple[int, Answer | DevitError]]:
        """Take what has been answered to :meth:`submit`; if there is nothing, wait for it, at most ``timeout_s``.

        Every number comes back once: with its answer, or with the error that ended it (refused, or its time is over).
        The wait also ends when ``wake``, a file descriptor, becomes readable.

        Raises:
            RefusedError: The node refuses this client.
        """
        end_s = time.monotonic() + timeout_s
        is_woken = self._pump(0.0)
        while not self._requests.answers and not is_woken and (left_s := end_s - time.monotonic()) > 0:
            is_woken = self._pump(left_s, wake)
        return self._requests.take_answers()

    def status(self) -> NodeStatus:
        """Ask the node for its state and its devices'."""
        status = self._found(self._ask(Control(Question.STATUS)).status, self.endpoint)
        self._labels = status.labels
        self._send_images_as(status.images)
        self._names = {device.submodel: device.name for device in status.devices if not device.is_spare}
        return status

    def describe(self, device: str) -> Description:
        """Ask an agent what it runs on."""
        return self._found(self._ask(Control(Question.DESCRIBE, device)).description, device)

    def mark(self, device: str) -> Mark:
        """Ask an agent for its clock and its counters, at this moment."""
        return self._found(self._ask(Control(Question.MARK, device)).mark, device)

    def baseline(self, device: str, step: BaselineStep) -> BaselineState:
        """Have an agent load, run, rest or free the bundle's baseline model, or ask for its state.

        Raises:
            QuestionFailedError: It failed; the text says why, and what to run.
        """
        state = self._found(self._ask(Control(Question.BASELINE, device, step=step)).baseline, device)
        if state.problem:
            raise QuestionFailedError(f"{device}: {state.problem}")
        return state

    def start_sampling(self, device: str, interval_ms: int) -> None:
        """Have an agent sample power; lines come by :meth:`take_telemetry`."""
        self._ask(Control(Question.SAMPLE_START, device, interval_ms))

    def stop_sampling(self, device: str) -> SamplingCost | None:
        """Have an agent stop sampling, and report what that cost; ``None`` if it had no sample."""
        return self._ask(Control(Question.SAMPLE_STOP, device)).sampling

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

    def _ask(self, control: Control) -> ControlReply:
        number = next(self._numbers)
        self._send(Message(Kind.CONTROL, Dtype.BODY, payload=body(control), run_id=self._run_id, frame_id=number), 0.0)
        reply = self._wait(number, self._requests.replies)
        if reply.error:
            raise QuestionFailedError(reply.error)
        return reply

    def _found(self, value: T | None, where: str) -> T:
        if value is None:
            raise PeerProtocolError(f"{where}: the reply answers another question: install one version everywhere")
        return value

    def _wait(self, number: int, results: dict[int, T | DevitError]) -> T:
        try:
            while number not in results:
                self._pump(self.timeout_s)
            result = results[number]
        finally:
            self._requests.forget(number)
        if isinstance(result, DevitError):
            raise result
        return result

    def _send_images_as(self, wanted: str) -> None:
        self._images = IMAGE_CODINGS.get(wanted, "raw")

    def _send(self, message: Message, start_s: float) -> None:
        is_question, data = message.kind is Kind.CONTROL, pack(message)
        request = Request(data, is_question, start_s, time.monotonic() + self.timeout_s)
        self._requests.add(message.frame_id, request)
        self._link.wait_for_room(self._requests.flush(self._link.send))

    def _pump(self, timeout_s: float, wake: int | None = None) -> bool:
        """Receive what comes within a time, give up what is overdue; tell whether ``wake`` is readable."""
        link, requests = self._link, self._requests
        is_woken = link.wait(min(timeout_s, requests.next_end_s() - time.monotonic()), wake)
        self._follow()
        try:
            for message in link.receive():
                self._take(message)
        except WireError as err:
            raise PeerProtocolError(f"{self.endpoint}: expected a message of this protocol: {err}") from err
        self._follow()  # by what has come, another node may be active
        now_s = time.monotonic()
        if requests.next_end_s() <= now_s:
            why = f" ({link.problem})" if link.problem else ""
            text = f"{self.endpoint}: no answer within {self.timeout_s:g} s{why}: check that fusion-node runs there"
            requests.expire(now_s, NoAnswerError(text))
        return is_woken

    def _follow(self) -> None:
        """Send what has to be sent: by a new link, or to another node, all that is open once more."""
        link, requests = self._link, self._requests
        if link.changes != self._links:
            self._links = link.changes
            if self._links > 1:
                self._images = "raw"  # the node may be an older one now
                requests.send_again()
        if requests.unsent:
            link.wait_for_room(requests.flush(link.send))

    def _take(self, message: Message) -> None:
        number, requests = message.frame_id, self._requests
        if message.kind is Kind.TELEMETRY:
            self._telemetry.append(read_text(message, Telemetry))
            return
        request = requests.open.get(number)
        if message.run_id != self._run_id or request is None:
            return  # an answer to an earlier client of the same route, or a second one to a request sent twice
        if message.kind is Kind.ANSWER and not request.is_question:
            latency_s = time.perf_counter() - request.sent_s
            content = read_body(message, AnswerBody)
            self._send_images_as(content.images)
            requests.end(number, Answer.of(message, content, latency_s, self._labels, self._names))
        elif message.kind is Kind.CONTROL and request.is_question:
            requests.end(number, read_text(message, ControlReply))
        elif message.kind is Kind.REFUSED:
            requests.end(number, InputError(read_text(message, Refused).text))


def require_key(fleet: Fleet, keys: KeyPair | None) -> None:
    """Check before connecting that there is a key if the fleet needs one: else an :class:`InputError`."""
    if fleet.has_keys and keys is None:
        raise InputError(f"{fleet.node.client_endpoint}: expected a client key, found none: give one with --key")
