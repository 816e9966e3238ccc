"""The edge agent: one thread and one poll loop that turns frames into features, and samples power when asked to."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import zmq

from devit_contract.errors import DeviceLostError, EngineError, InputError, LinkError, WireError
from devit_contract.fleet import AgentConfig
from devit_contract.keys import KeyPair
from devit_contract.manifest import Preprocess
from devit_contract.messages import Control, ControlReply, Description, Hello, Mark, Refused, Welcome, body, read_body
from devit_contract.preprocess import check_image, decode_image
from devit_contract.sockets import connect_dealer, open_context
from devit_contract.wire import (
    MAX_IMAGE_MESSAGE_BYTES,
    Dtype,
    Kind,
    Message,
    Reason,
    array_payload,
    pack,
    unpack,
)
from devit_edge_agent.power import PowerFeed
from devit_engines.engine import Engine, UInt8Array

_IDLE_POLL_MS = 200
"""Longest wait of the loop: how soon it sees that it shall stop."""
_HELLO_NS = 1_000_000_000
"""Until an introduction that was not answered is made again."""
_RETRY_NS = 2_000_000_000
"""Pause before a link whose handshake failed is made anew."""
_LINK_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


@dataclass(frozen=True)
class Work:
    """A frame that waits for the engine."""

    message: Message
    read_ns: int


class EdgeAgent:
    """Serves one engine; a context manager. Build it, then call :meth:`serve`."""

    def __init__(
        self,
        config: AgentConfig,
        engine: Engine,
        *,
        preprocess: Preprocess,
        hello: Hello,
        description: Description,
        keys: KeyPair | None,
        report: Callable[[str], None],
    ) -> None:
        """Connect to the node in the background.

        Args:
            config: ``agent.toml``.
            engine: Loaded and warm; the caller closes it.
            preprocess: How a picture file becomes an image.
            hello: What the node is told.
            description: What ``describe`` answers.
            keys: Own keys, or ``None`` without encryption.
            report: Takes one line for people when the link changes.
        """
        self._config = config
        self._engine = engine
        self._preprocess = preprocess
        self._hello = body(hello)
        self._description = description
        self._report = report
        self._boot_id = secrets.randbits(64)
        self._run_id: int | None = None
        self._queue: deque[Work] = deque()
        self._retry_ns: int | None = None
        self._hello_ns: int | None = None
        self._inferences = 0
        self._busy_ns = 0
        self._power = PowerFeed(config.tegrastats)
        self._opened = open_context()
        self._socket, self._monitor = connect_dealer(
            self._opened.__enter__(),
            config.node,
            name=config.name.encode(),
            keys=keys,
            node_key=config.node_public_key.encode() or None,
            max_bytes=MAX_IMAGE_MESSAGE_BYTES,
            events=_LINK_EVENTS,
        )
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor.socket, zmq.POLLIN)

    def __enter__(self) -> EdgeAgent:
        """Use the agent in a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sampling and close the link."""
        self.close()

    def close(self) -> None:
        """Stop sampling and close the link."""
        self._power.stop()
        self._socket.disable_monitor()
        self._socket.close(linger=_IDLE_POLL_MS)
        self._opened.__exit__(None, None, None)

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Run until ``should_stop``, then say for every frame still waiting that its feature will not come.

        Raises:
            LinkError: The node refuses this device or its bundle; nothing would change by trying again.
        """
        while not should_stop():
            self._poller.poll(0 if self._queue else _IDLE_POLL_MS)
            self._watch_link()
            self._receive()
            self._feed_power()
            if self._queue:
                self._work(self._queue.popleft())
        self._receive()  # what has come while the last frame was worked on is given up by name too
        for work in self._queue:
            self._skip(work.message, Reason.STOPPING)

    def _watch_link(self) -> None:
        for event in self._monitor.read():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._retry_ns = None
                self._hello_ns = time.monotonic_ns()
            elif event == zmq.EVENT_DISCONNECTED:
                self._drop_link("the link to the node is gone, waiting for it")
            else:
                self._drop_link("the node refuses the handshake: check both keys; trying again")
                self._retry_ns = time.monotonic_ns() + _RETRY_NS
        if self._hello_ns is not None and time.monotonic_ns() >= self._hello_ns:
            self._greet()
        if self._retry_ns is not None and time.monotonic_ns() >= self._retry_ns:
            # After an outright refusal libzmq would never connect again by itself.
            self._retry_ns = None
            self._socket.disconnect(self._config.node)
            self._socket.connect(self._config.node)

    def _greet(self) -> None:
        """Introduce this device, each second until the node answers: either message may be lost."""
        self._hello_ns = time.monotonic_ns() + _HELLO_NS
        self._send(
            Message(
                Kind.HELLO,
                Dtype.BODY,
                payload=self._hello,
                engine_revision=self._engine.revision,
                boot_id=self._boot_id,
            )
        )

    def _drop_link(self, text: str) -> None:
        self._hello_ns = None
        if self._run_id is not None or self._retry_ns is None:
            self._report(text)
        self._run_id = None
        self._queue.clear()
        self._power.stop()

    def _receive(self) -> None:
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._take(unpack(frame.buffer), time.monotonic_ns())
            except WireError as err:
                self._report(f"a message of the node was not used: {err}")

    def _take(self, message: Message, now_ns: int) -> None:
        if message.kind is Kind.WELCOME:
            welcome = read_body(message, Welcome)
            self._run_id = message.run_id
            self._hello_ns = None
            self._report(f"ready, {welcome.credit} frames in flight")
        elif message.kind is Kind.REFUSED:
            raise LinkError(f"{self._config.node} refuses this device: {read_body(message, Refused).text}")
        elif message.run_id != self._run_id:
            raise WireError("run", f"{message.kind.name} of run {message.run_id}, not of the present one")
        elif message.kind is Kind.FRAME:
            self._queue.append(Work(message, now_ns))
        elif message.kind is Kind.TRIGGER:
            self._skip(message, Reason.NO_SOURCE)
        elif message.kind is Kind.CONTROL:
            self._control(message, read_body(message, Control))
        else:
            raise WireError("kind", f"expected a node's message, found {message.kind.name}")

    def _work(self, work: Work) -> None:
        message = work.message
        start_ns = time.monotonic_ns()
        if message.deadline_us and start_ns - work.read_ns >= message.deadline_us * 1000:
            self._skip(message, Reason.EXPIRED)
            return
        try:
            image = self._image(message)
        except (InputError, WireError):
            self._skip(message, Reason.DECODE)
            return
        decoded_ns = time.monotonic_ns()
        try:
            feature = self._engine.features(image[np.newaxis])[0]  # (1, H, W, C) -> (1, dim) -> (dim,)
        except DeviceLostError:
            self._skip(message, Reason.ENGINE)
            raise  # nothing in this process can bring the GPU back
        except EngineError as err:
            self._report(f"the engine failed on a frame: {err}")
            self._skip(message, Reason.ENGINE)
            return
        done_ns = time.monotonic_ns()
        self._inferences += 1
        self._busy_ns += done_ns - decoded_ns
        dtype, dims, payload = array_payload(feature)
        self._send(
            Message(
                Kind.FEATURE,
                dtype,
                dims,
                payload,
                device=self._config.submodel,
                engine_revision=self._engine.revision,
                run_id=message.run_id,
                frame_id=message.frame_id,
                boot_id=self._boot_id,
                dispatch_ns=message.dispatch_ns,
                queue_us=(start_ns - work.read_ns) // 1000,
                decode_us=(decoded_ns - start_ns) // 1000,
                inference_us=(done_ns - decoded_ns) // 1000,
            )
        )

    def _image(self, message: Message) -> UInt8Array:
        if message.dtype is Dtype.ENCODED:
            return decode_image(message.payload, self._preprocess, "frame")
        image: UInt8Array = message.array()
        check_image(image, self._preprocess)
        return image

    def _control(self, message: Message, control: Control) -> None:
        reply = ControlReply()
        if control.ask == "ping":
            return
        if control.ask == "describe":
            reply = ControlReply(description=self._description)
        elif control.ask == "mark":
            reply = ControlReply(mark=Mark(time.monotonic_ns(), self._inferences, self._busy_ns))
        elif control.ask == "sample-start":
            error = self._power.start(control.interval_ms, self._poller)
            reply = ControlReply(error=f"{self._config.name}: {error}" if error else "")
        elif control.ask == "sample-stop":
            self._power.stop()
        else:
            reply = ControlReply(error=f"{self._config.name}: unknown question {control.ask!r}")
        self._send(
            Message(
                Kind.CONTROL,
                Dtype.BODY,
                payload=body(reply),
                run_id=message.run_id,
                frame_id=message.frame_id,
                boot_id=self._boot_id,
            )
        )

    def _feed_power(self) -> None:
        telemetry = self._power.take(self._config.name)
        if telemetry is not None:
            self._send(Message(Kind.TELEMETRY, Dtype.BODY, payload=body(telemetry), boot_id=self._boot_id))

    def _skip(self, message: Message, reason: Reason) -> None:
        self._send(
            Message(
                Kind.SKIP,
                device=self._config.submodel,
                reason=reason,
                run_id=message.run_id,
                frame_id=message.frame_id,
                boot_id=self._boot_id,
                dispatch_ns=message.dispatch_ns,
            )
        )

    def _send(self, message: Message) -> None:
        # Again: the link went this moment, or takes no more; the node counts the frame as missing at its deadline.
        with suppress(zmq.Again):
            self._socket.send(pack(message), zmq.NOBLOCK)
